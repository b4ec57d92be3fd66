"""The runner: methods x folds in a workdir, whatever the problem; a model of all slides; a report.

Every step finds out what is done already (`layout` says where), so the same command goes on where
it was stopped, and one that names more methods trains those alone.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from stfm_jax import layout, store
from stfm_jax.data.datasets import Dataset
from stfm_jax.encoders.embed import embedded, require_images
from stfm_jax.errors import InputError
from stfm_jax.models import table
from stfm_jax.models.method import (
    EMBEDDING,
    PAIRS,
    Genes,
    Method,
    NotApplicable,
    Request,
    encoder_of,
)
from stfm_jax.ops import metrics
from stfm_jax.problems import problem as problems
from stfm_jax.problems.problem import Cases, Predicted, Problem
from stfm_jax.problems.table import problem_of
from stfm_jax.report import write as report
from stfm_jax.runtime import distributed
from stfm_jax.runtime.cost import measured
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.runtime.files import read_json, save_arrays, write_json
from stfm_jax.seeds import seeds_of
from stfm_jax.settings import Settings, setting
from stfm_jax.store import Model
from stfm_jax.train.stages import Run, TrainSettings

_LOG = logging.getLogger("stfm_jax")


@dataclasses.dataclass(frozen=True)
class RunSettings(Settings):
    """How folds are run."""

    devices: int = setting(0, least=0)
    draws: int = setting(99, at="sample.draws", least=2)  # the CRPS compares draws
    mean_draws: int = setting(8, at="sample.mean_draws", least=1)
    controls: bool = setting(False, at="compare.controls")  # whether what knows the truth is scored
    once: tuple[str, ...] = setting((), at="compare.once")  # methods run with the first seed alone
    final: bool = setting(True, at="compare.final")  # whether all slides are fitted, too


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config, its workdir, its methods and its data."""

    config: Any
    workdir: Path
    problem: Problem
    methods: tuple[Method, ...]  # all that are fitted, each after those it stands on
    dataset: Dataset
    mesh: Mesh  # devices that share every batch
    seed: int  # of every draw, split and fit; of several the first, which predicts

    @property
    def of_seeds(self) -> list[Experiment]:
        """The same with each of the seeds that folds are run with, and what each is asked for."""
        first, *others = seeds_of(self.config)
        once = RunSettings.of(self.config).once
        kept = table.with_needed([name for name in self.config.methods if name not in once])
        later = dataclasses.replace(self, methods=tuple(m for m in self.methods if m.name in kept))
        return [
            dataclasses.replace(self, seed=first),
            *(dataclasses.replace(later, seed=seed) for seed in others),
        ]

    @property
    def asked(self) -> list[Method]:
        """The methods that the config names, whose rows are scored."""
        by_name = {method.name: method for method in self.methods}
        return [by_name[name] for name in self.config.methods if name in by_name]

    @property
    def cache(self) -> Path:
        """Where features that are made here are kept."""
        return Path(self.config.encoder.dir or self.workdir / "embeddings")

    def place(self, fold: int | None) -> Path:
        """Folder of a fold, or of the model of all slides."""
        return layout.fold_folder(self.workdir, fold)

    def of_method(self, fold: int | None, name: str) -> Path:
        """Folder of a method in a fold: its scores and predictions and, if it is fitted, stages."""
        return layout.method_folder(self.place(fold), name, self.seed)

    def model_of(self, fold: int | None, method: Method) -> Path:
        """Folder of the state that a method reads in a fold."""
        return layout.model_folder(self.place(fold), method.owner, self.seed)


def open_experiment(config: Any, workdir: str | Path) -> Experiment:
    """Reads the data set and checks what can be checked without embedding it; writes nothing.

    Raises:
      InputError, FileNotFoundError: the config, the files, or what they hold.
    """
    asked = [table.build(name, config) for name in config.methods]
    problem = problem_of(config, asked)
    methods = tuple(table.build(name, config) for name in table.with_needed(config.methods))
    RunSettings.of(config), TrainSettings.of(config)
    mesh = make_mesh(config.devices)
    dataset = problem.read()
    if config.fold is not None and not 0 <= config.fold < len(dataset.folds):
        raise InputError(
            f"config.fold must be from 0 to {len(dataset.folds) - 1}, found {config.fold}."
        )
    opened = Experiment(config, Path(workdir), problem, methods, dataset, mesh, config.seed)
    _check_slides(opened)
    if problem.encoders:
        require_images(dataset.all, problem.encoders, opened.cache)
    elif problem.sees_images:
        problems.check_features(dataset.all)
    return opened


def _check_slides(opened: Experiment) -> None:
    for method in opened.methods:
        method.check(opened.dataset.all, opened.mesh.size)


def check_folds(opened: Experiment) -> None:
    """Raises InputError where a fold's genes cannot be chosen, or its test slides lack them.

    Every fold is looked at, and the model of all slides: they share the workdir and its config.
    """
    opened.problem.check_genes(opened.dataset)


def embed_slides(opened: Experiment) -> Experiment:
    """The experiment with features of the encoders that are to embed here, if any."""
    encoders = opened.problem.encoders
    if not encoders:
        return opened
    with distributed.main_first("embeddings"):
        slides = embedded(opened.dataset.all, encoders, opened.cache)
    opened = dataclasses.replace(opened, dataset=opened.dataset.with_slides(slides))
    _check_slides(opened)  # a cache may lack some spots
    problems.check_features(slides)
    return opened


def place_slides(opened: Experiment) -> Experiment:
    """The experiment with what is computed of all slides together: stacks in one frame."""
    dataset = opened.problem.placed(opened.dataset, opened.workdir)
    return dataclasses.replace(opened, dataset=dataset)


def train(opened: Experiment) -> None:
    """Fits and scores the methods on the folds asked for, then fits them to all slides."""
    fold = opened.config.fold
    for index in range(len(opened.dataset.folds)) if fold is None else [fold]:
        _run_fold(opened, index)
    if RunSettings.of(opened.config).final:
        _fit_final(opened)
    opened.problem.write_inputs(opened.dataset, opened.workdir, opened.cache)
    _report(opened)


def evaluate(opened: Experiment) -> None:
    """Scores fitted folds again from their saved models, and rewrites the report."""
    for index in range(len(opened.dataset.folds)):
        there = [(o, [m for m in o.asked if _fitted(o, index, m)]) for o in opened.of_seeds]
        if any(methods for _, methods in there):
            cases = _cases(opened, index)
            for of_seed, methods in there:
                _score_fold(of_seed, index, cases, methods)
            _score_controls(opened, index, cases)
    _report(opened)


def _fitted(opened: Experiment, fold: int | None, method: Method) -> bool:
    return distributed.of_main(store.exists(opened.model_of(fold, method)))


def _report(opened: Experiment) -> None:
    if distributed.is_main():
        report.write(opened.workdir, opened.config, opened.problem, opened.dataset, opened.asked)
    distributed.barrier("report")


def _cases(opened: Experiment, index: int) -> Cases:
    """The cases of a fold; says which methods have nothing there of what they are for."""
    cases = opened.problem.cases(opened.dataset, opened.dataset.folds[index])
    without: dict[tuple[str, str], list[str]] = {}  # slides and what they lack: methods
    for method in opened.asked:
        found = cases.lacks(method)
        for said in dict.fromkeys(found.values()):
            slides = ", ".join(name for name, lack in found.items() if lack == said)
            without.setdefault((slides, said), []).append(method.name)
    if without:
        each = [f"{of}: {said} ({', '.join(names)})" for (of, said), names in without.items()]
        _LOG.warning(
            "fold %d: %s; such a row is predicted without, or left out", index, "; ".join(each)
        )
    return cases


def _run_fold(opened: Experiment, index: int) -> None:
    left = [(o, methods) for o in opened.of_seeds if (methods := _not_scored(o, index))]
    if not left and _controls_there(opened, index):
        _LOG.info("fold %d: done before", index)
        return
    cases = _cases(opened, index)
    for of_seed, methods in left:
        _fit(of_seed, index, cases, {})
        _score_fold(of_seed, index, cases, [m for m in methods if _fitted(of_seed, index, m)])
    if not _controls_there(opened, index):
        _score_controls(opened, index, cases)


def _not_scored(opened: Experiment, index: int) -> list[Method]:
    scores = {m: opened.of_method(index, m.name) / "scores.json" for m in opened.asked}
    return [m for m, path in scores.items() if not distributed.of_main(path.exists())]


def _fit(opened: Experiment, fold: int | None, cases: Cases, epochs: dict[str, int]) -> None:
    """Fits the methods that are not there yet to the training cases of a fold, with one seed."""
    shared, runs = {}, {}
    for method in opened.methods:
        run = runs[method.name] = _run_of(opened, fold, method, epochs, runs, shared)
        if method.state_of is None and not _fitted(opened, fold, method):
            try:
                with measured("fit") as cost:
                    state = method.fit(cases.train, cases.genes, run)
            except NotApplicable as lack:
                _LOG.warning("%s: no row, %s", run.name, lack)
                continue
            # The model last: where it is, nothing of the fit is missing.
            write_json(run.directory / layout.FIT_COST, cost | {"numbers": store.numbers(state)})
            store.save(run.directory / "model", _model(method, state, cases, opened))
            distributed.barrier("model")


def _run_of(opened: Experiment, fold, method: Method, epochs, runs: dict, shared: dict) -> Run:
    of_seed = f" seed {opened.seed}" if len(seeds_of(opened.config)) > 1 else ""
    label = "all slides" if fold is None else f"fold {fold}{of_seed}"
    return Run(
        directory=opened.of_method(fold, method.name),
        name=f"{label} {method.name}",
        seed=opened.seed,
        mesh=opened.mesh,
        settings=TrainSettings.of(opened.config),
        epochs=epochs.get(method.name),
        of=runs.__getitem__,
        shared=shared,
    )


def _model(method: Method, state: Any, cases: Cases, opened: Experiment) -> Model:
    genes, slides = cases.genes, opened.dataset[cases.names.train]
    fitted_to = store.about_slides(slides)
    if PAIRS in method.needs:  # genes by sample, whose names are of no use to another sample
        genes = Genes(tuple(sorted(set().union(*genes.values()))), ())
    if not opened.problem.sees_images:
        return Model(method, state, genes, slides=fitted_to)
    encoder = encoder_of(slides), slides[0].features.shape[1], slides[0].widths
    return Model(method, state, genes, *encoder, fitted_to)


def _fit_final(opened: Experiment) -> None:
    """The models for prediction: all slides, for the median of the folds' epochs."""
    epochs = {}
    for method in opened.methods:
        models = [opened.model_of(fold, method) for fold in layout.folds_in(opened.workdir)]
        found = [store.about(model)["epochs"] for model in models if store.exists(model)]
        if found and found[0] is not None:
            epochs[method.name] = int(np.median(found))
    _remove_outdated(opened, epochs)
    if not all(_fitted(opened, None, method) for method in opened.methods):
        _fit(opened, None, opened.problem.every_case(opened.dataset), epochs)


def _remove_outdated(opened: Experiment, epochs: dict[str, int]) -> None:
    """Removes models of all slides that were trained for other numbers of epochs."""
    for method in opened.methods:
        folder = opened.of_method(None, method.name)
        if method.state_of or not distributed.of_main(store.exists(folder / "model")):
            continue
        on = [name for name in (method.name, *method.stands_on) if name in epochs]
        stale = [name for name in on if _final_epochs(opened, name) != epochs[name]]
        if stale:
            _LOG.info("all slides: more folds changed the number of epochs; refitting")
            distributed.barrier("refit")
            if distributed.is_main():
                shutil.rmtree(folder)
            distributed.barrier("removed")


def _final_epochs(opened: Experiment, name: str) -> int | None:
    folder = opened.of_method(None, name) / "model"
    return store.about(folder)["epochs"] if store.exists(folder) else None


def _score_fold(opened: Experiment, index: int, cases: Cases, methods: list[Method]) -> None:
    """Predicts and scores the test cases of a fold by some methods, fitted with one seed."""
    models = [_checked_model(opened, index, cases, method) for method in methods]
    problem, folder = opened.problem, opened.place(index)
    truth = problem.truth(cases)
    arrays = problem.truth_arrays(truth)
    true = problem.measured(arrays)
    constant = np.isnan(metrics.pearson(true, true))
    save_arrays(folder / "truth.npz", arrays)
    write_json(
        folder / "fold.json",
        {
            "fold": index,
            "train": cases.names.train,
            "test": cases.names.test,
            "spots": [problem.num_spots(case) for case in cases.test],
            **cases.about,
            "genes": cases.scored,
            "constant_genes": np.array(cases.scored)[constant],
        },
    )
    for model in models:
        _score(opened, index, cases, model, truth, arrays)


def _controls_there(opened: Experiment, index: int) -> bool:
    """Whether the controls of a fold were scored, or are not asked for."""
    path = opened.place(index) / layout.CONTROLS
    asked = RunSettings.of(opened.config).controls
    return not asked or distributed.of_main(
        path.exists() and read_json(path)["seed"] == opened.seed
    )


def _score_controls(opened: Experiment, index: int, cases: Cases) -> None:
    """Once for all methods and seeds, where the config asks for it."""
    if RunSettings.of(opened.config).controls:
        scores = opened.problem.controls(opened.problem.truth(cases), opened.seed)
        path = opened.place(index) / layout.CONTROLS
        write_json(path, {"seed": opened.seed, "scores": scores})
        distributed.barrier("controls")


def _checked_model(opened: Experiment, index: int, cases: Cases, method: Method) -> Model:
    """A method's model of a fold, whose slides still have the features it was fitted to."""
    model = store.load(opened.model_of(index, method), method)
    if EMBEDDING in method.needs:
        for name in (*cases.names.train, *cases.names.test):
            store.check_features(model, opened.dataset.slides[name])
    return model


def _score(opened: Experiment, index: int, cases: Cases, model: Model, truth, arrays) -> None:
    problem, method = opened.problem, model.method
    folder, rows = opened.of_method(index, method.name), []
    with measured("predict") as cost:
        predicted = predict_cases(opened, model, cases)
    scores = problem.scores(method, predicted, truth, opened.seed) if predicted else {}
    if predicted:
        found = problem.kept(predicted, problem.measured(arrays), opened.seed)
        rows = problem.gene_rows(index, method.name, found, arrays, cases)
        save_arrays(folder / "predictions.npz", found)
    write_json(folder / layout.PREDICT_COST, cost)
    write_json(
        folder / "scores.json",
        {
            "scores": scores,
            "epochs": model.epochs,
            "hyperparameters": method.hyperparameters(model.state),
            "per_gene": rows,
            "lacks": cases.lacks(method),
        },
    )
    distributed.barrier("scores")


def predict_cases(opened: Experiment, model: Model, cases: Cases) -> Predicted | None:
    """A method's predictions of the test cases of a fold; None where a case lacks what it needs."""
    settings = RunSettings.of(opened.config)
    genes = Genes((*cases.scored, *cases.added), model.genes.targets)
    request = Request(genes, opened.seed, settings.draws, settings.mean_draws, opened.mesh)
    try:
        predictions = [model.method.predict(model.state, case, request) for case in cases.test]
        return opened.problem.collected(predictions, cases)
    except NotApplicable as lack:
        if not any(model.method.lacks(case) for case in cases.test):  # else it was said
            _LOG.warning("%s: no row, %s", model.method.name, lack)
        return None
