"""From scores to summaries over folds and seeds, and tables in plain text.

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
SPREADS = ("+-", "/")  # before the spread over folds, and over seeds

Summary = dict[str, dict[str, dict[str, dict[str, Any]]]]


def summarize(scores: Sequence[Sequence[Mapping[str, Mapping[str, float]]]]) -> Summary:
    """Mean and spread over folds, and over seeds, of every metric of every method.

    Args:
      scores: per fold and per seed, {method: {metric: value}}, which may lack a method or a metric;
        None is NaN, as JSON has it.

    Returns:
      {"methods": {method: {metric: cell}}}, methods and metrics in order of first appearance; see
      `_cell_of`. NaN becomes null in JSON.
    """
    methods: dict[str, dict[str, Any]] = {}
    shape = len(scores), max((len(fold) for fold in scores), default=0)
    for index in np.ndindex(shape):
        for method, metrics in scores[index[0]][index[1]].items():
            for metric, value in metrics.items():
                missing = np.full(shape, math.nan)
                values = methods.setdefault(method, {}).setdefault(metric, missing)
                values[index] = number(value)
    return {
        "methods": {
            method: {metric: _cell_of(values) for metric, values in metrics.items()}
            for method, metrics in methods.items()
        }
    }


def _cell_of(values: np.ndarray) -> dict[str, Any]:
    """What metrics.json says of values [folds, seeds], NaN where there is none.

    `folds` are means over the seeds that a fold has, `mean` and `std` are over them. `seeds` are
    means over the folds that no seed lacks: others would set different folds against each other;
    `seed_std` is their spread. A seed that has no value in any fold is looked at by neither.
    Spreads are sample standard deviations (n - 1) [ours], NaN of a single value.
    """
    known = ~np.isnan(values)
    there = known.any(axis=0)
    shared = known[:, there].all(axis=1) & there.any()
    folds = [_mean(of_fold) for of_fold in values]
    seeds = [_mean(of_seed[shared]) for of_seed in values.T]
    return {
        "mean": _mean(folds),
        "std": _spread(folds),
        "folds": folds,
        "seeds": seeds,
        "seed_std": _spread(seeds),
    }


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _spread(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.std(known, ddof=1)) if len(known) > 1 else math.nan


def apart(methods: Mapping[str, Mapping[str, Any]], of: str) -> list[str]:
    """What a metric is given for one by one, as the genes of `pearson:GENE`, in the order found."""
    names = dict.fromkeys(metric for row in methods.values() for metric in row)
    return [metric.partition(":")[2] for metric in names if metric.startswith(f"{of}:")]


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
      The table without a final newline. A cell is the mean, its spread over folds and, of several
      seeds, over seeds; `legend` says so. `*` marks the best mean of a column as printed: highest,
      lowest for errors, nearest to 0.8 for coverage80. `-` stands for what was not measured.
    """
    if metrics is None:
        metrics = list(dict.fromkeys(metric for row in methods.values() for metric in row))
    columns = [["", *methods]]
    for metric in metrics:
        cells = [row.get(metric, {}) for row in methods.values()]
        best = _best([number(cell.get("mean")) for cell in cells], metric, digits)
        columns.append(
            [
                metric + " ",
                *(cell_text(cell, digits) + " *"[i in best] for i, cell in enumerate(cells)),
            ]
        )
    widths = [max(len(cell) for cell in column) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        name, *scores = row
        padded = [cell.rjust(width) for cell, width in zip(scores, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def cell_text(cell: Mapping[str, Any], digits: int) -> str:
    """The mean with its spreads, "-" where nothing was measured."""
    mean, *spreads = (number(cell.get(name)) for name in ("mean", "std", "seed_std"))
    if math.isnan(mean):
        return "-"
    marks = (
        f" {sign} {spread:.{digits}f}"
        for sign, spread in zip(SPREADS, spreads, strict=True)
        if not math.isnan(spread)
    )
    return f"{mean:.{digits}f}" + "".join(marks)


def legend(folds: int, folds_in_split: int, seeds: int) -> str:
    """What the cells of `text_table` are, as the beginning of a sentence."""
    over_seeds = f" {SPREADS[1]} spread over {seeds} seeds" if seeds > 1 else ""
    return f"Mean {SPREADS[0]} spread over {folds} of {folds_in_split} folds{over_seeds}"


def number(value: float | None) -> float:
    """Of JSON, which has no NaN."""
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
