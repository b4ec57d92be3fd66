"""The training state and its update. One trace per bucket serves every fold of a run.

Devices share the rows of every batch. Each sums its own terms of the loss and their gradients;
the sums over devices, and over the batches of a step, are divided by the number of all terms. So
a step is the same on any number of devices and in any number of batches, to rounding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from stfm_jax.ops.tiles import AXIS
from stfm_jax.runtime.devices import SHARDED, WHOLE

PyTree = Any


class Trainable(Protocol):
    """Pure functions with settings; hashable. Fitted arrays are arguments, never closures."""

    def init(self, key: jax.Array, arrays: PyTree, width: Any) -> PyTree:
        """Network parameters for these fitted arrays; width: of `Batches`."""
        ...

    def loss(
        self, params: PyTree, arrays: PyTree, batch: PyTree, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(sum of the loss, number of terms), so that means can be taken over devices."""
        ...


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


@functools.partial(jax.jit, static_argnames=("trainable", "optimizer", "num_features"))
def create(
    trainable: Trainable, optimizer: Optimizer, key: jax.Array, arrays: PyTree, num_features: Any
) -> TrainState:
    """Fresh state for spots with this many features; `arrays` are fitted ones."""
    params = trainable.init(key, arrays, num_features)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.transform().init(params),
        loss_sum=jnp.zeros(()),  # separate buffers: the state is donated
        loss_count=jnp.zeros(()),
        first_bad_step=-jnp.ones((), jnp.int32),
    )


class Sums(NamedTuple):
    """Gradient, sum and number of some terms of a step's loss."""

    gradient: PyTree
    loss: jax.Array  # []
    count: jax.Array  # []


def train_step(
    trainable: Trainable,
    optimizer: Optimizer,
    mesh: Mesh,
    state: TrainState,
    arrays: PyTree,
    batches: Iterable[PyTree],
    key: jax.Array,
) -> TrainState:
    """One update. The step's noise is `key` folded with the step number.

    Args:
      trainable: gives `loss(params, arrays, batch, key) -> (sum, count)`.
      optimizer: settings.
      mesh: devices that share the batches.
      state: donated.
      arrays: fitted arrays (prior, path): arguments, never closures.
      batches: of padded slides, one after the other; together they are the step's terms.
      key: key of the run.
    """
    sums = None
    for batch in batches:
        part = _sums(trainable, mesh, state.params, arrays, batch, key, state.step)
        sums = part if sums is None else _added(sums, part)
    return _updated(optimizer, state, sums)


@functools.partial(jax.jit, static_argnames=("trainable", "mesh"))
def _sums(trainable: Trainable, mesh: Mesh, params, arrays, batch, key, step) -> Sums:
    def on_device(params, arrays, batch, key):
        loss = functools.partial(trainable.loss, arrays=arrays, batch=batch, key=key)
        (total, count), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.lax.psum(Sums(gradient, total, count), AXIS)

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(WHOLE, WHOLE, SHARDED, WHOLE),
        out_specs=WHOLE,
        check_vma=False,
    )(params, arrays, batch, jax.random.fold_in(key, step))


@functools.partial(jax.jit, donate_argnums=0)
def _added(a: Sums, b: Sums) -> Sums:
    return jax.tree.map(jnp.add, a, b)


@functools.partial(jax.jit, static_argnames="optimizer", donate_argnames="state")
def _updated(optimizer: Optimizer, state: TrainState, sums: Sums) -> TrainState:
    gradient = jax.tree.map(lambda g: g / jnp.maximum(sums.count, 1.0), sums.gradient)
    updates, opt_state = optimizer.transform().update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # The EMA forgets its start quickly: decay grows from 1/11 with the step.
    decay = jnp.minimum(optimizer.ema_decay, (1.0 + state.step) / (11.0 + state.step))
    ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state.ema_params, params)
    bad = (state.first_bad_step < 0) & ~jnp.isfinite(sums.loss)
    return TrainState(
        step=state.step + 1,
        params=params,
        ema_params=ema,
        opt_state=opt_state,
        loss_sum=state.loss_sum + sums.loss,
        loss_count=state.loss_count + sums.count,
        first_bad_step=jnp.where(bad, state.step, state.first_bad_step),
    )
