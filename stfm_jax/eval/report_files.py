"""The report of an experiment: metrics.json, per_gene.csv, history.csv, curves and maps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import stfm_jax
from stfm_jax.data.datasets import Dataset
from stfm_jax.eval import evaluate, plots, report
from stfm_jax.ops import metrics
from stfm_jax.ops.bootstrap import paired_bootstrap
from stfm_jax.runtime.files import load_arrays, read_csv, read_json, write_csv, write_json

_LOG = logging.getLogger("stfm_jax")
SHOWN = (
    "pearson",
    "spearman",
    "mse",
    "gene_structure",
    "moran",
    "consistency",
    "crps",
    "coverage80",
)
# Rows whose pearson is compared, as far as they are there: the first minus each of the others.
COMPARED = {
    "stflow": ("anchor", "ridge", "ridge_smooth", "ridge_context", "kernel_ridge"),
    "holotea_he": ("stflow", "kernel_ridge"),
    "holotea": ("holotea_he", "stflow", "centred_sum", "neighbour_copy", "kernel_ridge"),
}


def write(workdir: Path, config: Any, dataset: Dataset) -> None:
    """Writes the report over all folds scored so far, and prints its table."""
    paths = sorted(workdir.glob("fold_*/fold.json"), key=lambda p: read_json(p)["fold"])
    folds = [read_json(path) for path in paths]
    summary = report.summarize([fold["scores"] for fold in folds])
    predictions = [load_arrays(path.with_name("predictions.npz")) for path in paths]
    comparisons = _comparisons(folds, predictions)
    write_scores(workdir, config, dataset, folds, {**summary, "comparisons": comparisons})
    for fold, arrays in zip(folds, predictions, strict=True):
        _write_maps(workdir, fold, arrays)
    _LOG.info("%s", text(summary["methods"], comparisons, folds, dataset))


def write_scores(
    workdir: Path, config: Any, dataset: Dataset, folds: Sequence[dict], found: dict
) -> None:
    """metrics.json, with what was `found`; per_gene.csv, history.csv and the learning curve."""
    write_json(
        workdir / "metrics.json",
        {
            "config": config.to_dict(),
            **found,
            "folds": [_without(fold, "scores", "per_gene", "genes") for fold in folds],
            "genes": {
                "by_fold": {fold["fold"]: fold["genes"] for fold in folds},
                "constant_by_fold": {fold["fold"]: fold["constant_genes"] for fold in folds},
            },
            "split": dataset.split,
            "folds_in_split": len(dataset.folds),
            "version": stfm_jax.__version__,
        },
    )
    write_csv(workdir / "per_gene.csv", [row for fold in folds for row in fold["per_gene"]])
    _write_history(workdir)


def text(methods, comparisons, folds, dataset: Dataset) -> str:
    """What a person reads at the end of a run."""
    constant = sum(len(fold["constant_genes"]) for fold in folds)
    lines = [
        "",
        report.text_table(methods, [m for m in SHOWN if any(m in row for row in methods.values())]),
        "",
        f"Mean +- spread over {len(folds)} of {len(dataset.folds)} folds; {dataset.split}.",
        "pearson: per gene over the fold's test spots, then the mean over genes"
        + (f"; {constant} constant genes left out." if constant else "; no gene was constant."),
    ]
    for name, row in comparisons.items():
        lines.append(
            f"{name}: {row['difference']:+.4f} pearson, 95 % of spatial-block resamples "
            f"in [{row['low']:+.4f}, {row['high']:+.4f}]"
        )
    return "\n".join(lines)


def _comparisons(folds: Sequence[dict], predictions: Sequence[dict]) -> dict[str, dict]:
    """Paired spatial-block bootstrap of the rows that COMPARED names."""
    if not folds:
        return {}
    blocks = [
        evaluate.blocks(np.split(arrays["coords_um"], np.cumsum(fold["spots"])[:-1]))
        for fold, arrays in zip(folds, predictions, strict=True)
    ]
    there = set.intersection(*(set(arrays["points"]) for arrays in predictions))
    rows = {}
    for one, other in ((a, b) for a, others in COMPARED.items() for b in others):
        if {one, other} <= there:
            parts = [
                (arrays["points"][one], arrays["points"][other], arrays["expr"], *labels)
                for arrays, labels in zip(predictions, blocks, strict=True)
            ]
            rows[f"{one} - {other}"] = paired_bootstrap(parts)._asdict()
    return rows


def _write_history(workdir: Path) -> None:
    rows = []
    for directory in (*sorted(workdir.glob("fold_*")), workdir / "final"):
        for stage in ("base/select", "base/refit", "select", "refit"):
            fold = directory.name.removeprefix("fold_")
            rows += [{"fold": fold, **row} for row in read_csv(directory / stage / "history.csv")]
    write_csv(workdir / "history.csv", rows)
    selection = [row for row in rows if row["stage"].endswith("select")]
    selection = [row for row in selection if not row["stage"].endswith("base select")]
    if selection:
        chosen = {
            path.parts[-3].removeprefix("fold_"): read_json(path)["best_epoch"]
            for path in workdir.glob("fold_*/select/done.json")
        }
        figure = plots.learning_curve(selection, chosen)
        plots.save(figure, workdir / "learning_curve.png")


def _write_maps(workdir: Path, fold: dict, arrays: dict) -> None:
    """Best and worst genes of the fold's first test slide: measured | predicted | one draw."""
    size = fold["spots"][0]
    *_, name = (name for name in COMPARED if name in arrays["points"])
    scores = metrics.pearson(arrays["points"][name], arrays["expr"])
    figure = plots.spatial_maps(
        arrays["coords_um"][:size],
        arrays["expr"][:size],
        arrays["points"][name][:size],
        fold["genes"],
        scores=scores,
        draw=arrays["one_draw"][:size],
        title=f"{fold['test'][0]}: measured, {name}'s mean, one draw",
    )
    plots.save(figure, workdir / f"maps_{fold['test'][0]}.png")


def _without(row: dict, *keys: str) -> dict:
    return {key: value for key, value in row.items() if key not in keys}
