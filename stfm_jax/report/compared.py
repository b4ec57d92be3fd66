"""A part of a comparison, as its workdir holds it, and its tables of cells in plain text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from stfm_jax import layout
from stfm_jax.data.datasets import Dataset
from stfm_jax.models.method import STACK, Method
from stfm_jax.report import tables
from stfm_jax.report.write import ScoredFold, scored_folds, scores_of
from stfm_jax.runtime.files import read_csv, read_json
from stfm_jax.score import controls
from stfm_jax.seeds import seeds_of

# Of means, and of draws; each only where a row has it.
COLUMNS = (
    *("pearson", "pearson_slide", "mse", "gene_structure", "moran", "residual"),
    *("svg", "programmes", "ari", "ari_leiden"),
)
DRAWN = ("pearson", "gene_structure", "moran", "svg", "programmes", "crps", "coverage80", "width80")
EXPLAINED = {
    "svg": "svg: spatially variable genes recovered, the rank correlation over genes of Moran's I "
    "predicted and measured",
    "programmes": "programmes: Pearson of the spots' scores in lists of marker genes, within each "
    "slide, the mean over lists",
    "ari": "ari: adjusted Rand index of k-means clusters with a pathologist's labels",
    "ari_leiden": "ari_leiden: the same of Leiden's clusters",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One experiment, trained and scored."""

    name: str
    workdir: Path
    config: Any
    problem: Any
    dataset: Dataset
    methods: Sequence[Method]

    @property
    def seeds(self) -> tuple[int, ...]:
        return seeds_of(self.config)

    @functools.cached_property
    def folds(self) -> list[ScoredFold]:
        return scored_folds(self.workdir, self.seeds, self.methods)

    @functools.cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Cells of each row by metric, as in metrics.json."""
        scores = [[scores_of(f, seed) for seed in self.seeds] for f in self.folds]
        return tables.summarize(scores)["methods"]

    @functools.cached_property
    def controls(self) -> dict[str, dict[str, Any]]:
        """Cells of what knows the truth, as of `rows`; none where the config asks for none."""
        if not self.config.compare.controls:
            return {}
        places = (layout.fold_folder(self.workdir, f.fold["fold"]) for f in self.folds)
        paths = (place / layout.CONTROLS for place in places)
        scores = [[read_json(path)["scores"]] for path in paths if path.exists()]
        return tables.summarize(scores)["methods"]

    @functools.cached_property
    def unordered(self) -> dict[str, tuple[str, str]]:
        """By metric that does not order its controls: the positive one that is no better than a
        negative one, and that one."""
        cells = {metric: None for row in self.controls.values() for metric in row}
        found = {metric: self._wrong_order(metric) for metric in cells}
        return {metric: pair for metric, pair in found.items() if pair}

    def _wrong_order(self, metric: str) -> tuple[str, str] | None:
        sign = -1.0 if metric in tables.LOWER_IS_BETTER else 1.0
        values = {n: sign * _mean_of(row.get(metric, {})) for n, row in self.controls.items()}
        low = min(controls.POSITIVE, key=values.__getitem__)
        high = max(controls.NEGATIVE, key=values.__getitem__)
        return (low, high) if values[low] <= values[high] else None  # not so of NaN

    @property
    def means(self) -> list[str]:
        """Rows of point predictions, the best first."""
        drawn = self.drawn
        names = [name for name in self.rows if name not in drawn and "pearson" in self.rows[name]]
        return sorted(names, key=lambda name: -np.nan_to_num(self.value(name, "pearson")))

    def sees_stack(self, row: str) -> bool:
        """Whether a row is of a method that sees neighbouring sections too; it is not ranked."""
        needing = [method for method in self.methods if STACK in method.needs]
        return any(row in (method.name, method.draws_as) for method in needing)

    @property
    def of_stacks(self) -> list[str]:
        """Rows of point predictions that see neighbouring sections, the best first."""
        return [name for name in self.means if self.sees_stack(name)]

    @property
    def of_slides(self) -> list[str]:
        """Those that see the slide alone."""
        return [name for name in self.means if not self.sees_stack(name)]

    @property
    def drawn(self) -> list[str]:
        """Rows of draws."""
        of_methods = {method.draws_as for method in self.methods}
        return [name for name in self.rows if name in of_methods]

    def value(self, row: str, metric: str) -> float:
        """Mean over folds and seeds, NaN where it was not measured."""
        return _mean_of(self.rows.get(row, {}).get(metric, {}))

    @functools.cached_property
    def costs(self) -> dict[str, dict[str, float]]:
        """Seconds, memory and size by method: means over the folds, of the first seed."""
        found = {}
        for method in self.methods:
            each = [_cost(self.workdir, f.fold["fold"], method, self.seeds[0]) for f in self.folds]
            names = dict.fromkeys(name for one in each for name in one)
            found[method.name] = {
                name: float(np.mean([one[name] for one in each if name in one])) for name in names
            }
        return found

    def ranks(self) -> dict[str, list[float]]:
        """Of each row of a slide's mean its rank in every fold, 1 the best; ties share theirs."""
        found: dict[str, list[float]] = {name: [] for name in self.of_slides}
        for i in range(len(self.folds)):
            values = [self.rows[name]["pearson"]["folds"][i] for name in found]
            for name, rank in zip(found, rankdata(-np.nan_to_num(values, nan=-9.0)), strict=True):
                found[name].append(float(rank))
        return found


def _mean_of(cell: Mapping[str, Any]) -> float:
    return tables.number(cell.get("mean"))


def _cost(workdir: Path, fold: int, method: Method, seed: int) -> dict[str, float]:
    place = layout.fold_folder(workdir, fold)
    fitted = layout.method_folder(place, method.owner, seed)
    predicted = layout.method_folder(place, method.name, seed) / layout.PREDICT_COST
    found = {}
    for path in (fitted / layout.FIT_COST, predicted):
        about = read_json(path) if path.exists() else {}
        found |= {name: value for name, value in about.items() if value is not None}
    trained = [row for s in ("select", "refit") for row in read_csv(fitted / s / "history.csv")]
    if "fit_seconds" in found:  # what was done before a stop counts too
        before = sum(float(row["seconds"]) for row in trained)
        found["fit_seconds"] = max(found["fit_seconds"], before)
    return found


def tables_of(
    part: Part, against: Mapping[str, dict], reference: str
) -> list[tuple[list, list[list]]]:
    """Columns and rows of point predictions, of draws and of controls, those that there are."""
    each = [
        _means_table(part, against, reference),
        _draws_table(part),
        *(_apart_table(part, of) for of in ("pearson", "programmes")),
        _controls_table(part),
    ]
    return [(columns, rows) for columns, rows in each if rows]


def _shown(part: Part) -> list[str]:
    found = [m for m in COLUMNS if any(m in part.rows[n] for n in part.means)]
    if all(len(f.fold["test"]) == 1 for f in part.folds):
        return [name for name in found if name != "pearson_slide"]
    return found


def _marks(part: Part) -> dict[str, str]:
    """By metric of the tables that does not order its controls."""
    marked = [metric for metric in part.unordered if metric in COLUMNS + DRAWN]
    return {metric: f"[{i}]" for i, metric in enumerate(marked, 1)}


def _marked(part: Part, metrics: Sequence[str]) -> list[str]:
    """Names of columns, with marks that `notes_of` explains."""
    marks = _marks(part)
    return [f"{metric} {marks[metric]}" if metric in marks else metric for metric in metrics]


def _means_table(
    part: Part, against: Mapping[str, dict], reference: str
) -> tuple[list, list[list]]:
    """The best first."""
    shown = _shown(part)
    columns = [
        "method",
        *_marked(part, shown),
        f"pearson less {reference}'s",
        "fit",
        "predict",
        "memory",
        "size",
    ]
    rows = []
    for name in part.means:
        cells = [tables.cell_text(part.rows[name].get(m, {}), 3) for m in shown]
        rows.append([name, *cells, _difference(against.get(name)), *_cost_cells(part, name)])
    return columns, rows


def _difference(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def _cost_cells(part: Part, name: str) -> list[str]:
    cost = part.costs.get(name, {})

    def cell(key: str, form: str) -> str:
        return form.format(cost[key]) if key in cost else ""

    peak = max(cost.get("fit_peak_gib", 0.0), cost.get("predict_peak_gib", 0.0))
    return [
        cell("fit_seconds", "{:.1f} s"),
        cell("predict_seconds", "{:.1f} s"),
        f"{peak:.1f} GiB" if peak else "",
        _short(cost["numbers"]) if "numbers" in cost else "",
    ]


def _short(number: float) -> str:
    """As in 12, 3.4k, 1.2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _apart_table(part: Part, of: str) -> tuple[list, list[list]]:
    """Of a metric that is given one by one, as `pearson:GENE`."""
    names = tables.apart({name: part.rows[name] for name in part.means}, of)
    rows = [
        [row, *(tables.cell_text(part.rows[row].get(f"{of}:{name}", {}), 3) for name in names)]
        for row in part.means
        if names
    ]
    return [f"{of} of", *names], rows


def _draws_table(part: Part) -> tuple[list, list[list]]:
    shown = [m for m in DRAWN if any(m in part.rows[n] for n in part.drawn)]
    rows = [
        [name, *(tables.cell_text(part.rows[name].get(m, {}), 3) for m in shown)]
        for name in sorted(part.drawn, key=lambda name: part.value(name, "crps"))
    ]
    return ["draws of", *_marked(part, shown)], rows


def _controls_table(part: Part) -> tuple[list, list[list]]:
    shown = _shown(part)
    rows = [
        [name, *(tables.cell_text(cells.get(m, {}), 3) for m in shown)]
        for name, cells in part.controls.items()
    ]
    return ["controls: they know the truth", *_marked(part, shown)], rows


def notes_of(part: Part) -> list[str]:
    """What is said under the tables, a sentence or more a line."""
    notes = [f"{legend_of(part)}."]
    if part.of_stacks:
        notes.append(
            f"{', '.join(part.of_stacks)}: with neighbouring sections of the same tissue at hand, "
            "which the other rows do not see."
        )
    for metric, mark in _marks(part).items():
        found = {name: _mean_of(part.controls[name][metric]) for name in part.unordered[metric]}
        each = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        notes.append(
            f"{mark} {metric} does not order its controls ({each}): by itself it does not say how "
            "well spots are told apart."
        )
    return notes


def legend_of(part: Part) -> str:
    """What the cells are, and the columns that do not say it by their name."""
    said = tables.legend(len(part.folds), len(part.dataset.folds), len(part.seeds))
    measured = {metric: cell["mean"] for row in part.rows.values() for metric, cell in row.items()}
    explained = [
        text + (f"; measured expression has {measured[own]:.3f}" if own in measured else "")
        for name, text in EXPLAINED.items()
        if name in measured and (own := f"{name}_measured")
    ]
    if genes := tables.apart(part.rows, "pearson"):
        explained.append(f"{', '.join(genes)}: added to the panel, with no part in its means")
    return ". ".join([f"{said}; {part.dataset.folds_from}", *explained])
