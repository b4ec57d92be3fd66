"""Slides predicted in one call each, their rows shared by the devices of a mesh.

What a device does is a flow's `posterior_mean` and `sample` (`stflow.flow`, `holotea.flow`) on its
rows; neighbours' rows come from the others before every layer (`ops.tiles.with_received`). Results
equal one device's.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stfm_jax.data.batching import Batch, PreparedSlide, collate, in_order
from stfm_jax.ops.tiles import AXIS
from stfm_jax.runtime.devices import SHARDED, SHARDED_DRAWS, WHOLE, fetch, shard

PyTree = Any


def batch_of(flow: Any, mesh: Mesh, slide: PreparedSlide) -> Batch:
    """A slide on the devices."""
    return shard(mesh, collate([slide], flow.neighbors, flow.tile, mesh.size))


def posterior_mean(
    flow: Any, mesh: Mesh, params: PyTree, arrays: PyTree, batch: Batch, key: jax.Array, draws: int
) -> np.ndarray:
    """E[x_1 | features] [n, g] in the order of the slide's input; see `STFlow.posterior_mean`."""
    return _shared(flow, "posterior_mean", mesh, SHARDED, draws, (params, arrays, batch, key))


def sample(
    flow: Any, mesh: Mesh, params: PyTree, arrays: PyTree, batch: Batch, key: jax.Array, draws: int
) -> np.ndarray:
    """Joint draws [draws, n, g] in the order of the slide's input; see `STFlow.sample`."""
    return _shared(flow, "sample", mesh, SHARDED_DRAWS, draws, (params, arrays, batch, key))


def validation_loss(
    flow: Any, mesh: Mesh, params: PyTree, arrays: PyTree, batch: Batch, key: jax.Array, draws: int
) -> float:
    """Mean of `flow.validation_loss` over spots, genes and draws of time and prior."""
    total, count = _validation_sums(flow, mesh, draws, params, arrays, batch, key)
    return float(total / count)


@functools.partial(jax.jit, static_argnames=("flow", "mesh", "draws"))
def _validation_sums(flow, mesh, draws, params, arrays, batch, key):
    def on_device(params, arrays, batch, key):
        sums = jax.lax.map(
            lambda key: flow.validation_loss(params, arrays, batch, key),
            jax.random.split(key, draws),
        )
        return jax.lax.psum(jax.tree.map(jnp.sum, sums), AXIS)

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(WHOLE, WHOLE, SHARDED, WHOLE),
        out_specs=WHOLE,
        check_vma=False,
    )(params, arrays, batch, key)


def _shared(flow, name, mesh, out, draws, arguments) -> np.ndarray:
    batch = arguments[2]
    values = on_devices(flow, name, mesh, out, draws, *arguments)
    rows = batch._replace(features=None, anchor=None, expr=None, tiles=None, context=None)
    return in_order(fetch(rows), fetch(values))


@functools.partial(jax.jit, static_argnames=("flow", "name", "mesh", "out", "draws"))
def on_devices(flow, name, mesh, out, draws, params, arrays, batch, key):
    """`flow.name(params, arrays, batch, key, draws=draws)`, each device on its rows.

    Args:
      flow: settings, hashable.
      name: of a method that is independent of how the rows are shared.
      mesh: the devices.
      out: how its values are cut over them.
      draws: passed on.
      params, arrays, key: the same on every device.
      batch: cut along its leading axes.
    """
    return jax.shard_map(
        functools.partial(getattr(flow, name), draws=draws),
        mesh=mesh,
        in_specs=(WHOLE, WHOLE, SHARDED, WHOLE),
        out_specs=out,
        check_vma=False,
    )(params, arrays, batch, key)
