"""The report of an experiment: metrics.json, per_gene.csv, history.csv, curves and maps."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import stfm_jax
from stfm_jax import layout
from stfm_jax.data.datasets import Dataset
from stfm_jax.models.method import Method
from stfm_jax.ops.bootstrap import paired_bootstrap
from stfm_jax.plots import slides as plots
from stfm_jax.report import footnotes, tables
from stfm_jax.runtime.files import load_arrays, read_csv, read_json, write_csv, write_json
from stfm_jax.score.genes import blocks
from stfm_jax.seeds import seeds_of

_LOG = logging.getLogger("stfm_jax")


class Scored(NamedTuple):
    """What the methods that are reported left in a fold, fitted with one seed."""

    rows: dict[str, dict]  # scores.json by method
    predictions: dict[str, dict]  # predictions.npz by method that has them


@dataclasses.dataclass(frozen=True)
class ScoredFold:
    """What a fold's folder holds of the methods that are reported."""

    fold: dict  # fold.json
    truth: dict  # truth.npz
    of_seeds: dict[int, Scored]  # those with a row

    @property
    def first(self) -> Scored:
        """Of the first seed."""
        return next(iter(self.of_seeds.values()))


def write(
    workdir: Path, config: Any, problem: Any, dataset: Dataset, methods: Sequence[Method]
) -> None:
    """Writes the report over all folds scored so far, and prints its table.

    Args:
      workdir: of the experiment.
      config: its config; the seeds that it names are reported.
      problem: of `stfm_jax.problems`.
      dataset: its slides and folds.
      methods: whose rows are reported.
    """
    seeds = seeds_of(config)
    folds = scored_folds(workdir, seeds, methods)
    summary = tables.summarize([[scores_of(f, seed) for seed in seeds] for f in folds])
    pairs = [(m.name, other) for m in methods for other in m.compared_with]
    found = {**summary, "comparisons": comparisons(problem, dataset, pairs, folds, seeds[0])}
    if problem.compares_folds:
        found["comparisons_by_fold"] = {
            f.fold["fold"]: comparisons(problem, dataset, pairs, [f], seeds[0]) for f in folds
        }
    extras = problem.extras(workdir, dataset)
    _write_scores(workdir, config, dataset, folds, {**found, **extras})
    _write_history(workdir, seeds, methods)
    for f in folds:
        if f.first.predictions:
            problem.picture(workdir, dataset, f.fold, f.truth, f.first.predictions)
    _LOG.info("%s", _text(problem, found, extras, folds, dataset, len(seeds), methods))


def scores_of(f: ScoredFold, seed: int) -> dict[str, dict]:
    """Scores by row, of a method or of its draws."""
    rows = f.of_seeds[seed].rows if seed in f.of_seeds else {}
    return {name: scores for row in rows.values() for name, scores in row["scores"].items()}


def scored_folds(
    workdir: Path, seeds: Sequence[int], methods: Sequence[Method]
) -> list[ScoredFold]:
    folds = []
    for index in layout.folds_in(workdir):
        place = layout.fold_folder(workdir, index)
        found = {seed: _scored(place, seed, methods) for seed in seeds}
        found = {seed: scored for seed, scored in found.items() if scored.rows}
        if found:
            truth = load_arrays(place / "truth.npz")
            folds.append(ScoredFold(read_json(place / "fold.json"), truth, found))
    return folds


def _scored(place: Path, seed: int, methods: Sequence[Method]) -> Scored:
    places = {m.name: layout.method_folder(place, m.name, seed) for m in methods}
    rows = {name: p / "scores.json" for name, p in places.items()}
    predictions = {name: p / "predictions.npz" for name, p in places.items()}
    return Scored(
        {name: read_json(path) for name, path in rows.items() if path.exists()},
        {name: load_arrays(path) for name, path in predictions.items() if path.exists()},
    )


def _write_scores(workdir: Path, config: Any, dataset: Dataset, folds, found: dict) -> None:
    write_json(
        workdir / "metrics.json",
        {
            "config": config.to_dict(),
            **found,
            "folds": [_told(f) for f in folds],
            "seeds": seeds_of(config),
            "genes": {
                "by_fold": {f.fold["fold"]: f.fold["genes"] for f in folds},
                "constant_by_fold": {f.fold["fold"]: f.fold["constant_genes"] for f in folds},
            },
            "split": dataset.folds_from,
            "folds_in_split": len(dataset.folds),
            "version": stfm_jax.__version__,
        },
    )
    rows = [
        {"fold": row["fold"], "seed": seed, **row, "added": row["gene"] in _added(f)}
        for f in folds
        for seed, scored in f.of_seeds.items()
        for of_method in scored.rows.values()
        for row in of_method["per_gene"]
    ]
    write_csv(workdir / "per_gene.csv", rows)


def _told(f: ScoredFold) -> dict:
    """What metrics.json says of a fold; what was chosen is that of the first seed.

    Epochs are those of the last method that has any.
    """
    rows = f.first.rows
    trained = [row["epochs"] for row in rows.values() if row["epochs"] is not None]
    chosen = {name: row["hyperparameters"] for name, row in rows.items()}
    return {
        **{key: value for key, value in f.fold.items() if key != "genes"},
        "epochs": trained[-1] if trained else None,
        "hyperparameters": {name: values for name, values in chosen.items() if values},
        "lacks": _lacks(f),
    }


def _added(f: ScoredFold) -> list[str]:
    """Genes that were added to those that were chosen."""
    return f.fold.get("added_genes", [])


def _lacks(f: ScoredFold) -> dict[str, dict[str, str]]:
    """What test slides lack that a method is for, by method and slide."""
    rows = {name: row for scored in f.of_seeds.values() for name, row in scored.rows.items()}
    found = {name: row.get("lacks", {}) for name, row in rows.items()}  # not in older workdirs
    return {name: slides for name, slides in found.items() if slides}


def comparisons(
    problem: Any,
    dataset: Dataset,
    pairs: Sequence[tuple[str, str]],
    folds: Sequence[ScoredFold],
    seed: int,
) -> dict[str, dict]:
    """Paired spatial-block bootstrap of the first method of each pair minus the second.

    In every fold over the seeds that both have; none where a fold has no such seed.
    """
    seen = [_Views(problem, dataset, f) for f in folds]
    rows = {}
    for pair in pairs:
        if not seen or not all(v.seeds_of(pair) for v in seen):
            continue
        for scale in seen[0].true:
            parts = [
                (
                    *(v.of(name, v.seeds_of(pair), scale) for name in pair),
                    v.true[scale],
                    *v.labels,
                )
                for v in seen
            ]
            name = f"{' - '.join(pair)}{scale}"
            rows[name] = paired_bootstrap(parts, seed=seed)._asdict()
    return rows


class _Views:
    """A fold's truth and predictions on the scales that methods are compared on."""

    def __init__(self, problem: Any, dataset: Dataset, f: ScoredFold):
        self._seen = lambda values: problem.views(dataset, f.fold, f.truth, values)
        self._of_seeds, self._views = f.of_seeds, {}
        self.true = self._seen(problem.measured(f.truth))
        ends = np.cumsum(f.fold["spots"])[:-1]
        self.labels = blocks(np.split(f.truth["coords_um"], ends))

    def seeds_of(self, names: Sequence[str]) -> list[int]:
        """Seeds with predictions of all of some methods."""
        return [s for s, scored in self._of_seeds.items() if set(names) <= set(scored.predictions)]

    def of(self, name: str, seeds: Sequence[int], scale: str) -> np.ndarray:
        """A method's mean with some seeds [s, n, g]; 0 where it is not scored."""
        return np.stack([self._of_seed(name, seed)[scale] for seed in seeds])

    def _of_seed(self, name: str, seed: int) -> dict[str, np.ndarray]:
        if (name, seed) not in self._views:
            seen = self._seen(self._of_seeds[seed].predictions[name]["mean"])
            self._views[name, seed] = {scale: np.nan_to_num(view) for scale, view in seen.items()}
        return self._views[name, seed]


def _write_history(workdir: Path, seeds: Sequence[int], methods: Sequence[Method]) -> None:
    """All stages' histories; the curve of the last method that was trained, of the first seed."""
    order = [method.name for method in methods]  # after those that they stand on
    names = sorted(
        layout.methods_in(workdir), key=lambda n: (order.index(n) if n in order else -1, n)
    )
    rows, chosen = [], {}
    for fold, seed, name in itertools.product((*layout.folds_in(workdir), None), seeds, names):
        folder = layout.method_folder(layout.fold_folder(workdir, fold), name, seed)
        about = {"fold": layout.FINAL if fold is None else fold, "seed": seed, "method": name}
        for stage in ("select", "refit"):
            rows += [{**about, **row} for row in read_csv(folder / stage / "history.csv")]
        if seed == seeds[0] and (folder / "select" / "done.json").exists():
            chosen[name, str(fold)] = read_json(folder / "select" / "done.json")["best_epoch"]
    write_csv(workdir / "history.csv", rows)
    selection = [r for r in rows if r["stage"].endswith("select") and r["seed"] == seeds[0]]
    if selection:
        last = selection[-1]["method"]
        marked = {fold: epoch for (name, fold), epoch in chosen.items() if name == last}
        figure = plots.learning_curve([r for r in selection if r["method"] == last], marked)
        plots.save(figure, workdir / "learning_curve.png")


def _text(
    problem: Any,
    found: dict,
    extras: dict,
    folds,
    dataset: Dataset,
    seeds: int,
    asked: Sequence[Method],
) -> str:
    """What a person reads at the end of a run."""
    constant = sum(len(f.fold["constant_genes"]) for f in folds)
    lacks = {f.fold["fold"]: _lacks(f) for f in folds}
    methods, notes = footnotes.marked(found["methods"], lacks, asked)
    left_out = f"{constant} constant genes left out" if constant else "no gene was constant"
    several = any(len(f.fold["test"]) > 1 for f in folds)
    shown = [name for name in problem.shown if any(name in row for row in methods.values())]
    within = [name for name in shown if name in problem.of_slides]
    shown = [name for name in shown if several or name not in within]
    within = f"; {', '.join(within)}: within each test slide" if within and several else ""
    genes = [f"pearson:{gene}" for gene in tables.apart(methods, "pearson")]
    lines = [
        "",
        tables.text_table(methods, shown),
        *notes,
        *(["", tables.text_table(methods, genes)] if genes else []),
        "",
        f"{tables.legend(len(folds), len(dataset.folds), seeds)}; {dataset.folds_from}.",
        f"{problem.explained}{within}; {left_out}.",
    ]
    for name, row in found["comparisons"].items():
        lines.append(
            f"{name}: {row['difference']:+.4f}{problem.unit}, 95 % of spatial-block resamples in "
            f"[{row['low']:+.4f}, {row['high']:+.4f}]"
        )
    return "\n".join([*lines, *problem.remarks(extras)])
