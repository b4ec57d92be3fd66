"""An experiment of super-resolution in its workdir; files as in `experiment`.

Slides are coarsened to pairs, folds trained and scored, a final model trained on all; every step
finds out what is done already.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stfm_jax import experiment as experiments
from stfm_jax.data import coarsen, datasets
from stfm_jax.data.coarsen import Pair
from stfm_jax.data.expression import most_expressed_genes, most_variable_counts, require_genes
from stfm_jax.data.readers import h5ad
from stfm_jax.data.slide import Slide
from stfm_jax.encoders.embed import embedded, require_images
from stfm_jax.errors import InputError
from stfm_jax.eval import evaluate, mixing, model_store, split_fold, split_model, split_report
from stfm_jax.eval import split_scores as scores_of
from stfm_jax.eval.sampling import on_devices
from stfm_jax.experiment import Experiment
from stfm_jax.models import build
from stfm_jax.models.srast import fit_arrays
from stfm_jax.ops import metrics
from stfm_jax.regression.pooling import pair_weight
from stfm_jax.regression.split_batches import SplitBatches, joined, padded, taken
from stfm_jax.runtime import distributed
from stfm_jax.runtime.devices import SPLIT_DRAWS, fetch, make_mesh, replicate, split
from stfm_jax.runtime.files import save_arrays, write_json
from stfm_jax.train.loop import Schedule, train
from stfm_jax.training import optimizer_of

_LOG = logging.getLogger("stfm_jax")
VALIDATION_ROWS, VALIDATION_DRAWS = 8192, 8  # held-out pairs looked at, at most; draws of each
SCORED = 5000  # parents of a test sample, at most: its middle


def open_experiment(config: Any, workdir: str | Path) -> Experiment:
    """Reads the data set and checks that its slides can be coarsened; writes nothing.

    Raises:
      InputError, FileNotFoundError: the config, the files, or what they hold.
    """
    build.check(config)
    encoder = experiments.builtin_encoder(config)
    stored = config.encoder.dir if config.srast.image and encoder is None else ""
    dataset = datasets.load(config.data, stored or None, config.encoder.name if stored else None)
    if config.srast.simulated_seeds:
        dataset = _with_simulated(dataset, config)
    if config.fold is not None and not 0 <= config.fold < len(dataset.folds):
        raise InputError(
            f"config.fold must be from 0 to {len(dataset.folds) - 1}, found {config.fold}."
        )
    opened = Experiment(config, Path(workdir), dataset, make_mesh(config.devices))
    for slide in dataset.all:
        pair_of(slide, config)
    if encoder is not None:
        require_images(dataset.all, encoder, experiments.cache(opened))
    elif config.srast.image:
        experiments.check_features(dataset.all)
    return opened


def _with_simulated(dataset: datasets.Dataset, config: Any) -> datasets.Dataset:
    """One fold: trained on simulated tissue alone, tested on every slide of the data set."""
    simulated = datasets.simulated_slides(config.data.tissue, config.srast.simulated_seeds)
    clash = simulated.keys() & dataset.slides.keys()
    if clash:
        raise InputError(f"slides and simulated sections are both called {', '.join(clash)}.")
    fold = datasets.Fold(tuple(simulated), tuple(dataset.slides))
    return dataclasses.replace(
        dataset,
        slides=simulated | dataset.slides,
        folds=(fold,),
        split="trained on simulated tissue alone, tested on every slide; the scored genes were "
        "chosen on the tested slides",
    )


def pair_of(slide: Slide, config: Any) -> Pair:
    """A slide and its coarser self, as the config's `coarsen` section says."""
    section = config.coarsen
    return coarsen.coarsened(slide, section.group, tuple(section.shift), section.size_um)


def scored_pair(slide: Slide, config: Any) -> Pair:
    """As `pair_of`, of a large slide its middle: SCORED parents, with their children."""
    pair = pair_of(slide, config)
    return pair if pair.low.num_spots <= SCORED else pair.of_parents(pair.middle(SCORED))


def check_folds(experiment: Experiment) -> None:
    """Raises InputError where a fold's genes cannot be chosen, or its test slides lack them."""
    for fold in experiment.dataset.folds:
        scored, _ = choose_genes(experiment, fold)
        for slide in experiment.dataset[fold.test]:
            require_genes(slide, scored)


def choose_genes(
    experiment: Experiment, fold: datasets.Fold
) -> tuple[list[str], dict[str, list[str]]]:
    """Genes to score, and those of each training slide to train on; they share none.

    Chosen on the training slides; trained on simulated tissue, the scored ones on the test slides.
    """
    config, dataset = experiment.config, experiment.dataset
    train_slides = dataset[fold.train]
    chosen_on = dataset[fold.test] if config.srast.simulated_seeds else train_slides
    if dataset.genes is None:
        pool = most_expressed_genes(chosen_on, config.srast.pool)
        scored = most_variable_counts(chosen_on, pool, config.data.num_genes)
    else:
        scored = datasets.choose_genes(dataset, chosen_on, config.data)
    return scored, training_genes(train_slides, set(scored), config)


def training_genes(slides: Sequence[Slide], scored: set[str], config: Any) -> dict[str, list[str]]:
    """The most expressed genes of each slide but those that are scored.

    Raises:
      InputError: none is left.
    """
    genes = {
        slide.name: [
            gene for gene in most_expressed_genes([slide], config.srast.trained_on)
            if gene not in scored
        ]
        for slide in slides
    }  # fmt: skip
    empty = [slide for slide in slides if not genes[slide.name]]
    if empty:
        raise InputError(
            f"{empty[0].where}: all of its {config.srast.trained_on} most expressed genes are "
            "scored, none is left to train on; lower --config.data.num_genes, or raise "
            "--config.srast.trained_on."
        )
    return genes


def embed_slides(experiment: Experiment) -> Experiment:
    """The experiment with features of the children's patches, where the method sees them."""
    encoder = experiments.builtin_encoder(experiment.config)
    if encoder is None:
        return experiment
    with distributed.main_first("embeddings"):
        slides = embedded(experiment.slides, encoder, experiments.cache(experiment))
    return dataclasses.replace(experiment, dataset=experiment.dataset.with_slides(slides))


def train_folds(experiment: Experiment) -> None:
    """Trains and scores the folds asked for, then trains on all slides."""
    config, folds = experiment.config, experiment.dataset.folds
    for index in range(len(folds)) if config.fold is None else [config.fold]:
        directory = experiment.fold_dir(index)
        if distributed.of_main((directory / "fold.json").exists()):
            _LOG.info("fold %d: done before", index)
            continue
        if not distributed.of_main(model_store.exists(directory / "model")):
            _, genes = choose_genes(experiment, folds[index])
            slides = experiment.dataset[folds[index].train]
            _train(experiment, directory, f"fold {index}", slides, genes)
        _score_fold(experiment, index)
    _train_final(experiment)
    if config.data.unseen:
        _write_unseen(experiment)
    _report(experiment)


def evaluate_folds(experiment: Experiment) -> None:
    """Scores trained folds again from their saved models, and rewrites the report."""
    for index in experiments.trained_folds(experiment):
        _score_fold(experiment, index)
    _report(experiment)


def _train_final(experiment: Experiment) -> None:
    """The model for prediction: all training slides, for the median of the folds' epochs."""
    directory = experiment.workdir / "final"
    done = sorted(experiment.workdir.glob("fold_*/fold.json"))
    epochs = int(np.median([model_store.epochs(p.parent / "model")[-1] for p in done]))
    slides = experiment.slides
    if experiment.config.srast.simulated_seeds:
        slides = experiment.dataset[experiment.dataset.folds[0].train]
    if experiments.refits(directory, (epochs,)):
        genes = training_genes(slides, set(), experiment.config)
        _train(experiment, directory, "all slides", slides, genes, epochs)


def _train(
    experiment: Experiment,
    directory: Path,
    name: str,
    slides: Sequence[Slide],
    genes: dict[str, list[str]],
    epochs: int | None = None,
) -> None:
    """Trains on `slides` and saves the model; `epochs` None: as many as serve a held-out part.

    Held out are all slides of one patient; one slide, where there is one patient; a fifth of the
    pairs of the only slide.
    """
    config = experiment.config
    task = build.build_split(config)
    pairs = [pair_of(slide, config) for slide in slides]
    training = task.fit(pairs, [genes[slide.name] for slide in slides], config.seed)
    names = tuple(slide.name for slide in slides)
    if epochs is None and config.train.select:
        held = held_out(slides, [len(r.counts) for r in training.rows], config.seed)
        kept = [taken(r, np.flatnonzero(~h)) for r, h in zip(training.rows, held, strict=True)]
        out = [taken(r, np.flatnonzero(h)) for r, h in zip(training.rows, held, strict=True)]
        kept = [rows for rows in kept if len(rows.counts)]
        arrays = fit_arrays(kept, config.seed)
        score = _score(task, experiment, arrays, joined(out))
        trained = _stage(
            experiment, directory / "select", f"{name} select", task, arrays, kept, names, score
        )
        epochs = trained.best_epoch
        _LOG.info("%s: epoch %d is best (CRPS %.4f)", name, epochs, -trained.best_score)
    epochs = epochs or config.train.epochs
    trained = _stage(
        experiment, directory / "refit", f"{name} refit", task, training.fitted.flow,
        training.rows, names, epochs=epochs,
    )  # fmt: skip
    trained_on = sorted(set().union(*genes.values()))
    model = split_model.SplitModel(
        task, training.fitted, trained.params, tuple(trained_on), experiments.encoder_of(slides)
    )
    split_model.save(directory / "model", model, epochs)
    distributed.barrier("model")


def held_out(slides: Sequence[Slide], sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Which pairs [N_i] of each slide are left out of the selection's training."""
    patients = sorted({slide.patient or slide.name for slide in slides})
    rng = np.random.default_rng(seed)
    if len(slides) == 1:
        return [rng.permutation(sizes[0]) < sizes[0] // 5]
    if len(patients) > 1:
        chosen = patients[rng.integers(len(patients))]
        out = [(slide.patient or slide.name) == chosen for slide in slides]
    else:
        out = np.arange(len(slides)) == rng.integers(len(slides))
    return [np.full(size, flag) for size, flag in zip(sizes, out, strict=True)]


def _score(task, experiment: Experiment, arrays, rows):
    """Parameters -> minus the CRPS of the shares of held-out pairs, the same noise every time.

    Pairs weigh as in the loss. The loss itself goes on falling while draws get worse: it sees
    points of paths that end where data are, not where the flow takes them.
    """
    mesh = experiment.mesh
    if len(rows.counts) > VALIDATION_ROWS:
        some = np.random.default_rng(0).choice(len(rows.counts), VALIDATION_ROWS, replace=False)
        rows = taken(rows, np.sort(some))
    n = len(rows.counts)
    size = -(-n // mesh.size) * mesh.size
    placed, arrays = split(mesh, padded(rows, size)), replicate(mesh, arrays)
    weight = pair_weight(rows.counts)[:, None]
    draw = functools.partial(on_devices, task, "sample", mesh, SPLIT_DRAWS, VALIDATION_DRAWS)

    def score(params) -> float:
        draws = fetch(draw(params, arrays, placed, jax.random.key(0)))[:, :n]
        found = metrics.crps(draws * weight, rows.ratios * weight)
        return -float(found.sum() / weight.mean())

    return score


def _stage(experiment, directory, stage, task, arrays, rows, names, score=None, epochs=None):
    config = experiment.config.train
    optimizer = optimizer_of(config)
    schedule = Schedule(epochs or config.epochs, config.checkpoint_every)
    data = SplitBatches(joined(rows), names, experiment.config.srast.batch)
    seed, mesh = experiment.config.seed, experiment.mesh
    return train(directory, stage, task, optimizer, schedule, data, arrays, seed, score, mesh)


def _score_fold(experiment: Experiment, index: int) -> None:
    """Splits and scores the test slides of a fold, the middle of large ones, by every row."""
    config, directory = experiment.config, experiment.fold_dir(index)
    fold = experiment.dataset.folds[index]
    model = split_model.load(directory / "model", config)
    genes, _ = choose_genes(experiment, fold)
    pairs = [scored_pair(slide, config) for slide in experiment.dataset[fold.test]]
    predicted = split_fold.predict(model, pairs, genes, config, experiment.mesh)
    low, true = predicted.low, predicted.true
    scores = {
        name: scores_of.score(pairs, low, value, true) for name, value in predicted.points.items()
    }
    scores |= {
        name: scores_of.score_draws(pairs, low, draws, true, config.seed)
        for name, draws in predicted.draws.items()
    }
    constant = np.isnan(metrics.pearson(np.concatenate(true), np.concatenate(true)))
    test = evaluate.TestSet(fold.test, [pair.high.coords_um for pair in pairs], true)
    save_arrays(
        directory / "predictions.npz",
        {
            "true": np.concatenate(true),
            "low": np.concatenate(low),
            "one_draw": np.concatenate([d[0] for d in predicted.draws["srast_draw"]]),
            "points": {k: np.concatenate(v) for k, v in predicted.points.items()},
        },
    )
    write_json(
        directory / "fold.json",
        {
            "fold": index,
            "train": fold.train,
            "test": fold.test,
            "spots": [pair.high.num_spots for pair in pairs],
            "parents": [pair.low.num_spots for pair in pairs],
            "genes": genes,
            "genes_trained_on": len(model.genes),
            "constant_genes": np.array(genes)[constant],
            "epochs": model_store.epochs(directory / "model")[-1],
            "scores": scores,
            "per_gene": evaluate.gene_rows(index, predicted.points, test, genes),
        },
    )
    distributed.barrier("fold")


def _write_unseen(experiment: Experiment) -> None:
    """The simulated sections kept out of everything, coarse: input files for --mode=predict."""
    if not distributed.is_main():
        return
    config = experiment.config
    for i, slide in enumerate(datasets.unseen(config.data)):
        name = "low.h5ad" if i == 0 else f"low_{i}.h5ad"
        h5ad.write(pair_of(slide, config).low, experiment.workdir / name)


def _report(experiment: Experiment) -> None:
    if distributed.is_main():
        pairs = {slide.name: scored_pair(slide, experiment.config) for slide in experiment.slides}
        mixed = mixing.write(experiment.workdir, pairs)
        split_report.write(experiment.workdir, experiment.config, experiment.dataset, pairs, mixed)
    distributed.barrier("report")
