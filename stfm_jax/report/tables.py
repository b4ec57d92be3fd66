"""From scores to summaries over folds and tables in plain text.

The shape of metrics.json is a contract with scripts (docs/data_and_files.md). Nothing here computes
a score (score/), draws (plots/) or writes (write.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LOWER_IS_BETTER = ("mse", "mae", "rmse", "crps", "mass_error")
NOMINAL = {"coverage80": 0.8}  # best is nearest to this

Summary = dict[str, dict[str, dict[str, dict[str, Any]]]]


def summarize(fold_metrics: Sequence[Mapping[str, Mapping[str, float]]]) -> Summary:
    """Mean and spread over folds of every metric of every method.

    Args:
      fold_metrics: per fold, {method: {metric: value}}. A fold may lack a method or a metric.

    Returns:
      {"methods": {method: {metric: {"mean", "std", "folds"}}}}, methods and metrics in order of
      first appearance. `folds` has one entry per fold, NaN where it has no value; mean and std
      are over the others. std is the sample standard deviation (n - 1) [ours], NaN for one fold.
      NaN becomes null in JSON.
    """
    methods: dict[str, dict[str, Any]] = {}
    for index, fold in enumerate(fold_metrics):
        for method, metrics in fold.items():
            for metric, value in metrics.items():
                missing = [math.nan] * len(fold_metrics)
                values = methods.setdefault(method, {}).setdefault(metric, missing)
                values[index] = float(value)
    return {
        "methods": {
            method: {metric: _over_folds(values) for metric, values in metrics.items()}
            for method, metrics in methods.items()
        }
    }


def _over_folds(values: list[float]) -> dict[str, Any]:
    known = [value for value in values if not math.isnan(value)]
    return {
        "mean": float(np.mean(known)) if known else math.nan,
        "std": float(np.std(known, ddof=1)) if len(known) > 1 else math.nan,
        "folds": values,
    }


def text_table(
    methods: Mapping[str, Mapping[str, Mapping[str, Any]]],
    metrics: Sequence[str] | None = None,
    digits: int = 3,
) -> str:
    """An aligned plain-text table, a row per method and a column per metric.

    Args:
      methods: `summarize(...)["methods"]`, or the same read back from metrics.json.
      metrics: columns; all that occur when None.
      digits: decimals.

    Returns:
      The table without a final newline. `*` marks the best mean of a column as printed: highest,
      lowest for errors, nearest to 0.8 for coverage80. `-` stands for what was not measured.
    """
    if metrics is None:
        metrics = list(dict.fromkeys(metric for row in methods.values() for metric in row))
    columns = [["", *methods]]
    for metric in metrics:
        cells = [row.get(metric, {}) for row in methods.values()]
        best = _best([_number(cell.get("mean")) for cell in cells], metric, digits)
        columns.append(
            [metric + " ", *(_cell(cell, digits) + " *"[i in best] for i, cell in enumerate(cells))]
        )
    widths = [max(len(cell) for cell in column) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        name, *scores = row
        padded = [cell.rjust(width) for cell, width in zip(scores, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def _cell(cell: Mapping[str, Any], digits: int) -> str:
    mean, std = _number(cell.get("mean")), _number(cell.get("std"))
    if math.isnan(mean):
        return "-"
    text = f"{mean:.{digits}f}"
    return text if math.isnan(std) else f"{text} +- {std:.{digits}f}"


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _best(means: list[float], metric: str, digits: int) -> set[int]:
    """Indices of the best values; values that print alike share the mark."""
    if metric in NOMINAL:
        cost = [abs(mean - NOMINAL[metric]) for mean in means]
    else:
        cost = [mean if metric in LOWER_IS_BETTER else -mean for mean in means]
    cost = [round(c, digits) for c in cost]
    known = [c for c in cost if not math.isnan(c)]
    return {i for i, c in enumerate(cost) if known and c == min(known)}
