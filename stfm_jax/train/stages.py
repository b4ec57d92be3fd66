"""A method's training on the cases of one fold: epochs are selected, then all is refitted.

    <directory>/select, refit   the stages (checkpoints, history.csv, done.json)

A method asks its `Run` for what is the same for all methods. The loop itself is `train.loop`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jax.sharding import Mesh

from stfm_jax.data.slide import Slide
from stfm_jax.regression.regressors import leave_out_groups
from stfm_jax.settings import Settings, recast, setting
from stfm_jax.train.loop import Batches, Schedule, Trained, train
from stfm_jax.train.state import Optimizer, Trainable

PyTree = Any
_LOG = logging.getLogger("stfm_jax")


@dataclasses.dataclass(frozen=True)
class TrainSettings(Settings):
    """How methods are trained."""

    SECTION: ClassVar[str] = "train"

    epochs: int = setting(100, least=1)  # at most; a validation slide says how many
    select: bool = setting(True)  # False: the epochs as they are
    refit: bool = setting(True)  # on all cases, after selection; False: the best epoch is kept
    regions_per_slide: int = setting(10, least=1)
    whole_share: float = setting(0.0)
    slides_per_step: int = setting(1, least=1)
    accumulate: int = setting(1, least=1)
    learning_rate: float = setting(5e-4)
    weight_decay: float = setting(0.0)
    warmup_steps: int = setting(0)
    clip_norm: float = setting(1.0)
    ema_decay: float = setting(0.99)
    checkpoint_every: int = setting(5)  # epochs

    @property
    def optimizer(self) -> Optimizer:
        """The settings of the optimizer."""
        return recast(Optimizer, self)


class Stage(NamedTuple):
    """What one run of the training loop is given."""

    trainable: Trainable
    data: Batches
    arrays: PyTree  # fitted ones
    score: Callable[[PyTree], float] | None = None  # of parameters, on what is held out
    patience: int = 0  # epochs without a better score that end it; 0: all are run


class Outcome(NamedTuple):
    """What a stage ended with."""

    fitted: Any  # in closed form
    trained: Trained
    epochs: int


@dataclasses.dataclass(frozen=True)
class Run:
    """Where, and how, one method is fitted to the cases of a fold."""

    directory: Path  # of the method in the fold
    name: str  # in the log and the history, as in "fold 1 stflow"
    seed: int
    mesh: Mesh
    settings: TrainSettings
    epochs: int | None = None  # to train for; None: they are selected
    of: Callable[[str], Run] | None = None  # the run of another method on the same cases
    shared: dict = dataclasses.field(default_factory=dict)  # see `once`

    def once(self, make: Callable[[], Any], slides: Sequence[Any], *key: Hashable) -> Any:
        """The result of `make`, computed once for all methods of a fold and seed.

        Args:
          make: computes it.
          slides: what it is computed from; told apart as objects, not by what they hold.
          key: what else it depends on.
        """
        name = (*map(id, slides), *key)
        if name not in self.shared:
            self.shared[name] = (make(), tuple(slides))  # kept, so that no id is given away again
        return self.shared[name][0]

    def held_out(self, slides: Sequence[Slide]) -> tuple[list[Slide], Slide]:
        """Slides to train on and the one for validation, the same for all methods of a fold."""
        return self.once(lambda: hold_out(slides, self.seed), slides, "held out", self.seed)

    def stage(self, kind: str, stage: Stage, epochs: int) -> Trained:
        """Trains, goes on training, or returns what was trained before: "select" or "refit"."""
        schedule = Schedule(epochs, self.settings.checkpoint_every, stage.patience)
        trained = train(
            self.directory / kind, f"{self.name} {kind}", stage.trainable, self.settings.optimizer,
            schedule, stage.data, stage.arrays, self.seed, stage.score, self.mesh,
        )  # fmt: skip
        if stage.score is not None:
            best = f"epoch {trained.best_epoch} is best (validation {trained.best_score:.4g})"
            _LOG.info("%s %s: %s", self.name, kind, best)
        return trained


def select_and_refit(
    run: Run,
    most: int,
    select: Callable[[], tuple[Any, Stage]],
    refit: Callable[[], tuple[Any, Stage]],
) -> dict[str, Outcome]:
    """Trains for the epochs that serve what is held out, then on all cases for as many.

    Args:
      run: which may say the epochs, or that one of the two is left out.
      most: epochs.
      select: what was fitted to the cases but the held-out ones, and its stage with a score.
      refit: what was fitted to all cases, and its stage.

    Returns:
      The outcomes of "select" and "refit", as far as they were done; the last one is the method's.
    """
    outcomes = {}
    epochs, selects = run.epochs, run.epochs is None and run.settings.select
    if selects:
        fitted, stage = select()
        trained = run.stage("select", stage, most)
        epochs = trained.best_epoch
        outcomes["select"] = Outcome(fitted, trained, epochs)
    epochs = epochs or most
    if run.settings.refit or not selects:
        fitted, stage = refit()
        outcomes["refit"] = Outcome(fitted, run.stage("refit", stage, epochs), epochs)
    return outcomes


def hold_out(slides: Sequence[Slide], seed: int) -> tuple[list[Slide], Slide]:
    """Slides to train on, and one for validation; of an only slide a fifth, a spatial block."""
    if len(slides) > 1:
        chosen = int(np.random.default_rng(seed).integers(len(slides)))
        return [s for i, s in enumerate(slides) if i != chosen], slides[chosen]
    slide = slides[0]
    block = leave_out_groups([slide.num_spots], [slide.coords_um], seed) == 0
    return [slide.subset(~block)], slide.subset(block)
