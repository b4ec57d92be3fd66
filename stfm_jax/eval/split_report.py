"""The report of super-resolution: metrics.json, per_gene.csv, history.csv, curves and maps."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stfm_jax.data.coarsen import Pair
from stfm_jax.data.datasets import Dataset
from stfm_jax.eval import evaluate, plots, report, report_files, split_plots, split_scores
from stfm_jax.models.baselines.splits import ROWS
from stfm_jax.ops import metrics
from stfm_jax.ops.bootstrap import paired_bootstrap
from stfm_jax.runtime.files import load_arrays, read_json

_LOG = logging.getLogger("stfm_jax")
SHOWN = ("pearson", "pearson_log1p", "ratio", "rmse", "ssim", "moran", "crps", "coverage80")
GENES_SHOWN = 3


def write(
    workdir: Path,
    config: Any,
    dataset: Dataset,
    pairs: Mapping[str, Pair],
    mixing: Mapping[str, float],
) -> None:
    """Writes the report over all folds scored so far, and prints its table."""
    paths = sorted(workdir.glob("fold_*/fold.json"), key=lambda p: read_json(p)["fold"])
    folds = [read_json(path) for path in paths]
    predictions = [load_arrays(path.with_name("predictions.npz")) for path in paths]
    summary = report.summarize([fold["scores"] for fold in folds])
    comparisons = _comparisons(folds, predictions, pairs)
    by_fold = {
        fold["fold"]: _comparisons([fold], [arrays], pairs)
        for fold, arrays in zip(folds, predictions, strict=True)
    }
    found = {
        **summary,
        "comparisons": comparisons,
        "comparisons_by_fold": by_fold,
        "mixing": dict(mixing),
    }
    report_files.write_scores(workdir, config, dataset, folds, found)
    for fold, arrays in zip(folds, predictions, strict=True):
        _write_maps(workdir, fold, arrays, pairs[fold["test"][0]])
    _LOG.info("%s", text(summary["methods"], comparisons, mixing, folds, dataset))


def text(methods, comparisons, mixing, folds, dataset: Dataset) -> str:
    """What a person reads at the end of a run."""
    shown = [name for name in SHOWN if any(name in row for row in methods.values())]
    lines = [
        "",
        report.text_table(methods, shown),
        "",
        f"Mean +- spread over {len(folds)} of {len(dataset.folds)} folds; {dataset.split}.",
        "pearson: of counts, per gene over the fold's children, then the mean over genes; ratio: "
        f"of share - 1/s where the parent has {split_scores.LEAST_COUNTS} counts.",
    ]
    for name, row in comparisons.items():
        lines.append(
            f"{name}: {row['difference']:+.4f}, 95 % of spatial-block resamples in "
            f"[{row['low']:+.4f}, {row['high']:+.4f}]"
        )
    if mixing:
        each = ", ".join(f"{name} {value:+.3f}" for name, value in mixing.items())
        lines.append(f"silhouette of samples by patient (0: mixed): {each}.")
    return "\n".join(lines)


def _comparisons(
    folds: Sequence[dict], predictions: Sequence[dict], pairs: Mapping[str, Pair]
) -> dict[str, dict]:
    """Paired spatial-block bootstrap of srast minus each trivial split, on every scale."""
    rows = {}
    parts: dict[str, list] = {}
    for fold, arrays in zip(folds, predictions, strict=True):
        tested = [pairs[name] for name in fold["test"]]
        at = np.cumsum(fold["spots"])[:-1]
        low = np.split(arrays["low"], np.cumsum(fold["parents"])[:-1])

        def seen(values, tested=tested, low=low, at=at):
            return split_scores.views(tested, low, np.split(values, at))

        labels = evaluate.blocks([pair.high.coords_um for pair in tested])
        true, ours = seen(arrays["true"]), seen(arrays["points"]["srast"])
        for other in (name for name in ROWS if name in arrays["points"]):
            theirs = seen(arrays["points"][other])
            for scale in true:
                part = (np.nan_to_num(ours[scale]), np.nan_to_num(theirs[scale]), true[scale])
                parts.setdefault(f"srast - {other}, {scale}", []).append((*part, *labels))
    for name, of_folds in parts.items():
        if len(of_folds) == len(folds):
            rows[name] = paired_bootstrap(of_folds)._asdict()
    return rows


def _write_maps(workdir: Path, fold: dict, arrays: dict, pair: Pair) -> None:
    """Genes of the fold's first test sample whose ratios are found best: four resolutions."""
    n, parents = fold["spots"][0], fold["parents"][0]
    low, true = arrays["low"][:parents], arrays["true"][:n]
    ours = arrays["points"]["srast"][:n]
    measured = split_scores.ratios(pair, low, true)
    found = metrics.pearson_known(np.nan_to_num(split_scores.ratios(pair, low, ours)), measured)
    best = np.argsort(-np.nan_to_num(found, nan=-1.0))[:GENES_SHOWN]
    columns = {"low resolution": low[:, best], "srast": ours[:, best], "measured": true[:, best]}
    if "bicubic" in arrays["points"]:
        columns["bicubic"] = arrays["points"]["bicubic"][:n][:, best]
    columns["one draw"] = arrays["one_draw"][:n][:, best]
    figure = split_plots.maps(
        pair,
        columns,
        [fold["genes"][g] for g in best],
        [f"ratio {found[g]:.2f}" for g in best],
        f"{fold['test'][0]}: {parents} parents, {n} children; the genes found best",
    )
    plots.save(figure, workdir / f"maps_{fold['test'][0]}.png")
