"""The training loop: epochs of batches, history, checkpoints, resuming.

It knows no method by name: a trainable gives the loss, data the batches, a callback the validation
score. Every batch and every noise follows from (seed, epoch, step), so a run that was killed and
goes on ends as one that was not.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from stfm_jax.errors import InputError
from stfm_jax.runtime import progress
from stfm_jax.runtime.checkpoint import Checkpoint
from stfm_jax.runtime.devices import make_mesh, replicate, shard
from stfm_jax.runtime.distributed import anywhere, of_main, several
from stfm_jax.runtime.files import read_csv, write_csv, write_json
from stfm_jax.runtime.interrupt import Interrupted, sigterm_flag
from stfm_jax.train.state import Optimizer, Trainable, TrainState, create, train_step

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long, and how often to save."""

    epochs: int = 100
    checkpoint_every: int = 5  # epochs
    patience: int = 0  # epochs without a better validation score that end it; 0: all are run

    def ended(self, epoch: int, best: int) -> bool:
        """Whether there is nothing to be trained after an epoch, the best being that."""
        return epoch >= self.epochs or 0 < self.patience <= epoch - best


class Batches(Protocol):
    """What is trained on, as steps; they follow from seed, epoch and step alone."""

    width: Any  # of what a network sees of a row, as `Trainable.init` takes it
    steps: int  # of an epoch

    def batches(
        self, seed: int, epoch: int, first: int = 0, devices: int = 1
    ) -> Iterator[Iterator[PyTree]]:
        """Batches of an epoch's steps from `first` on; leading axes divide by the devices."""
        ...

    def where(self, seed: int, epoch: int, step: int) -> str:
        """Whose data a step sees, for messages."""
        ...


@dataclasses.dataclass(frozen=True)
class Trained:
    """Outcome of a stage."""

    params: PyTree  # EMA parameters of the best epoch, of the last one without validation
    best_epoch: int  # epochs of the best validation score; all of them without validation
    best_score: float


def train(
    directory: str | Path,
    stage: str,
    trainable: Trainable,
    optimizer: Optimizer,
    schedule: Schedule,
    data: Batches,
    arrays: PyTree,
    seed: int,
    score: Callable[[PyTree], float] | None = None,
    mesh: Mesh | None = None,
) -> Trained:
    """Trains, or goes on training, or returns what was trained already.

    Args:
      directory: holds the checkpoints `latest` and, with a validation score, `best`; `history.csv`;
        and, when finished, `done.json`.
      stage: name in the history.
      trainable: gives initial parameters and the loss.
      optimizer: its settings.
      schedule: epochs and checkpoints.
      data: what to train on.
      arrays: fitted ones.
      seed: of initialisation, regions and noise.
      score: validation score of EMA parameters, higher is better; None when refitting.
      mesh: devices that share every batch; None: one.

    Raises:
      InputError: the loss became NaN or infinite (names the step and the slides).
      Interrupted: SIGTERM came; the checkpoint is written.
    """
    directory = Path(directory)
    history = directory / "history.csv"
    latest, best = Checkpoint(directory / "latest"), Checkpoint(directory / "best")
    key_init, key_steps = jax.random.split(jax.random.key(seed))
    mesh = mesh or make_mesh(1)
    state = replicate(mesh, create(trainable, optimizer, key_init, arrays, data.width))
    steps_per_epoch = data.steps
    if latest.step is not None and latest.step > schedule.epochs * steps_per_epoch:
        latest.clear()  # of a longer schedule, which was stopped: a refit for fewer epochs now
        best.clear()
    if latest.step is not None:
        state = latest.restore(state)
    first_epoch = int(state.step) // steps_per_epoch
    # A kill may have left rows, and a best epoch, after the checkpoint: they are trained again.
    rows = [r for r in read_csv(history) if int(r["epoch"]) <= first_epoch]
    kept = None  # best parameters not yet on disk
    arrays = replicate(mesh, arrays)

    def save():
        write_csv(history, rows)
        if kept is not None:
            best.replace(_best(rows)[0], kept)
        latest.save(int(state.step), state)

    def where(step):
        epoch, index = divmod(step, steps_per_epoch)
        return f"step {step} (epoch {epoch}), on {data.where(seed, epoch, index)}"

    with (
        sigterm_flag() as stop,
        progress.bar(stage, schedule.epochs, "epoch", initial=first_epoch) as bar,
    ):
        for epoch in range(first_epoch, schedule.epochs):
            if score is not None and rows and schedule.ended(epoch, _best(rows)[0]):
                break  # of a run that was stopped after its last epoch
            started = time.perf_counter()
            first = int(state.step) - epoch * steps_per_epoch
            for batches in data.batches(seed, epoch, first, mesh.size):
                placed = (shard(mesh, batch) for batch in batches)
                state = train_step(trainable, optimizer, mesh, state, arrays, placed, key_steps)
                if not stop.is_set() or several():  # processes stop together, at an epoch's end
                    continue
                # At an epoch's last step its score and its row come first.
                if int(state.step) < (epoch + 1) * steps_per_epoch:
                    _check_finite(state, stage, where)
                    save()
                    raise _interrupted(state, stage)
            _check_finite(state, stage, where)
            loss = float(state.loss_sum / state.loss_count)
            nothing = (np.zeros((), np.float32), np.zeros((), np.float32))
            loss_sum, loss_count = replicate(mesh, nothing)
            state = state._replace(loss_sum=loss_sum, loss_count=loss_count)
            value = np.nan if score is None else of_main(score(state.ema_params))
            stopping = anywhere(stop.is_set())
            rows.append(
                {
                    "stage": stage,
                    "epoch": epoch + 1,
                    "step": int(state.step),
                    "train_loss": f"{loss:.6g}",
                    "validation": "" if score is None else f"{value:.6f}",
                    "seconds": f"{time.perf_counter() - started:.3f}",
                }
            )
            if score is not None and _best(rows)[0] == epoch + 1:
                kept = jax.tree.map(np.asarray, state.ema_params)
            last = schedule.ended(epoch + 1, epoch + 1 if score is None else _best(rows)[0])
            due = last or (epoch + 1) % schedule.checkpoint_every == 0
            if due or stopping:
                save()
                kept = None
            if stopping:
                raise _interrupted(state, stage)
            shown = f"loss {loss:.4g}" + ("" if score is None else f", validation {value:.3f}")
            bar.set_postfix_str(shown, refresh=False)
            bar.update()
    epochs, value = _best(rows) if score is not None else (schedule.epochs, float("nan"))
    params = state.ema_params if score is None else best.restore(state.ema_params)
    latest.close()
    best.close()
    write_json(directory / "done.json", {"best_epoch": epochs, "best_score": value})
    return Trained(params, epochs, value)


def _best(rows: Sequence[dict]) -> tuple[int, float]:
    """Epoch and score of the best validation; the first of equals."""
    scores = np.array([float(row["validation"]) for row in rows])
    index = int(np.argmax(scores))
    return int(rows[index]["epoch"]), float(scores[index])


def _interrupted(state: TrainState, stage: str) -> Interrupted:
    return Interrupted(f"stopped at step {int(state.step)} of {stage}; the same command goes on.")


def _check_finite(state: TrainState, stage: str, where: Callable[[int], str]) -> None:
    """Raises InputError if the loss was not finite; `where` describes a step."""
    bad = int(state.first_bad_step)
    if bad < 0:
        return
    raise InputError(
        f"{stage}: the loss is NaN or infinite at {where(bad)}. Look at that slide's "
        "features and counts, or lower "
        "--config.train.learning_rate in another --workdir; the last good checkpoint is kept."
    )
