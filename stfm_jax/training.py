"""From a config and slides to a trained model: a method's base and itself, select and refit.

<directory>/[base/]select, refit   training stages (checkpoints, history.csv, done.json)
<directory>/model                  what prediction needs (eval.model_store)
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from stfm_jax.data.regions import Regions
from stfm_jax.data.slide import Slide
from stfm_jax.eval import sampling
from stfm_jax.models.holotea import Neighbours
from stfm_jax.models.stflow import STFlow, TrainingSet
from stfm_jax.ops import metrics
from stfm_jax.regression.regressors import leave_out_groups
from stfm_jax.runtime.devices import replicate
from stfm_jax.train.loop import Schedule, Trained, train
from stfm_jax.train.state import Optimizer

_LOG = logging.getLogger("stfm_jax")
VALIDATION_DRAWS = 16  # of time and prior, the same for every epoch


@dataclasses.dataclass(frozen=True)
class Training:
    """Where and on what a model is trained."""

    config: Any
    mesh: Mesh
    directory: Path
    name: str  # of the model in the history

    def run(
        self,
        task: STFlow,
        slides: list[Slide],
        targets: list[str],
        epochs: Sequence[int] | None = None,
    ) -> tuple[TrainingSet, Trained, tuple[int, ...]]:
        """Trains a method, or returns what was trained before.

        Args:
          task: the method.
          slides: all that it may see.
          targets: genes.
          epochs: of a fit to all slides, the base's before the method's own; None as config.train
            says, which may hold one slide out to choose.

        Returns:
          What was fitted, what was trained, and for how many epochs.
        """
        config = self.config.train
        select = epochs is None and config.select
        if select:
            part, validation = split_validation(slides, self.config.seed)
            most = self._most_epochs(task)
            training, trained = self._parts(task, "select", part, targets, most, validation)
            epochs = [stage.best_epoch for stage in trained]
        epochs = epochs or self._most_epochs(task)
        if config.refit or not select:
            training, trained = self._parts(task, "refit", slides, targets, epochs)
        return training, trained[-1], tuple(epochs)

    def _most_epochs(self, task: STFlow) -> list[int]:
        """Of the base, if there is one, and of the method."""
        own = self.config.train.epochs
        return [own] if task.base is None else [own, self.config.stack.epochs]

    def _parts(
        self, task: STFlow, kind: str, slides, targets, epochs, validation: Slide | None = None
    ) -> tuple[TrainingSet, list[Trained]]:
        """The base if there is one, then the method, for (at most) so many epochs."""
        training, trained = task.fit(slides, targets), []
        if task.base is not None:
            score = self._score(task.base, training.base, validation, targets, slides)
            stage = f"{self.name} base {kind}"
            directory = self.directory / "base" / kind
            base = self._stage(directory, stage, task.base, training.base, epochs[0], score)
            trained.append(base)
            training = task.stand_on(training, base.params)
        score = self._score(task, training, validation, targets, slides)
        directory, stage = self.directory / kind, f"{self.name} {kind}"
        trained.append(self._stage(directory, stage, task, training, epochs[-1], score))
        return training, trained

    def _score(
        self, task: STFlow, training: TrainingSet, validation: Slide | None, targets, slides
    ) -> Callable[[Any], float] | None:
        """Parameters -> score on the validation slide, if there is one; higher is better.

        Pearson of the mean; or minus the loss, where the mean is not what is trained.
        """
        if validation is None:
            return None
        stack = () if task.base is None else (Neighbours(slides, targets),)
        prepared = task.prepare(validation, training.fitted, targets, *stack)
        batch = sampling.batch_of(task, self.mesh, prepared)
        flow = replicate(self.mesh, training.fitted.flow)
        key = jax.random.key(self.config.seed)

        def minus_loss(params) -> float:
            arguments = task, self.mesh, params, flow, batch, key
            return -sampling.validation_loss(*arguments, VALIDATION_DRAWS)

        def score(params) -> float:
            mean = sampling.posterior_mean(task, self.mesh, params, flow, batch, key, 1)
            values = metrics.pearson(mean, prepared.expr)
            return metrics.mean_over_genes(values)[0]

        return score if task.selected_by == "pearson" else minus_loss

    def _stage(self, directory, stage, task, training, epochs, score) -> Trained:
        config = self.config.train
        schedule = Schedule(epochs, config.checkpoint_every)
        regions = Regions(
            training.slides,
            task.neighbors,
            task.tile,
            per_slide=config.regions_per_slide,
            whole_share=config.whole_share,
            per_step=config.slides_per_step,
            accumulate=config.accumulate,
        )
        flow, seed = training.fitted.flow, self.config.seed
        trained = train(
            directory,
            stage,
            task,
            optimizer_of(config),
            schedule,
            regions,
            flow,
            seed,
            score,
            self.mesh,
        )
        if score is not None:
            _LOG.info(
                "%s: epoch %d is best (validation %.3f)",
                stage,
                trained.best_epoch,
                trained.best_score,
            )
        return trained


def optimizer_of(config: Any) -> Optimizer:
    """As a config's `train` section says."""
    return Optimizer(
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        warmup_steps=config.warmup_steps,
        ema_decay=config.ema_decay,
    )


def split_validation(slides: list[Slide], seed: int) -> tuple[list[Slide], Slide]:
    """One training slide for validation, or a fifth of the only one, a spatial block."""
    if len(slides) > 1:
        chosen = int(np.random.default_rng(seed).integers(len(slides)))
        return [s for i, s in enumerate(slides) if i != chosen], slides[chosen]
    slide = slides[0]
    block = leave_out_groups([slide.num_spots], [slide.coords_um]) == 0
    return [slide.subset(~block)], slide.subset(block)
