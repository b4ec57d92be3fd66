"""The report over the parts of a comparison: table.md, table.csv, metrics.json and report.html.

Every figure is computed from what the parts' workdirs hold; nothing is fitted or predicted here.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

import stfm_jax
from stfm_jax import layout
from stfm_jax.data.datasets import Dataset
from stfm_jax.models.method import Method
from stfm_jax.ops import metrics
from stfm_jax.plots import comparison as plots
from stfm_jax.report import page, tables
from stfm_jax.report.write import ScoredFold, comparisons, scored_folds, scores_of
from stfm_jax.runtime.files import (
    atomic_path,
    load_arrays,
    read_csv,
    read_json,
    write_csv,
    write_json,
)
from stfm_jax.seeds import seeds_of

COLUMNS = ("pearson", "pearson_slide", "mse", "gene_structure", "moran")  # of means
DRAWN = ("pearson", "gene_structure", "moran", "crps", "coverage80", "width80")  # of draws
DOWNSTREAM = ("residual", "ari", "svg", "programmes")  # where they were scored
FLOOR = "mean"  # the row that sees nothing
NEAR = 0.02  # [ours] of Pearson: as good as the best, for someone who waits
_LOG = logging.getLogger("stfm_jax")


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

    @property
    def means(self) -> list[str]:
        """Rows of point predictions, the best first."""
        drawn = self.drawn
        names = [name for name in self.rows if name not in drawn and "pearson" in self.rows[name]]
        return sorted(names, key=lambda name: -np.nan_to_num(self.value(name, "pearson")))

    @property
    def drawn(self) -> list[str]:
        """Rows of draws."""
        of_methods = {method.draws_as for method in self.methods}
        return [name for name in self.rows if name in of_methods]

    def value(self, row: str, metric: str) -> float:
        """Mean over folds and seeds, NaN where it was not measured."""
        found = self.rows.get(row, {}).get(metric, {}).get("mean")
        return np.nan if found is None else float(found)

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
        """Of each row of a mean its rank in every fold, 1 the best; ties share theirs."""
        found: dict[str, list[float]] = {name: [] for name in self.means}
        for i in range(len(self.folds)):
            values = [self.rows[name]["pearson"]["folds"][i] for name in found]
            for name, rank in zip(found, rankdata(-np.nan_to_num(values, nan=-9.0)), strict=True):
                found[name].append(float(rank))
        return found


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
    _write_text(workdir / "table.md", "\n".join(lines))
    _write_text(workdir / "report.html", _html(parts, against, ranks, reference, maps))
    _LOG.info("\n%s\nreport: %s", "\n".join(lines), workdir / "report.html")


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _cost(workdir: Path, fold: int, method: Method, seed: int) -> dict[str, float]:
    place = layout.fold_folder(workdir, fold)
    folder, found = layout.method_folder(place, method.owner, seed), {}
    fitted, predicted = (
        folder / layout.FIT_COST,
        (layout.method_folder(place, method.name, seed) / layout.PREDICT_COST),
    )
    for what, path in (("fit", fitted), ("predict", predicted)):
        if path.exists():
            about = read_json(path)
            found |= {f"{what}_{k}": v for k, v in about.items() if v is not None}
    trained = [row for s in ("select", "refit") for row in read_csv(folder / s / "history.csv")]
    if "fit_seconds" in found:  # what was done before a stop counts too
        found["fit_seconds"] = max(
            found["fit_seconds"], sum(float(row["seconds"]) for row in trained)
        )
    state = layout.model_folder(place, method.owner, seed) / "state.npz"
    if state.exists():
        found["numbers"] = _numbers(load_arrays(state))
    return found


def _numbers(tree: Any) -> int:
    """How many numbers a state is."""
    if isinstance(tree, Mapping):
        return sum(map(_numbers, tree.values()))
    return int(np.size(tree))


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
        }
        for row, cells in part.rows.items()
        for metric, cell in cells.items()
    ]


def _table(part: Part, against: Mapping[str, dict], reference: str) -> tuple[list, list[list]]:
    """Columns and rows of point predictions, the best first."""
    shown = [m for m in (*COLUMNS, *DOWNSTREAM) if any(m in part.rows[n] for n in part.means)]
    if all(len(f.fold["test"]) == 1 for f in part.folds):
        shown = [name for name in shown if name != "pearson_slide"]
    columns = ["method", *shown, f"pearson less {reference}'s", "fit", "predict", "memory", "size"]
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


def _draws_table(part: Part) -> tuple[list, list[list]]:
    shown = [m for m in DRAWN if any(m in part.rows[n] for n in part.drawn)]
    rows = [
        [name, *(tables.cell_text(part.rows[name].get(m, {}), 3) for m in shown)]
        for name in sorted(part.drawn, key=lambda name: part.value(name, "crps"))
    ]
    return ["draws of", *shown], rows


def _markdown(part: Part, against: Mapping[str, dict], reference: str) -> list[str]:
    lines = []
    for columns, rows in (_table(part, against, reference), _draws_table(part)):
        if rows:
            lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
            lines += [f"| {' | '.join(map(str, row))} |" for row in rows] + [""]
    return [*lines, f"{_legend(part)}."]


def _legend(part: Part) -> str:
    said = tables.legend(len(part.folds), len(part.dataset.folds), len(part.seeds))
    return f"{said}; {part.dataset.folds_from}"


def _html(parts, against, ranks: Mapping[str, float], reference: str, maps: int) -> str:
    body = [page.heading("Which method for what")]
    for part in parts:
        body += [page.paragraph(said) for said in _verdict(part)]
    body.append(page.paragraph(_scope(parts)))
    body += [
        page.heading("Rank"),
        page.paragraph(
            "Mean rank by Pearson over all folds of all parts; 1 would be the best in every one."
        ),
        page.table(("method", "mean rank"), [(name, f"{r:.1f}") for name, r in ranks.items()]),
    ]
    for part in parts:
        body += _part_html(part, against[part.name], reference, maps)
    body += [page.heading("How it was made"), page.facts(_made(parts))]
    body.append(page.paragraph(_NOTES))
    return page.page("Methods side by side", body)


_NOTES = (
    "Everything is scored on slides that no method was fitted to. Pearson is per gene over the "
    "test spots of a fold, then the mean over genes. Intervals are of a paired bootstrap over "
    "blocks of tissue: they speak of new tissue of these slides, not of new patients. Seconds are "
    "of this machine, beside whatever else it did; what several methods compute alike is counted "
    "for the first of them; memory is the whole process's at its peak; size is the numbers that a "
    "trained model keeps. Rows of other groups' methods follow what their papers and code say and "
    "are no replication of published figures. Not for clinical use."
)


def _verdict(part: Part) -> list[str]:
    """What a reader wants to know first."""
    if not part.means:
        return [f"{part.name}: nothing was scored."]
    best, top = part.means[0], part.value(part.means[0], "pearson")
    near = [n for n in part.means[1:] if part.value(n, "pearson") >= top - NEAR]
    said = [
        f"{part.name}. The most accurate mean is {best}'s, Pearson {top:.3f}"
        + (f"; within {NEAR:g} of it: {', '.join(near)}." if near else ".")
    ]
    timed = {n: part.costs.get(n, {}).get("fit_seconds", np.inf) for n in (best, *near)}
    quick = min(timed, key=timed.get)
    if quick != best and timed[quick] < timed[best]:
        said.append(
            f"Where time matters: {quick}, {part.value(quick, 'pearson'):.3f} after "
            f"{timed[quick]:.1f} s instead of {timed[best]:.1f} s of fitting."
        )
    drawn = [n for n in part.drawn if not np.isnan(part.value(n, "crps"))]
    if drawn:
        sharp = min(drawn, key=lambda name: part.value(name, "crps"))
        covered = part.value(sharp, "coverage80")
        said.append(
            f"For uncertainty, and for samples that look like tissue: {sharp}, the lowest CRPS "
            f"({part.value(sharp, 'crps'):.3f}); its 80 % intervals cover {covered:.0%}."
        )
    below = [n for n in part.means if n != FLOOR and part.value(n, "pearson") <= 0.02]
    if below:
        said.append(f"No better than the training mean here: {', '.join(below)}.")
    return said


def _scope(parts: Sequence[Part]) -> str:
    splits = dict.fromkeys(part.dataset.folds_from for part in parts)
    return f"What this holds for: {'; '.join(splits)}."


def _part_html(part: Part, against: Mapping[str, dict], reference: str, maps: int) -> list[str]:
    body = [page.heading(part.name)]
    for columns, rows in (_table(part, against, reference), _draws_table(part)):
        if rows:
            body.append(page.table(columns, [[str(c).replace("+-", "±") for c in r] for r in rows]))
    body.append(page.paragraph(f"{_legend(part)}.".replace("+-", "±")))
    drawn = [name for name in part.means if name != FLOOR] or part.means  # it leaves no room
    cells = {name: part.rows[name]["pearson"] for name in drawn}
    body.append(page.figure(plots.accuracy(cells), f"{part.name}: Pearson of each method"))
    set_against = {name: against[name] for name in drawn if name in against}
    if set_against:
        figure = plots.differences(set_against, reference)
        body.append(page.figure(figure, f"differences from {reference}"))
    per_gene = {name: genes for name, genes in _per_gene(part).items() if name != FLOOR}
    if reference in per_gene and len(per_gene) > 1:
        figure = plots.gene_scatter(per_gene, reference)
        body += [
            page.paragraph(f"Each gene's Pearson, by each method against {reference}:"),
            page.figure(figure, "gene by gene"),
        ]
    curves = _reliability(part)
    if curves:
        body += [
            page.paragraph("What central intervals of the draws cover, against what they should:"),
            page.figure(plots.reliability(curves), "reliability"),
        ]
    return [*body, *_maps(part, maps)]


def _per_gene(part: Part) -> dict[str, dict[str, float]]:
    """Pearson of each gene by method, means over folds and seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for f in part.folds:
        for scored in f.of_seeds.values():
            for name, row in scored.rows.items():
                for of_gene in row["per_gene"]:
                    value = of_gene.get("pearson")
                    if value is not None and np.isfinite(value):
                        found.setdefault(name, {}).setdefault(of_gene["gene"], []).append(value)
    return {
        name: {gene: float(np.mean(values)) for gene, values in genes.items()}
        for name, genes in found.items()
    }


def _reliability(part: Part) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Nominal levels and covered shares of each row of draws, means over folds and seeds."""
    found = {}
    for method in part.methods:
        kept = [
            scored.predictions[method.name]
            for f in part.folds
            for scored in f.of_seeds.values()
            if "covered" in scored.predictions.get(method.name, {})
        ]
        if kept:
            covered = np.mean([p["covered"] for p in kept], axis=0)
            found[method.draws_as] = kept[0]["levels"], covered
    return found


def _maps(part: Part, count: int) -> list[str]:
    """Genes by method on the first test slide of the first fold, as it was measured first."""
    if not part.folds or not part.folds[0].first.predictions:
        return []
    f = part.folds[0]
    size, true = f.fold["spots"][0], f.truth["expr"]
    named = {n: p["mean"] for n, p in f.first.predictions.items() if n != FLOOR}
    scores = np.mean([metrics.pearson(p, true) for p in named.values()], axis=0)
    genes = np.argsort(-np.nan_to_num(scores))[:count]
    figure = plots.maps(
        f.truth["coords_um"][:size],
        {"measured": true[:size, genes], **{n: p[:size, genes] for n, p in named.items()}},
        [f.fold["genes"][i] for i in genes],
    )
    return [
        page.paragraph(
            f"{f.fold['test'][0]}, held out: the genes that all methods together predict best."
        ),
        page.figure(figure, "maps of genes by method"),
    ]


def _made(parts: Sequence[Part]) -> dict[str, Any]:
    first = parts[0]
    return {
        "data": f"{first.config.data.reader}, {len(first.dataset.all)} slides",
        "features": first.dataset.all[0].encoder or first.config.encoder.name,
        "genes": f"{len(first.folds[0].fold['genes'])} scored" if first.folds else "",
        "seeds": ", ".join(map(str, first.seeds)),
        "epochs at most": first.config.train.epochs,
        "version": f"stfm_jax {stfm_jax.__version__}",
    }
