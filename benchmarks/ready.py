"""A slide, or weights in training, on their devices: what draws and steps are timed from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from harness import Row

from stfm_jax.data.batching import Batch, PreparedSlide, collate
from stfm_jax.models import sharded
from stfm_jax.models.stflow import whole_slide
from stfm_jax.models.stflow.flow import FlowArrays, STFlow
from stfm_jax.ops.tiles import Tiles
from stfm_jax.runtime.devices import make_mesh, replicate, shard
from stfm_jax.train.state import Optimizer, create, train_step

KEY = jax.random.key(1)
LEARNING_RATE = 5e-4


@dataclasses.dataclass(frozen=True)
class Ready:
    """A slide that lies on its devices, graph and all."""

    draw: Callable[[int], np.ndarray]  # evaluations -> a joint draw [n, g]
    spots: int  # n
    tile: int  # rows of a tile
    edges_kept: bool  # their features, over the evaluations

    @property
    def tiles(self) -> int:
        """Those that hold spots; the others cost nothing."""
        return -(-self.spots // self.tile)


def ready_to_draw(
    flow: STFlow,
    params: dict,
    arrays: FlowArrays,
    prepared: PreparedSlide,
    devices: int = 1,
    cache_bytes: int | None = None,
) -> Ready:
    """Puts a slide on its devices.

    Args:
      flow: settings.
      params: its parameters.
      arrays: fitted.
      prepared: the slide.
      devices: that share it, where it is done in one call.
      cache_bytes: forces the form driven from the host; see whole_slide.encode.
    """
    n = len(prepared.coords)

    def counted(evaluations: int) -> STFlow:
        return dataclasses.replace(flow, evaluations=evaluations)

    def ready(draw: Callable, tiles: Tiles, kept: bool) -> Ready:
        return Ready(draw, n, tiles.size, kept)

    if cache_bytes is None and (devices > 1 or not whole_slide.pays(n)):
        mesh = make_mesh(devices)
        params, arrays = replicate(mesh, (params, arrays))
        batch = sharded.batch_of(flow, mesh, prepared)
        size = batch.tiles.senders.size // devices
        return ready(
            lambda evaluations: sharded.sample(
                counted(evaluations), mesh, params, arrays, batch, KEY, 1
            )[0],
            batch.tiles,
            flow.network.edge_bytes(size) <= flow.edge_cache,
        )
    if devices != 1:
        raise ValueError(f"the form driven from the host is for one device, not {devices}.")
    rows = whole_slide.Rows.of(prepared)
    encoded = whole_slide.encode(flow, params, arrays, rows, cache_bytes=cache_bytes)
    return ready(
        lambda evaluations: next(
            whole_slide.sample(counted(evaluations), params, arrays, encoded, KEY, 1)
        ),
        encoded.chunks[0],
        encoded.features is not None,
    )


class Training:
    """Weights and optimizer on the devices of an order, and steps that move them."""

    def __init__(self, flow: STFlow, arrays: FlowArrays, order: Row):
        self.flow, self.mesh = flow, make_mesh(order["devices"])
        self.optimizer = Optimizer(learning_rate=LEARNING_RATE)
        self.arrays = replicate(self.mesh, arrays)
        key, width = jax.random.key(0), order["features"]
        self.state = replicate(self.mesh, create(flow, self.optimizer, key, self.arrays, width))

    def batch(self, prepared: PreparedSlide) -> Batch:
        """The slide on the devices, its graph included."""
        flow = self.flow
        return shard(self.mesh, collate([prepared], flow.neighbors, flow.tile, self.mesh.size))

    def step(self, batch: Batch) -> float:
        """New weights; returns the loss."""
        before = float(self.state.loss_sum), float(self.state.loss_count)
        self.state = jax.block_until_ready(
            train_step(self.flow, self.optimizer, self.mesh, self.state, self.arrays, [batch], KEY)
        )
        after = float(self.state.loss_sum), float(self.state.loss_count)
        return (after[0] - before[0]) / (after[1] - before[1])

    def gradient_arguments(self, batch: Batch) -> tuple:
        """Of `train.state._sums`, which is all of a step but the update of the weights."""
        state = self.state
        return self.flow, self.mesh, state.params, self.arrays, batch, KEY, state.step
