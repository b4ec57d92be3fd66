"""An experiment in its workdir: folds trained and scored, a final model, a report.

    W/config.json                 the resolved config
    W/embeddings/                 features of the built-in encoder
    W/fold_<i>/..., W/final/...   training stages and models (training.py)
    W/fold_<i>/fold.json, predictions.npz   scores and predictions of the fold's test slides
    W/metrics.json, per_gene.csv, history.csv, *.png   the report over the folds done so far

Every step finds out what is done already, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from stfm_jax.data import datasets, stack
from stfm_jax.data.expression import most_variable_genes, require_genes
from stfm_jax.data.readers import h5ad
from stfm_jax.data.slide import Slide
from stfm_jax.encoders.embed import BUILT_IN, Encoder, embedded, require_images
from stfm_jax.errors import InputError
from stfm_jax.eval import evaluate, model_store, plots, report_files, stack_plots
from stfm_jax.eval.fold import predict
from stfm_jax.models import build
from stfm_jax.ops import metrics
from stfm_jax.runtime import distributed
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.runtime.files import save_arrays, write_csv, write_json
from stfm_jax.training import Training

_LOG = logging.getLogger("stfm_jax")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config, its workdir and its data."""

    config: Any
    workdir: Path
    dataset: datasets.Dataset
    mesh: Mesh  # devices that share every batch

    @property
    def slides(self) -> list[Slide]:
        return self.dataset.all

    def fold_dir(self, fold: int) -> Path:
        return self.workdir / f"fold_{fold}"


def open_experiment(config: Any, workdir: str | Path) -> Experiment:
    """Reads the data set and checks what can be checked without embedding it; writes nothing.

    Raises:
      InputError, FileNotFoundError: the config, the files, or what they hold.
    """
    build.check(config)
    mesh = make_mesh(config.devices)
    build.check_devices(config, mesh.size)
    encoder = builtin_encoder(config)
    precomputed = config.encoder.name if encoder is None and config.encoder.dir else None
    dataset = datasets.load(config.data, config.encoder.dir or None, precomputed)
    if config.fold is not None and not 0 <= config.fold < len(dataset.folds):
        raise InputError(
            f"config.fold must be from 0 to {len(dataset.folds) - 1}, found {config.fold}."
        )
    if config.method in build.OF_STACKS:
        dataset = dataset.with_slides(stack.spaced(dataset.all, config.data.section_spacing_um))
        stack.stacks(dataset.all)
    experiment = Experiment(config, Path(workdir), dataset, mesh)
    _check_sizes(experiment.slides, config.model.neighbors)
    if encoder is None:
        check_features(experiment.slides)
    else:
        require_images(experiment.slides, encoder, cache(experiment))
    return experiment


def check_folds(experiment: Experiment) -> None:
    """Raises InputError where a fold's genes cannot be chosen, or its test slides lack them.

    Every fold is looked at, and the model of all slides: they share the workdir and its config.
    """
    for fold in experiment.dataset.folds:
        _, targets = _choose_genes(experiment, experiment.dataset[fold.train])
        for slide in experiment.dataset[fold.test]:
            require_genes(slide, targets)
    _choose_genes(experiment, experiment.slides)


def embed_slides(experiment: Experiment) -> Experiment:
    """The experiment with features of the built-in encoder, where the config names it."""
    encoder = builtin_encoder(experiment.config)
    if encoder is None:
        return experiment
    with distributed.main_first("embeddings"):
        slides = embedded(experiment.slides, encoder, cache(experiment))
    _check_sizes(slides, experiment.config.model.neighbors)  # a cache may lack some spots
    check_features(slides)
    return dataclasses.replace(experiment, dataset=experiment.dataset.with_slides(slides))


def register_slides(experiment: Experiment) -> Experiment:
    """The experiment with its stacks each in one frame, where the method is one for stacks.

    How well sections fit is written to registration.csv, and drawn. Expression is not looked at.
    """
    config = experiment.config
    if config.method not in build.OF_STACKS:
        return experiment
    stacks = stack.stacks(experiment.slides)
    kind, flips = config.stack.registration, config.stack.flips
    # Of all patients before anything is written: one may be refused.
    found = {p: stack.registered(sections, kind, flips) for p, sections in stacks.items()}
    rows = [row for placed, fit in found.values() for row in stack.report(fit, placed)]
    if distributed.is_main():
        for patient, (placed, fit) in found.items():
            figure = stack_plots.registration_overlay(
                [s.name for s in placed],
                [s.coords_um for s in placed],
                [s.registered_um for s in placed],
                [f"{pair.residual_um:.0f} um, {pair.overlap:.0%}" for pair in fit.pairs],
            )
            name = f"registration_{patient}.png" if patient else "registration.png"
            plots.save(figure, experiment.workdir / name)
        write_csv(experiment.workdir / "registration.csv", rows)
    slides = [slide for placed, _ in found.values() for slide in placed]
    distributed.barrier("registration")
    return dataclasses.replace(experiment, dataset=experiment.dataset.with_slides(slides))


def cache(experiment: Experiment) -> Path:
    """Where features of the built-in encoder are kept."""
    return Path(experiment.config.encoder.dir or experiment.workdir / "embeddings")


def builtin_encoder(config: Any) -> Encoder | None:
    """The built-in encoder of a config, None where embeddings are given, or no image is seen."""
    if config.method in build.OF_PAIRS and not config.srast.image:
        return None
    name = config.encoder.name
    return Encoder(name, config.encoder.patch_um) if name in BUILT_IN else None


def train_folds(experiment: Experiment) -> None:
    """Trains and scores the folds asked for, then refits on all slides."""
    config = experiment.config
    asked = range(len(experiment.dataset.folds)) if config.fold is None else [config.fold]
    for fold in asked:
        _run_fold(experiment, fold)
    _train_final(experiment)
    if config.method in build.OF_STACKS:
        _write_sections(experiment)
    elif config.data.unseen:
        _write_unseen(experiment)
    _report(experiment)


def _report(experiment: Experiment) -> None:
    if distributed.is_main():
        report_files.write(experiment.workdir, experiment.config, experiment.dataset)
    distributed.barrier("report")


def evaluate_folds(experiment: Experiment) -> None:
    """Scores trained folds again from their saved models, and rewrites the report."""
    for fold in trained_folds(experiment):
        _score_fold(experiment, fold)
    _report(experiment)


def trained_folds(experiment: Experiment) -> list[int]:
    """Those asked for that have a model.

    Raises:
      InputError: none has.
    """
    config, count = experiment.config, len(experiment.dataset.folds)
    folds = [
        fold
        for fold in (range(count) if config.fold is None else [config.fold])
        if model_store.exists(experiment.fold_dir(fold) / "model")
    ]
    if not folds:
        raise InputError(f"{experiment.workdir}: holds no trained fold; run --mode=train first.")
    return folds


def _run_fold(experiment: Experiment, fold: int) -> None:
    directory = experiment.fold_dir(fold)
    if distributed.of_main((directory / "fold.json").exists()):
        _LOG.info("fold %d: done before", fold)
        return
    if not distributed.of_main(model_store.exists(directory / "model")):
        slides = experiment.dataset[experiment.dataset.folds[fold].train]
        _train_model(experiment, directory, f"fold {fold}", slides)
    _score_fold(experiment, fold)


def _train_model(
    experiment: Experiment,
    directory: Path,
    name: str,
    slides: list[Slide],
    epochs: Sequence[int] | None = None,
) -> None:
    """Trains on `slides` and saves the model; for `epochs` see `training.Training.run`."""
    genes, targets = _choose_genes(experiment, slides)
    task = build.build(experiment.config, len(targets))
    training = Training(experiment.config, experiment.mesh, directory, name)
    fitted, trained, epochs = training.run(task, slides, targets, epochs)
    model = model_store.Model(
        task=task,
        fitted=fitted.fitted,
        params=trained.params,
        genes=tuple(genes),
        targets=tuple(targets),
        residuals=fitted.residuals,
        encoder=encoder_of(slides),
    )
    model_store.save(directory / "model", model, epochs)
    distributed.barrier("model")


def _train_final(experiment: Experiment) -> None:
    """The model for prediction: all slides, for the median of the folds' epochs."""
    directory = experiment.workdir / "final"
    done = sorted(experiment.workdir.glob("fold_*/fold.json"))
    chosen = [model_store.epochs(path.parent / "model") for path in done]
    epochs = tuple(int(np.median(of_part)) for of_part in zip(*chosen, strict=True))
    if refits(directory, epochs):
        _train_model(experiment, directory, "all slides", experiment.slides, epochs)


def refits(directory: Path, epochs: tuple[int, ...]) -> bool:
    """Whether the final model is to be trained; one of other numbers of epochs is removed."""
    if not distributed.of_main(model_store.exists(directory / "model")):
        return True
    if model_store.epochs(directory / "model") == epochs:
        return False
    _LOG.info("all slides: more folds changed the number of epochs; refitting")
    distributed.barrier("refit")
    if distributed.is_main():
        shutil.rmtree(directory)
    distributed.barrier("removed")
    return True


def _write_unseen(experiment: Experiment) -> None:
    """The simulated sections kept out of everything, as input files for --mode=predict."""
    config = experiment.config
    slides = datasets.unseen(config.data)
    encoder = builtin_encoder(config)
    if encoder is not None:
        slides = embedded(slides, encoder, cache(experiment))
    for i, slide in enumerate(slides):
        h5ad.write(slide, experiment.workdir / ("slide.h5ad" if i == 0 else f"slide_{i}.h5ad"))


def _write_sections(experiment: Experiment) -> None:
    """Every section as an input file for --mode=predict, a folder for each stack.

    Those of simulated tissue that were kept out of everything are there too, without counts.
    """
    if not distributed.is_main():
        return
    config, slides = experiment.config, experiment.slides
    if config.data.unseen:
        unseen = datasets.unseen(config.data)
        encoder = builtin_encoder(config)
        if encoder is not None:
            unseen = embedded(unseen, encoder, cache(experiment))
        slides = slides + [dataclasses.replace(s, counts=None, genes=None) for s in unseen]
    for slide in slides:
        folder = experiment.workdir / "sections" / (slide.patient or "stack")
        h5ad.write(dataclasses.replace(slide, registered_um=None), folder / f"{slide.name}.h5ad")


def encoder_of(slides: Sequence[Slide]) -> str:
    """The one encoder that made all slides' features, "" where no file says.

    Raises:
      InputError: slides of different encoders.
    """
    names = {slide.encoder or "": slide for slide in slides}
    if len(names) > 1:
        found = ", ".join(f"{name or 'unnamed'} in {s.name}" for name, s in names.items())
        raise InputError(f"features must come from one encoder, found {found}; embed all alike.")
    return next(iter(names))


def _score_fold(experiment: Experiment, fold: int) -> None:
    """Predicts and scores the test slides of a fold by every row."""
    config, directory = experiment.config, experiment.fold_dir(fold)
    names = experiment.dataset.folds[fold]
    train_slides, test_slides = experiment.dataset[names.train], experiment.dataset[names.test]
    model = model_store.load(directory / "model", config)
    for slide in (*train_slides, *test_slides):
        model_store.check_features(model, slide)
    predicted = predict(model, names.test, train_slides, test_slides, config, experiment.mesh)
    test, points, draws = predicted.test, predicted.points, predicted.draws
    scores = {name: evaluate.score_point(value, test) for name, value in points.items()}
    scores |= {name: evaluate.score_draws(d, test, config.seed) for name, d in draws.items()}
    constant = np.isnan(metrics.pearson(test.pooled, test.pooled))
    save_arrays(
        directory / "predictions.npz",
        {
            "expr": test.pooled,
            "coords_um": np.concatenate(test.coords_um),
            "one_draw": np.concatenate([d[0] for d in list(draws.values())[-1]]),
            "points": {name: np.concatenate(value) for name, value in points.items()},
        },
    )
    write_json(
        directory / "fold.json",
        {
            "fold": fold,
            "train": names.train,
            "test": names.test,
            "spots": [len(c) for c in test.coords_um],
            "genes": list(model.genes),
            "constant_genes": np.array(model.genes)[constant],
            "epochs": model_store.epochs(directory / "model")[-1],
            "hyperparameters": predicted.hyperparameters,
            "scores": scores,
            "per_gene": evaluate.gene_rows(fold, points, test, model.genes),
        },
    )
    distributed.barrier("fold")


def _choose_genes(experiment: Experiment, slides: Sequence[Slide]) -> tuple[list[str], list[str]]:
    """Genes to score, chosen on these slides, and those to train on: the next most variable too."""
    config = experiment.config
    genes = datasets.choose_genes(experiment.dataset, slides, config.data)
    if config.model.targets <= len(genes):
        return genes, genes
    scored = set(genes)
    wanted = min(config.model.targets, len(set.intersection(*(set(s.genes) for s in slides))))
    return genes, [*genes, *(g for g in most_variable_genes(slides, wanted) if g not in scored)]


def _check_sizes(slides: Sequence[Slide], neighbors: int) -> None:
    for slide in slides:
        if slide.num_spots <= 4 * neighbors:
            raise InputError(
                f"{slide.where}: has {slide.num_spots} spots, too few for regions of "
                f"{4 * neighbors} with {neighbors} neighbours each; leave the slide out or lower "
                "--config.model.neighbors."
            )


def check_features(slides: Sequence[Slide]) -> None:
    """Raises InputError where slides lack features, or those of one kind."""
    widths = {}
    for slide in slides:
        if slide.features is None:
            raise InputError(
                f"{slide.where}: has no features. Set --config.encoder.name to a built-in encoder, "
                "or give the folder of precomputed embeddings by --config.encoder.dir."
            )
        widths.setdefault(slide.features.shape[1], slide)
    if len(widths) > 1:
        found = ", ".join(f"{width} in {s.name}" for width, s in widths.items())
        raise InputError(f"features must be equally wide in all slides, found {found}.")
    encoder_of(slides)
