"""The report over the parts of a comparison: table.md, table.csv, metrics.json and report.html.

Every figure is computed from what the parts' workdirs hold; nothing is fitted or predicted here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import stfm_jax
from stfm_jax.report import comparison_page
from stfm_jax.report.compared import Part, notes_of, tables_of
from stfm_jax.report.write import comparisons
from stfm_jax.runtime.files import write_csv, write_json, write_text

_LOG = logging.getLogger("stfm_jax")


def write(workdir: Path, parts: Sequence[Part], reference: str, maps: int) -> None:
    """Writes the report of a comparison, and prints where it is.

    Args:
      workdir: of the comparison.
      parts: its experiments.
      reference: method that every other is set against.
      maps: genes that are drawn by method.
    """
    against = {part.name: _against(part, reference) for part in parts}
    ranks = _mean_ranks(parts)
    write_json(
        workdir / "metrics.json",
        {
            "parts": {
                part.name: {
                    "methods": part.rows,
                    "against": against[part.name],
                    "controls": part.controls,
                    "unordered": part.unordered,
                    "costs": part.costs,
                    "split": part.dataset.folds_from,
                    "folds": [f.fold["test"] for f in part.folds],
                }
                for part in parts
            },
            "ranks": ranks,
            "reference": reference,
            "seeds": parts[0].seeds,
            "version": stfm_jax.__version__,
        },
    )
    write_csv(workdir / "table.csv", [row for part in parts for row in _csv_rows(part)])
    lines = ["# Methods side by side", ""]
    for part in parts:
        lines += [f"## {part.name}", "", *_markdown(part, against[part.name], reference), ""]
    write_text(workdir / "table.md", "\n".join(lines))
    made = comparison_page.page_of(parts, against, ranks, reference, maps)
    write_text(workdir / "report.html", made)
    _LOG.info("\n%s\nreport: %s", "\n".join(lines), workdir / "report.html")


def _against(part: Part, reference: str) -> dict[str, dict]:
    """Bootstrap of each method minus the reference, by method."""
    names = [method.name for method in part.methods if method.name != reference]
    found = comparisons(
        part.problem, part.dataset, [(n, reference) for n in names], part.folds, part.seeds[0]
    )
    return {name.partition(" - ")[0]: row for name, row in found.items()}


def _mean_ranks(parts: Sequence[Part]) -> dict[str, float]:
    """Mean rank of each row over the folds of all parts, best first; rows that all parts have."""
    each = [part.ranks() for part in parts]
    shared = [name for name in each[0] if all(name in ranks for ranks in each)]
    means = {name: float(np.mean([r for ranks in each for r in ranks[name]])) for name in shared}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def _csv_rows(part: Part) -> list[dict]:
    return [
        {
            "part": part.name,
            "row": row,
            "metric": metric,
            **{name: cell.get(name) for name in ("mean", "std", "seed_std")},
            "kind": kind,
        }
        for kind, rows in (("method", part.rows), ("control", part.controls))
        for row, cells in rows.items()
        for metric, cell in cells.items()
    ]


def _markdown(part: Part, against: Mapping[str, dict], reference: str) -> list[str]:
    lines = []
    for columns, rows in tables_of(part, against, reference):
        lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(map(str, row))} |" for row in rows] + [""]
    return [*lines, "  \n".join(notes_of(part))]
