"""The training state and the jitted step. One trace per bucket serves every fold of a run."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from stfm_jax.models.task import Task

PyTree = Any


class TrainState(NamedTuple):
    """Arrays only; everything needed to go on exactly where training stopped."""

    step: jax.Array  # [] int32
    params: PyTree
    ema_params: PyTree
    opt_state: PyTree
    loss_sum: jax.Array  # [] of the epoch so far
    loss_count: jax.Array  # []
    first_bad_step: jax.Array  # [] int32, first step whose loss was not finite, -1 while none


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up, then constant; global-norm clipping; EMA of the parameters."""

    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    warmup_steps: int = 0
    ema_decay: float = 0.99

    def transform(self) -> optax.GradientTransformation:
        schedule = optax.linear_schedule(0.0, self.learning_rate, max(self.warmup_steps, 1))
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(
                schedule if self.warmup_steps else self.learning_rate,
                weight_decay=self.weight_decay,
            ),
        )


@functools.partial(jax.jit, static_argnames=("task", "optimizer", "num_features"))
def create(task: Task, optimizer: Optimizer, key: jax.Array, num_features: int) -> TrainState:
    """Fresh state for spots with this many features."""
    params = task.init(key, num_features)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.transform().init(params),
        loss_sum=jnp.zeros(()),  # separate buffers: the state is donated
        loss_count=jnp.zeros(()),
        first_bad_step=-jnp.ones((), jnp.int32),
    )


@functools.partial(jax.jit, static_argnames=("task", "optimizer"), donate_argnames=("state",))
def train_step(
    task: Task,
    optimizer: Optimizer,
    state: TrainState,
    arrays: PyTree,
    batch: PyTree,
    key: jax.Array,
) -> TrainState:
    """One update. The step's noise is `key` folded with the step number.

    Args:
      task: gives `loss(params, arrays, batch, key) -> (sum, count)`.
      optimizer: settings.
      state: donated.
      arrays: the task's fitted arrays (prior, path): arguments, never closures.
      batch: padded slides.
      key: key of the run.
    """
    step_key = jax.random.fold_in(key, state.step)

    def mean_loss(params):
        total, count = task.loss(params, arrays, batch, step_key)
        return total / jnp.maximum(count, 1.0), (total, count)

    gradients, (total, count) = jax.grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.transform().update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # The EMA forgets its start quickly: decay grows from 1/11 with the step.
    decay = jnp.minimum(optimizer.ema_decay, (1.0 + state.step) / (11.0 + state.step))
    ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state.ema_params, params)
    return TrainState(
        step=state.step + 1,
        params=params,
        ema_params=ema,
        opt_state=opt_state,
        loss_sum=state.loss_sum + total,
        loss_count=state.loss_count + count,
        first_bad_step=jnp.where(
            (state.first_bad_step < 0) & ~jnp.isfinite(total), state.step, state.first_bad_step
        ),
    )
