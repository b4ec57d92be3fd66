"""How far could a split of the parents' counts go? Limits that see the truth, beside SRast.

    python benchmarks/split_limits.py --workdir=runs/srast

For every fold of a trained workdir the trivial splits, SRast's mean, and splits that no method can
have:

- "weights of truth": SRast's proposals pooled by weights fitted to the measured children that are
  scored;
- of simulated slides "tissue": in proportion to what the tissue is at the child, which is all that
  an image shows; "mean": to the mean of which the counts are a draw.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import harness
import numpy as np
from harness import Row
from ml_collections import ConfigDict

from stfm_jax import experiment, store
from stfm_jax.data import simulate
from stfm_jax.data.coarsen import Pair
from stfm_jax.data.expression import gene_counts
from stfm_jax.experiment import Experiment
from stfm_jax.flow.simplex_path import shares_of_logits
from stfm_jax.models import table
from stfm_jax.models.parts import columns
from stfm_jax.models.srast import features, pooling
from stfm_jax.models.srast.batches import joined
from stfm_jax.ops import simplex
from stfm_jax.runtime.files import load_arrays, read_json
from stfm_jax.score import split as score
from stfm_jax.store import Model

COLUMNS = ("fold", "split", "pearson", "pearson_log1p", "ratio")
Predictions = dict[str, list[np.ndarray]]  # by split, counts [n, g] of every test slide's children


def limits(opened: Experiment, index: int) -> Iterator[Row]:
    """A row for each split of a fold's test slides."""
    config, folder = opened.config, opened.place(index)
    fold = read_json(folder / "fold.json")
    genes, ends = fold["genes"], np.cumsum(fold["spots"])[:-1]
    slides = opened.dataset[fold["test"]]
    pairs = [opened.problem.settings.scored_pair(slide) for slide in slides]
    low = [gene_counts(pair.low, genes) for pair in pairs]
    true = [gene_counts(pair.high, genes) for pair in pairs]
    found: Predictions = {}
    for method in opened.asked:
        path = opened.of_method(index, method.name) / "predictions.npz"
        if path.exists():  # there is none where it did not apply
            found[method.name] = np.split(load_arrays(path)["mean"], ends)
    srast = table.build("srast", config)
    model = store.load(opened.model_of(index, srast), srast)
    found["weights of truth"] = weights_of_truth(model, pairs, genes)
    if config.data.reader == "simulated":
        found |= of_tissue(config.data, pairs, low, genes)
    for name, values in found.items():
        scores = score.score(pairs, low, values, true)
        yield {"fold": index, "split": name} | {k: f"{scores[k]:.4f}" for k in COLUMNS[2:]}


def weights_of_truth(model: Model, pairs: list[Pair], genes: list[str]) -> list[np.ndarray]:
    """The pooled mean, its weights fitted to what it is scored on."""
    where, rows, flow = [], [], model.method.settings.flow
    for pair in pairs:
        sample = features.sample(pair, flow.learn(pair, model.state.fitted))
        every = np.arange(pair.low.num_spots)
        known, of_sample = features.rows(sample, every, columns(pair, genes))
        where.append(known)
        rows.append(flow.seen(of_sample))
    weights = pooling.fit(joined(rows))
    found = []
    for pair, known, part in zip(pairs, where, rows, strict=True):
        shares = np.asarray(shares_of_logits(part.proposals @ weights, part.mask))
        gene = np.repeat(known.gene, part.mask.sum(axis=1))
        field = np.zeros((pair.high.num_spots, len(genes)))
        field[pair.table()[known.parent][part.mask], gene] = shares[part.mask]
        found.append(in_proportion(pair, gene_counts(pair.low, genes), field))
    return found


def in_proportion(pair: Pair, counts: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Counts [P, g] of the parents split in proportion to a field [n, g] of the children."""
    children = pair.table()
    mask = children >= 0
    parts = simplex.split(counts, field[children].transpose(0, 2, 1), mask[:, None])
    out = np.empty(field.shape)
    out[children[mask]] = parts.transpose(0, 2, 1)[mask]
    return out


def of_tissue(data, pairs: list[Pair], low: list[np.ndarray], genes: list[str]) -> Predictions:
    """Splits by what simulated tissue is, and by the means of the counts."""
    volumes = simulate.cohort(simulate.TissueParams(**data.tissue), data.seeds)
    fields = {}
    for volume in volumes:
        for k, (slide, truth) in enumerate(zip(volume.slides, volume.truth, strict=True)):
            row_of = {barcode: i for i, barcode in enumerate(slide.barcodes)}
            fields[slide.name] = row_of, simulate.tissue_rates(volume, k), truth.mean
    found: Predictions = {"tissue": [], "mean": []}
    for pair, counts in zip(pairs, low, strict=True):
        at, (row_of, *both) = columns(pair, genes), fields[pair.high.name]
        rows = [row_of[barcode] for barcode in pair.high.barcodes]
        for name, field in zip(found, both, strict=True):
            found[name].append(in_proportion(pair, counts, field[rows][:, at]))
    return found


def main() -> None:
    workdir = _workdir()
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    opened = experiment.embed_slides(experiment.open_experiment(config, workdir))
    rows = [
        row
        for path in sorted(workdir.glob("fold_*/fold.json"))
        for row in limits(opened, read_json(path)["fold"])
    ]
    print(harness.table(rows, COLUMNS))


def _workdir() -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of a trained SRast")
    return parser.parse_args().workdir


if __name__ == "__main__":
    main()
