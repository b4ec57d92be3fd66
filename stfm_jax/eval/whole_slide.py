"""Slides of any size: the same network, driven from the host over chunks of tiles.

What does the work is compiled once, for a chunk of fixed shape, whatever the slide's size. Memory
beyond a chunk is that of the slide's own rows: tokens, state and expression, never its edges'
features unless they fit. Draws equal those of `STFlow.sample`, noise being keyed to the spot.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.data.batching import PreparedSlide, bucket_size
from stfm_jax.data.rows import BLOCK, spans
from stfm_jax.flow import priors
from stfm_jax.flow.solvers import host_scan
from stfm_jax.models.stflow import FlowArrays, STFlow, draw_keys
from stfm_jax.nn.stflow_net import Layer, STFlowNet, map_tiles, run_tiles
from stfm_jax.ops.frames import edge_geometry
from stfm_jax.ops.neighbors import knn_graph
from stfm_jax.ops.tiles import Tiles, hilbert_order, tile

_LOG = logging.getLogger("stfm_jax")
ABOVE = 20_000  # spots; smaller slides are one call
CHUNK = 4_096  # spots of a step on a CPU; accelerators take 32 times as many

Progress = Callable[[int], None]  # is told the spots done


@dataclasses.dataclass(frozen=True)
class WholeSlide:
    """A slide encoded for its draws; N rows along the curve, a multiple of the chunk's."""

    row: np.ndarray  # [n] the row of each spot of the input
    place: jax.Array  # [N] int32
    tokens: jax.Array  # [N, d]
    mean: jax.Array  # [N, g] what draws are centred on
    tiles: Tiles
    frames: list[list[jax.Array]] | None  # F_ij of every block and chunk, if they fit
    tiles_per_chunk: int

    @property
    def num_chunks(self) -> int:
        return self.tiles.num_tiles // self.tiles_per_chunk

    @property
    def chunk_rows(self) -> int:
        return self.tiles_per_chunk * self.tiles.size


@dataclasses.dataclass(frozen=True)
class Rows:
    """A slide as the network takes it, its rows made block by block."""

    name: str
    coords: np.ndarray  # [n, 2] float64, in units of the slide's spot spacing
    place: np.ndarray  # [n] int32, row in the slide's input; noise is keyed to it
    blocks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]  # see `STFlow.prepare_blocks`

    @classmethod
    def of(cls, slide: PreparedSlide) -> Rows:
        """Of a slide in memory."""
        blocks = ((i, slide.features[i], slide.anchor[i]) for i in spans(len(slide.coords)))
        return cls(slide.name, slide.coords, slide.place, blocks)


def encode(
    task: STFlow,
    params: dict,
    arrays: FlowArrays,
    slide: Rows,
    chunk: int = 0,
    cache_bytes: int | None = None,
) -> WholeSlide:
    """Everything that depends on the slide alone: tokens, mean, graph, and frames if they fit.

    Args:
      task: the method.
      params: its parameters.
      arrays: fitted.
      slide: to predict.
      chunk: spots of a step, rounded to whole tiles; 0: by the kind of device.
      cache_bytes: edge features are kept in so much memory, or computed at every evaluation; None:
        as the task says.
    """
    n, network = len(slide.coords), task.network
    chunk = chunk or CHUNK * (1 if jax.default_backend() == "cpu" else 32)
    per_chunk = -(-min(chunk, bucket_size(n)) // task.tile)
    rows = per_chunk * task.tile
    total = -(-n // rows) * rows
    with _stage(slide, "neighbours"):
        order = hilbert_order(slide.coords)
        tiles = _tiles(slide.coords[order], task, total)
    row = np.empty(n, np.int64)
    row[order] = np.arange(n)
    with _stage(slide, "features, neighbourhoods and anchor"):
        tokens, mean = _encode_blocks(task, params, arrays, slide.blocks, row, total)
    made = WholeSlide(
        row=row,
        place=jnp.asarray(_fill(slide.place[order], total)),
        tokens=tokens,
        mean=mean,
        tiles=tiles,
        frames=None,
        tiles_per_chunk=per_chunk,
    )
    size = network.edge_bytes(tiles)
    kept = size <= (task.edge_cache if cache_bytes is None else cache_bytes)
    _LOG.info(
        "%s: %d spots in %d tiles of %d, %d at a time; edge features (%.1f GiB) %s",
        slide.name or "slide",
        n,
        tiles.num_tiles,
        tiles.size,
        per_chunk,
        size / 2**30,
        "kept" if kept else "computed at every evaluation",
    )
    if not kept:
        return made
    frames = [
        [
            _encode_edges(network, layer, *_chunk((made.tiles.geometry, made.tiles.mask), made, c))
            for c in range(made.num_chunks)
        ]
        for layer in network.layers(params["flow"])
    ]
    return dataclasses.replace(made, frames=frames)


def _tiles(coords: np.ndarray, task: STFlow, total: int) -> Tiles:
    graph = knn_graph(coords, task.neighbors)
    return jax.device_put(tile(graph, edge_geometry(coords, graph), total, task.tile))


def _encode_blocks(
    task: STFlow, params, arrays, blocks, row: np.ndarray, total: int
) -> tuple[jax.Array, jax.Array]:
    """Tokens and mean, N rows each, from blocks of the slide's spots in whatever order."""
    size = min(BLOCK, bucket_size(len(row)))  # of every call, so that one trace serves all
    tokens = np.zeros((total, task.network.width), np.float32)
    mean = np.zeros((total, task.network.num_genes), np.float32)
    for spots, features, anchor in blocks:
        filled = (_fill(features, size), _fill(anchor, size))
        encoded = _encode_rows(task, params, arrays, *filled)
        for out, values in zip((tokens, mean), encoded, strict=True):
            out[row[spots]] = np.asarray(values)[: len(spots)]
    return jnp.asarray(tokens), jnp.asarray(mean)


@contextlib.contextmanager
def _stage(slide: Rows, what: str) -> Iterator[None]:
    """Logs how long a stage of the preparation took."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    _LOG.info("%s: %s of %d spots: %.0f s", slide.name, what, len(slide.coords), seconds)


def posterior_mean(
    task: STFlow,
    params: dict,
    arrays: FlowArrays,
    slide: WholeSlide,
    key: jax.Array,
    draws: int,
    progress: Progress = lambda spots: None,
) -> np.ndarray:
    """As `STFlow.posterior_mean`, in the order of the input, [n, g]."""
    if task.mean_is_closed:
        return np.asarray(task.supported(slide.mean))[slide.row]
    network = _evaluator(task, params, slide, progress)
    total = 0.0
    for one in draw_keys(key, draws):
        x_0 = _prior(task, arrays, slide, one)
        total = total + task.first_estimate(network, arrays, x_0, slide.mean)
    return np.asarray(task.supported(total / draws))[slide.row]


def sample(
    task: STFlow,
    params: dict,
    arrays: FlowArrays,
    slide: WholeSlide,
    key: jax.Array,
    draws: int,
    progress: Progress = lambda spots: None,
) -> Iterator[np.ndarray]:
    """As `STFlow.sample`, draw by draw, each [n, g] in the order of the input."""
    network = _evaluator(task, params, slide, progress)

    def draw(key: jax.Array) -> np.ndarray:
        x_0 = _prior(task, arrays, slide, key)
        return np.asarray(task.draw(network, arrays, x_0, slide.mean, host_scan))[slide.row]

    return map(draw, draw_keys(key, draws))  # nothing of a draw is held during the next


def _evaluator(task: STFlow, params: dict, slide: WholeSlide, progress: Progress):
    """(state [N, g], t) -> network output [N, g], chunk by chunk, block by block."""
    network, weights, rows = task.network, params["flow"], slide.chunk_rows

    def evaluate(x, t):
        (h,) = _joined(
            lambda i: (_embed(network, weights, x[i : i + rows], t, slide.tokens[i : i + rows]),),
            len(x),
            rows,
        )
        y, total = x, jnp.zeros_like(x)
        for i, layer in enumerate(network.layers(weights)):
            h, head = _block(network, layer, h, y, slide, i, progress)
            total, y = total + head, network.next_state(x, head)
        return task.gate(t) * total / network.num_blocks

    return evaluate


def _block(network: STFlowNet, layer: Layer, h, y, slide: WholeSlide, index: int, progress):
    rows, tiles = slide.chunk_rows, slide.tiles

    def one(i):
        c = i // rows
        halo, geometry, senders, mask = _chunk(
            (tiles.halo, tiles.geometry, tiles.senders, tiles.mask), slide, c
        )
        frames = geometry if slide.frames is None else slide.frames[index][c]
        own = h[i : i + rows], y[i : i + rows]
        out = _run_tiles(network, layer, *own, h[halo], y[halo], frames, senders, mask)
        progress(rows)
        return jax.block_until_ready(out)

    return _joined(one, len(h), rows)


def _prior(task: STFlow, arrays: FlowArrays, slide: WholeSlide, key: jax.Array) -> jax.Array:
    rows, total = slide.chunk_rows, len(slide.place)
    (x_0,) = _joined(
        lambda i: (_draw_prior(arrays.prior, key, slide.place[i : i + rows]),), total, rows
    )
    return x_0


def _chunk(arrays, slide: WholeSlide, c: int):
    """The tiles of chunk c of arrays [p, ...]."""
    m = slide.tiles_per_chunk
    return jax.tree.map(lambda a: a[c * m : (c + 1) * m], arrays)


def _joined(part: Callable, total: int, rows: int) -> tuple[jax.Array, ...]:
    """Results of `part(i)`, tuples of [rows, ...], for the chunks that start at row i, joined."""
    with ThreadPoolExecutor(_workers()) as pool:
        parts = list(pool.map(part, range(0, total, rows)))
    return tuple(jnp.concatenate(column) for column in zip(*parts, strict=True))


def _fill(values: np.ndarray, size: int) -> np.ndarray:
    """Values [m, ...] made [size, ...] by repeating the first."""
    return np.concatenate(
        [values, np.broadcast_to(values[0], (size - len(values), *values.shape[1:]))]
    )


def _workers() -> int:
    """Chunks at once: XLA's CPU code leaves cores idle between the small steps of one."""
    return os.cpu_count() or 1 if jax.default_backend() == "cpu" else 1


# What is compiled: once for all chunks of all slides.


@functools.partial(jax.jit, static_argnums=0)
def _encode_rows(task: STFlow, params, arrays, features, anchor):
    tokens = task.network.encode_features(params["flow"], features)
    return tokens, task.mean(params, arrays, features, anchor)


@functools.partial(jax.jit, static_argnums=0)
def _encode_edges(network: STFlowNet, layer: Layer, geometry, mask):
    return map_tiles(functools.partial(network.encode_frames, layer), geometry, mask)


@functools.partial(jax.jit, static_argnums=0)
def _embed(network: STFlowNet, params, x, t, tokens):
    return network.embed(params, x, t, tokens)


@functools.partial(jax.jit, static_argnums=0)
def _run_tiles(network: STFlowNet, layer: Layer, h, y, h_halo, y_halo, frames, senders, mask):
    block = functools.partial(network.block, layer)
    return run_tiles(block, h, y, h_halo, y_halo, frames, senders, mask)


@jax.jit
def _draw_prior(prior: priors.Prior, key, place):
    return priors.sample(prior, priors.spot_keys(key, jnp.zeros_like(place), place))
