"""The report of an experiment: metrics.json, per_gene.csv, history.csv, curves and maps."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import stfm_jax
from stfm_jax.data.datasets import Dataset
from stfm_jax.models.method import Method
from stfm_jax.ops.bootstrap import paired_bootstrap
from stfm_jax.plots import slides as plots
from stfm_jax.report import tables
from stfm_jax.runtime.files import load_arrays, read_csv, read_json, write_csv, write_json
from stfm_jax.score.genes import blocks

_LOG = logging.getLogger("stfm_jax")


@dataclasses.dataclass(frozen=True)
class ScoredFold:
    """What a fold's folder holds of the methods that are reported."""

    fold: dict  # fold.json
    truth: dict  # truth.npz
    rows: dict[str, dict]  # scores.json by method
    predictions: dict[str, dict]  # predictions.npz by method that has them


def write(
    workdir: Path, config: Any, problem: Any, dataset: Dataset, methods: Sequence[Method]
) -> None:
    """Writes the report over all folds scored so far, and prints its table.

    Args:
      workdir: of the experiment.
      config: its config.
      problem: of `stfm_jax.problems`.
      dataset: its slides and folds.
      methods: whose rows are reported.
    """
    folds = _scored_folds(workdir, config.seed, methods)
    scores = [{k: v for row in f.rows.values() for k, v in row["scores"].items()} for f in folds]
    summary = tables.summarize(scores)
    found = {**summary, "comparisons": _comparisons(problem, dataset, methods, folds)}
    if problem.compares_folds:
        found["comparisons_by_fold"] = {
            f.fold["fold"]: _comparisons(problem, dataset, methods, [f]) for f in folds
        }
    extras = problem.extras(workdir, dataset)
    _write_scores(workdir, config, dataset, folds, {**found, **extras})
    _write_history(workdir, config.seed, methods)
    for f in folds:
        if f.predictions:
            problem.picture(workdir, dataset, f.fold, f.truth, f.predictions)
    _LOG.info("%s", _text(problem, found, extras, folds, dataset))


def _scored_folds(workdir: Path, seed: int, methods: Sequence[Method]) -> list[ScoredFold]:
    paths = sorted(workdir.glob("fold_*/fold.json"), key=lambda p: read_json(p)["fold"])
    folds = []
    for path in paths:
        places = {m.name: path.parent / m.name / f"seed_{seed}" for m in methods}
        places = {name: p for name, p in places.items() if (p / "scores.json").exists()}
        rows = {name: read_json(p / "scores.json") for name, p in places.items()}
        predictions = {
            name: load_arrays(p / "predictions.npz")
            for name, p in places.items()
            if (p / "predictions.npz").exists()
        }
        if rows:
            truth = load_arrays(path.parent / "truth.npz")
            folds.append(ScoredFold(read_json(path), truth, rows, predictions))
    return folds


def _write_scores(workdir: Path, config: Any, dataset: Dataset, folds, found: dict) -> None:
    write_json(
        workdir / "metrics.json",
        {
            "config": config.to_dict(),
            **found,
            "folds": [_told(f) for f in folds],
            "genes": {
                "by_fold": {f.fold["fold"]: f.fold["genes"] for f in folds},
                "constant_by_fold": {f.fold["fold"]: f.fold["constant_genes"] for f in folds},
            },
            "split": dataset.folds_from,
            "folds_in_split": len(dataset.folds),
            "version": stfm_jax.__version__,
        },
    )
    rows = [row for f in folds for found in f.rows.values() for row in found["per_gene"]]
    write_csv(workdir / "per_gene.csv", rows)


def _told(f: ScoredFold) -> dict:
    """What metrics.json says of a fold; epochs are those of the last method that has any."""
    trained = [row["epochs"] for row in f.rows.values() if row["epochs"] is not None]
    chosen = {name: row["hyperparameters"] for name, row in f.rows.items()}
    return {
        **{key: value for key, value in f.fold.items() if key != "genes"},
        "epochs": trained[-1] if trained else None,
        "hyperparameters": {name: values for name, values in chosen.items() if values},
    }


def _comparisons(
    problem: Any, dataset: Dataset, methods: Sequence[Method], folds: Sequence[ScoredFold]
) -> dict[str, dict]:
    """Paired spatial-block bootstrap of each method minus those that it names."""
    if not folds:
        return {}
    there = set.intersection(*(set(f.predictions) for f in folds))
    seen = [_Views(problem, dataset, f) for f in folds]
    rows = {}
    for method in (m for m in methods if m.name in there):
        for other in (name for name in method.compared_with if name in there):
            for scale in seen[0].true:
                parts = [
                    (v.of(method.name)[scale], v.of(other)[scale], v.true[scale], *v.labels)
                    for v in seen
                ]
                rows[f"{method.name} - {other}{scale}"] = paired_bootstrap(parts)._asdict()
    return rows


class _Views:
    """A fold's truth and predictions on the scales that methods are compared on."""

    def __init__(self, problem: Any, dataset: Dataset, f: ScoredFold):
        self._seen = lambda values: problem.views(dataset, f.fold, f.truth, values)
        self._predictions, self._views = f.predictions, {}
        self.true = self._seen(problem.measured(f.truth))
        ends = np.cumsum(f.fold["spots"])[:-1]
        self.labels = blocks(np.split(f.truth["coords_um"], ends))

    def of(self, name: str) -> dict[str, np.ndarray]:
        """A method's mean by scale; 0 where it is not scored."""
        if name not in self._views:
            seen = self._seen(self._predictions[name]["mean"])
            self._views[name] = {scale: np.nan_to_num(view) for scale, view in seen.items()}
        return self._views[name]


def _write_history(workdir: Path, seed: int, methods: Sequence[Method]) -> None:
    """All stages' histories, and the curve of the last method that was trained."""
    rows = []
    for place in (*sorted(workdir.glob("fold_*")), workdir / "final"):
        for folder in sorted(place.glob(f"*/seed_{seed}"), key=lambda p: _order(p, methods)):
            for stage in ("select", "refit"):
                about = {"fold": place.name.removeprefix("fold_"), "method": folder.parent.name}
                rows += [{**about, **row} for row in read_csv(folder / stage / "history.csv")]
    write_csv(workdir / "history.csv", rows)
    selection = [row for row in rows if row["stage"].endswith("select")]
    if selection:
        last = selection[-1]["method"]
        chosen = {
            path.parts[-5].removeprefix("fold_"): read_json(path)["best_epoch"]
            for path in workdir.glob(f"fold_*/{last}/seed_{seed}/select/done.json")
        }
        figure = plots.learning_curve([r for r in selection if r["method"] == last], chosen)
        plots.save(figure, workdir / "learning_curve.png")


def _order(folder: Path, methods: Sequence[Method]) -> int:
    names = [method.name for method in methods]
    return names.index(folder.parent.name) if folder.parent.name in names else -1


def _text(problem: Any, found: dict, extras: dict, folds, dataset: Dataset) -> str:
    """What a person reads at the end of a run."""
    methods, constant = found["methods"], sum(len(f.fold["constant_genes"]) for f in folds)
    left_out = f"{constant} constant genes left out" if constant else "no gene was constant"
    shown = [name for name in problem.shown if any(name in row for row in methods.values())]
    lines = [
        "",
        tables.text_table(methods, shown),
        "",
        f"Mean +- spread over {len(folds)} of {len(dataset.folds)} folds; {dataset.folds_from}.",
        f"{problem.explained}; {left_out}.",
    ]
    for name, row in found["comparisons"].items():
        lines.append(
            f"{name}: {row['difference']:+.4f}{problem.unit}, 95 % of spatial-block resamples in "
            f"[{row['low']:+.4f}, {row['high']:+.4f}]"
        )
    return "\n".join([*lines, *problem.remarks(extras)])
