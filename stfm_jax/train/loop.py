"""The training loop: epochs of random regions, history, checkpoints, resuming.

It knows no method by name: a task gives the loss, a callback the validation score. Every batch and
every noise follows from (seed, epoch, step), so a run that was killed and goes on ends as one that
was not.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from stfm_jax.data.batching import Batch, PreparedSlide, collate, region
from stfm_jax.errors import InputError
from stfm_jax.models.task import Task
from stfm_jax.runtime.checkpoint import Checkpoint
from stfm_jax.runtime.files import read_csv, write_csv, write_json
from stfm_jax.runtime.interrupt import Interrupted, sigterm_flag
from stfm_jax.train.state import Optimizer, TrainState, create, train_step

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How slides become steps."""

    epochs: int = 100
    regions_per_slide: int = 10  # regions an epoch draws from each slide [STFlow]
    whole_share: float = 0.0  # share of those that are the whole slide
    slides_per_step: int = 1  # regions side by side in a step
    checkpoint_every: int = 5  # epochs


@dataclasses.dataclass(frozen=True)
class Trained:
    """Outcome of a stage."""

    params: PyTree  # EMA parameters of the best epoch, of the last one without validation
    best_epoch: int  # epochs of the best validation score; all of them without validation
    best_score: float


def train(
    directory: str | Path,
    stage: str,
    task: Task,
    optimizer: Optimizer,
    schedule: Schedule,
    slides: Sequence[PreparedSlide],
    arrays: PyTree,
    seed: int,
    score: Callable[[PyTree], float] | None = None,
) -> Trained:
    """Trains, or goes on training, or returns what was trained already.

    Args:
      directory: holds the checkpoints `latest` and, with a validation score, `best`; `history.csv`;
        and, when finished, `done.json`.
      stage: name in the history.
      task: see models.task.
      optimizer: its settings.
      schedule: epochs and regions.
      slides: training slides with targets.
      arrays: the task's fitted arrays.
      seed: of initialisation, regions and noise.
      score: validation score of EMA parameters, higher is better; None when refitting.

    Raises:
      InputError: the loss became NaN or infinite (names the step and the slides).
      Interrupted: SIGTERM came; the checkpoint is written.
    """
    directory = Path(directory)
    history = directory / "history.csv"
    latest, best = Checkpoint(directory / "latest"), Checkpoint(directory / "best")
    batch = epoch_batches(schedule, slides, task.neighbors, seed, 0)[0][1]
    key_init, key_steps = jax.random.split(jax.random.key(seed))
    state = create(task, optimizer, key_init, batch)
    steps_per_epoch = -(-len(slides) * schedule.regions_per_slide // schedule.slides_per_step)
    if latest.step is not None and latest.step > schedule.epochs * steps_per_epoch:
        latest.clear()  # of a longer schedule, which was stopped: a refit for fewer epochs now
        best.clear()
    if latest.step is not None:
        state = latest.restore(state)
    first_epoch = int(state.step) // steps_per_epoch
    # A kill may have left rows, and a best epoch, after the checkpoint: they are trained again.
    rows = [r for r in read_csv(history) if int(r["epoch"]) <= first_epoch]
    kept = None  # best parameters not yet on disk
    arrays = jax.device_put(arrays)

    def save():
        write_csv(history, rows)
        if kept is not None:
            best.replace(_best(rows)[0], kept)
        latest.save(int(state.step), state)

    with sigterm_flag() as stop, _progress(stage, first_epoch, schedule.epochs) as bar:
        for epoch in range(first_epoch, schedule.epochs):
            started = time.perf_counter()
            batches = epoch_batches(schedule, slides, task.neighbors, seed, epoch)
            for _, batch in batches[int(state.step) - epoch * steps_per_epoch :]:
                state = train_step(task, optimizer, state, arrays, batch, key_steps)
                # At an epoch's last step its score and its row come first.
                if stop.is_set() and int(state.step) < (epoch + 1) * steps_per_epoch:
                    _check_finite(state, batches, steps_per_epoch, stage)
                    save()
                    raise _interrupted(state, stage)
            _check_finite(state, batches, steps_per_epoch, stage)
            loss = float(state.loss_sum / state.loss_count)
            state = state._replace(loss_sum=jnp.zeros(()), loss_count=jnp.zeros(()))
            value = np.nan if score is None else score(state.ema_params)
            rows.append(
                {
                    "stage": stage,
                    "epoch": epoch + 1,
                    "step": int(state.step),
                    "train_loss": f"{loss:.6g}",
                    "val_pearson": "" if score is None else f"{value:.6f}",
                    "seconds": f"{time.perf_counter() - started:.3f}",
                }
            )
            if score is not None and _best(rows)[0] == epoch + 1:
                kept = jax.tree.map(np.asarray, state.ema_params)
            due = epoch + 1 == schedule.epochs or (epoch + 1) % schedule.checkpoint_every == 0
            if due or stop.is_set():
                save()
                kept = None
            if stop.is_set():
                raise _interrupted(state, stage)
            bar.set_postfix_str(
                f"loss {loss:.4g}" + ("" if score is None else f", validation {value:.3f}")
            )
            bar.update()
    epochs, value = _best(rows) if score is not None else (schedule.epochs, float("nan"))
    params = state.ema_params if score is None else best.restore(state.ema_params)
    latest.close()
    best.close()
    write_json(directory / "done.json", {"best_epoch": epochs, "best_score": value})
    return Trained(params, epochs, value)


def _best(rows: Sequence[dict]) -> tuple[int, float]:
    """Epoch and score of the best validation; the first of equals."""
    scores = np.array([float(row["val_pearson"]) for row in rows])
    index = int(np.argmax(scores))
    return int(rows[index]["epoch"]), float(scores[index])


def epoch_batches(
    schedule: Schedule, slides: Sequence[PreparedSlide], k: int, seed: int, epoch: int
) -> list[tuple[list[str], Batch]]:
    """The batches of an epoch with the names of their slides; a function of seed and epoch."""
    rng = np.random.default_rng([seed, epoch])
    whole = round(schedule.whole_share * schedule.regions_per_slide)
    parts = [
        slide if i < whole else region(slide, rng, at_least=4 * k)
        for slide in slides
        for i in range(schedule.regions_per_slide)
    ]
    order = rng.permutation(len(parts))
    groups = [
        [parts[i] for i in order[start : start + schedule.slides_per_step]]
        for start in range(0, len(parts), schedule.slides_per_step)
    ]
    return [([part.name for part in group], collate(group, k)) for group in groups]


def _interrupted(state: TrainState, stage: str) -> Interrupted:
    return Interrupted(f"stopped at step {int(state.step)} of {stage}; the same command goes on.")


def _check_finite(state: TrainState, batches, steps_per_epoch: int, stage: str) -> None:
    bad = int(state.first_bad_step)
    if bad < 0:
        return
    names = ", ".join(sorted(set(batches[bad % steps_per_epoch][0])))
    raise InputError(
        f"{stage}: the loss is NaN or infinite at step {bad} (epoch {bad // steps_per_epoch}), on "
        f"slide {names}. Look at that slide's features and counts, or lower "
        "--config.train.learning_rate in another --workdir; the last good checkpoint is kept."
    )


def _progress(stage: str, start: int, total: int) -> tqdm:
    return tqdm(
        desc=stage, initial=start, total=total, unit="epoch", dynamic_ncols=True, mininterval=1.0
    )
