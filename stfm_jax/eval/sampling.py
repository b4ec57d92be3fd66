"""Slides predicted in one call each, their rows shared by the devices of a mesh.

What a device does is `Task.posterior_mean` and `Task.sample` on its rows; neighbours' rows come
from the others before every layer (`ops.tiles.with_received`). Results equal one device's.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stfm_jax.data.batching import Batch, PreparedSlide, collate, in_order
from stfm_jax.models.task import Task
from stfm_jax.ops.tiles import AXIS
from stfm_jax.runtime.devices import SPLIT, SPLIT_DRAWS, WHOLE, fetch, split

PyTree = Any


def batch_of(task: Task, mesh: Mesh, slide: PreparedSlide) -> Batch:
    """A slide on the devices."""
    return split(mesh, collate([slide], task.neighbors, task.tile, mesh.size))


def posterior_mean(
    task: Task, mesh: Mesh, params: PyTree, arrays: PyTree, batch: Batch, key: jax.Array, draws: int
) -> np.ndarray:
    """E[x_1 | features] [n, g] in the order of the slide's input; see `Task.posterior_mean`."""
    return _shared(task, "posterior_mean", mesh, SPLIT, draws, (params, arrays, batch, key))


def sample(
    task: Task, mesh: Mesh, params: PyTree, arrays: PyTree, batch: Batch, key: jax.Array, draws: int
) -> np.ndarray:
    """Joint draws [draws, n, g] in the order of the slide's input; see `Task.sample`."""
    return _shared(task, "sample", mesh, SPLIT_DRAWS, draws, (params, arrays, batch, key))


def validation_loss(
    task: Task, mesh: Mesh, params: PyTree, arrays: PyTree, batch: Batch, key: jax.Array, draws: int
) -> float:
    """Mean of `Task.validation_loss` over spots, genes and draws of time and prior."""
    total, count = _validation_sums(task, mesh, draws, params, arrays, batch, key)
    return float(total / count)


@functools.partial(jax.jit, static_argnames=("task", "mesh", "draws"))
def _validation_sums(task, mesh, draws, params, arrays, batch, key):
    def on_device(params, arrays, batch, key):
        sums = jax.lax.map(
            lambda key: task.validation_loss(params, arrays, batch, key),
            jax.random.split(key, draws),
        )
        return jax.lax.psum(jax.tree.map(jnp.sum, sums), AXIS)

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(WHOLE, WHOLE, SPLIT, WHOLE),
        out_specs=WHOLE,
        check_vma=False,
    )(params, arrays, batch, key)


def _shared(task, name, mesh, out, draws, arguments) -> np.ndarray:
    batch = arguments[2]
    values = on_devices(task, name, mesh, out, draws, *arguments)
    rows = batch._replace(features=None, anchor=None, expr=None, tiles=None, context=None)
    return in_order(fetch(rows), fetch(values))


@functools.partial(jax.jit, static_argnames=("task", "name", "mesh", "out", "draws"))
def on_devices(task, name, mesh, out, draws, params, arrays, batch, key):
    """`task.name(params, arrays, batch, key, draws=draws)`, each device on its rows.

    Args:
      task: settings, hashable.
      name: of a method that is independent of how the rows are shared.
      mesh: the devices.
      out: how its values are cut over them.
      draws: passed on.
      params, arrays, key: the same on every device.
      batch: cut along its leading axes.
    """
    return jax.shard_map(
        functools.partial(getattr(task, name), draws=draws),
        mesh=mesh,
        in_specs=(WHOLE, WHOLE, SPLIT, WHOLE),
        out_specs=out,
        check_vma=False,
    )(params, arrays, batch, key)
