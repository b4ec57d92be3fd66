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
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.data.batching import PreparedSlide, bucket_size
from stfm_jax.data.feature_store import BLOCK, spans
from stfm_jax.flow import priors
from stfm_jax.flow.solvers import host_scan
from stfm_jax.models.stflow.flow import FlowArrays, STFlow
from stfm_jax.models.stflow.joint import draw_keys
from stfm_jax.nn.blocks import EdgeFeatures
from stfm_jax.nn.stflow_net import Layer, STFlowNet, run_tiles
from stfm_jax.ops.frames import edge_geometry
from stfm_jax.ops.neighbors import knn_graph
from stfm_jax.ops.tiles import Tiles, hilbert_order, tile
from stfm_jax.runtime import ahead

_LOG = logging.getLogger("stfm_jax")
CHUNK = 2_560  # spots of a step on a CPU, whose cores take several; accelerators take 50 times more

Progress = Callable[[int], None]  # is told the spots done


def pays(num_spots: int) -> bool:
    """Whether one device does a slide faster, or can only do it, in chunks rather than one call.

    An accelerator is filled by one call; the cores of a CPU are not.
    """
    return num_spots > (2 * CHUNK if jax.default_backend() == "cpu" else 20_000)


@dataclasses.dataclass(frozen=True)
class WholeSlide:
    """A slide encoded for its draws; N rows along the curve, a multiple of the chunk's."""

    row: np.ndarray  # [n] the row of each spot of the input
    place: jax.Array  # [N] int32
    tokens: jax.Array  # [N, d]
    mean: jax.Array  # [N, g] what draws are centred on
    chunks: list[Tiles]  # of equal shape
    features: list[list[EdgeFeatures]] | None  # of the edges, by block and chunk, if they fit

    @property
    def chunk_rows(self) -> int:
        return self.chunks[0].num_tiles * self.chunks[0].size


@dataclasses.dataclass(frozen=True)
class Rows:
    """A slide as the network takes it, its rows made block by block."""

    name: str
    coords: np.ndarray  # [n, 2] float64, in units of the slide's spot spacing
    place: np.ndarray  # [n] int32, row in the slide's input; noise is keyed to it
    blocks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]  # see `STFlow.prepare_blocks`

    @classmethod
    def of(cls, slide: PreparedSlide) -> Rows:
        """Rows of a slide in memory."""
        blocks = ((i, slide.features[i], slide.anchor[i]) for i in spans(len(slide.coords)))
        return cls(slide.name, slide.coords, slide.place, blocks)


def encode(
    flow: STFlow,
    params: dict,
    arrays: FlowArrays,
    slide: Rows,
    chunk: int = 0,
    cache_bytes: int | None = None,
) -> WholeSlide:
    """Everything that depends on the slide alone: tokens, mean, graph, and frames if they fit.

    Args:
      flow: the method.
      params: its parameters.
      arrays: fitted.
      slide: to predict.
      chunk: spots of a step, rounded to whole tiles; 0: by the kind of device.
      cache_bytes: edge features are kept in so much memory, or computed at every evaluation; None:
        as the flow says.
    """
    n, network = len(slide.coords), flow.network
    chunk = chunk or CHUNK * (1 if jax.default_backend() == "cpu" else 50)
    per_chunk = -(-min(chunk, bucket_size(n)) // flow.tile)
    rows = per_chunk * flow.tile
    total = -(-n // rows) * rows
    with _stage(slide, "neighbours"):
        order = hilbert_order(slide.coords)
        chunks = _chunks(slide.coords[order], flow, total, per_chunk)
    row = np.empty(n, np.int64)
    row[order] = np.arange(n)
    with _stage(slide, "features, neighbourhoods and anchor"):
        tokens, mean = _encode_blocks(flow, params, arrays, slide.blocks, row, total)
    made = WholeSlide(
        row=row,
        place=jnp.asarray(_fill(slide.place[order], total)),
        tokens=tokens,
        mean=mean,
        chunks=chunks,
        features=None,
    )
    size = network.edge_bytes(sum(tiles.senders.size for tiles in chunks))
    kept = size <= (flow.edge_cache if cache_bytes is None else cache_bytes)
    _LOG.info(
        "%s: %d spots in tiles of %d, %d at a time; edge features (%.1f GiB) %s",
        slide.name or "slide",
        n,
        flow.tile,
        per_chunk,
        size / 2**30,
        "kept" if kept else "computed at every evaluation",
    )
    if not kept:
        return made
    features = [
        _of_all(functools.partial(_encode_layer, network, layer), chunks)
        for layer in network.layers(params["flow"])
    ]
    return dataclasses.replace(made, features=features)


def _chunks(coords: np.ndarray, flow: STFlow, total: int, per_chunk: int) -> list[Tiles]:
    graph = knn_graph(coords, flow.neighbors)
    tiles = tile(graph, edge_geometry(coords, graph), total, flow.tile)

    def part(first: int) -> Tiles:
        return jax.tree.map(lambda a: a[first : first + per_chunk], tiles)

    return [jax.device_put(part(i)) for i in range(0, tiles.num_tiles, per_chunk)]


def _encode_blocks(
    flow: STFlow, params, arrays, blocks, row: np.ndarray, total: int
) -> tuple[jax.Array, jax.Array]:
    """Tokens and mean, N rows each, from blocks of the slide's spots in whatever order."""
    size = min(BLOCK, bucket_size(len(row)))  # of every call, so that one trace serves all
    tokens = np.zeros((total, flow.network.width), np.float32)
    mean = np.zeros((total, flow.network.num_genes), np.float32)
    for spots, features, anchor in blocks:
        filled = (_fill(features, size), _fill(anchor, size))
        encoded = _encode_rows(flow, params, arrays, *filled)
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
    flow: STFlow,
    params: dict,
    arrays: FlowArrays,
    slide: WholeSlide,
    key: jax.Array,
    draws: int,
    progress: Progress = lambda spots: None,
) -> np.ndarray:
    """`STFlow.posterior_mean` [n, g], in the order of the input."""
    if flow.mean_is_closed:
        return np.asarray(flow.supported(slide.mean))[slide.row]
    network = _evaluator(flow, params, slide, progress)
    total = 0.0
    for one in draw_keys(key, draws):
        x_0 = _prior(flow, arrays, slide, one)
        total = total + flow.first_estimate(network, arrays.path, x_0, slide.mean)
    return np.asarray(flow.supported(total / draws))[slide.row]


def sample(
    flow: STFlow,
    params: dict,
    arrays: FlowArrays,
    slide: WholeSlide,
    key: jax.Array,
    draws: int,
    progress: Progress = lambda spots: None,
) -> Iterator[np.ndarray]:
    """Draws of `STFlow.sample`, one by one, each [n, g] in the order of the input."""
    network = _evaluator(flow, params, slide, progress)

    def draw(key: jax.Array) -> np.ndarray:
        x_0 = _prior(flow, arrays, slide, key)
        return np.asarray(flow.draw(network, arrays.path, x_0, slide.mean, host_scan))[slide.row]

    return map(draw, draw_keys(key, draws))  # nothing of a draw is held during the next


def _evaluator(flow: STFlow, params: dict, slide: WholeSlide, progress: Progress):
    """(state [N, g], t) -> network output [N, g], chunk by chunk, block by block."""
    network, weights, rows = flow.network, params["flow"], slide.chunk_rows

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
        return flow.gate(t) * total / network.num_blocks

    return evaluate


def _block(network: STFlowNet, layer: Layer, h, y, slide: WholeSlide, index: int, progress):
    rows = slide.chunk_rows

    def one(i):
        c = i // rows
        tiles = slide.chunks[c]
        features = tiles.geometry if slide.features is None else slide.features[index][c]
        inputs = _rows_of(h, y, i, tiles.halo, rows)
        out = _run_tiles(network, layer, *inputs, features, tiles.senders, tiles.mask)
        progress(rows)
        return out

    return _joined(one, len(h), rows)


def _prior(flow: STFlow, arrays: FlowArrays, slide: WholeSlide, key: jax.Array) -> jax.Array:
    rows, total = slide.chunk_rows, len(slide.place)
    (x_0,) = _joined(
        lambda i: (_draw_prior(arrays.prior, key, slide.place[i : i + rows]),), total, rows
    )
    return x_0


def _joined(part: Callable, total: int, rows: int) -> tuple[jax.Array, ...]:
    """Results of `part(i)`, tuples of [rows, ...], for the chunks that start at row i, joined."""
    parts = _of_all(part, range(0, total, rows))
    return tuple(jnp.concatenate(column) for column in zip(*parts, strict=True))


def _of_all(function: Callable, inputs: Sequence) -> list:
    """The function's results, some chunks at once."""

    def done(each):
        return jax.block_until_ready(function(each))

    return list(ahead.computed(done, inputs, ahead.threads(), len(inputs)))


def _fill(values: np.ndarray, size: int) -> np.ndarray:
    """Values [m, ...] made [size, ...] by repeating the first."""
    return np.concatenate(
        [values, np.broadcast_to(values[0], (size - len(values), *values.shape[1:]))]
    )


# What is compiled: once for all chunks of all slides.


@functools.partial(jax.jit, static_argnums=0)
def _encode_rows(flow: STFlow, params, arrays, features, anchor):
    tokens = flow.network.encode_features(params["flow"], features)
    said = None if flow.image is None else flow.image.apply(params["image"], features)
    return tokens, flow.mean(arrays, anchor, said)


@functools.partial(jax.jit, static_argnums=0)
def _encode_layer(network: STFlowNet, layer: Layer, tiles: Tiles) -> EdgeFeatures:
    return network.encode_layer(layer, tiles)


@functools.partial(jax.jit, static_argnums=0)
def _embed(network: STFlowNet, params, x, t, tokens):
    return network.embed(params, x, t, tokens)


@functools.partial(jax.jit, static_argnames="rows")
def _rows_of(h, y, start, halo, rows: int):
    """A chunk's own rows and its halo's; compiled for every slide size, but quickly."""
    own = (jax.lax.dynamic_slice_in_dim(a, start, rows) for a in (h, y))
    return *own, h[halo], y[halo]


@functools.partial(jax.jit, static_argnums=0)
def _run_tiles(network: STFlowNet, layer: Layer, h, y, h_halo, y_halo, features, senders, mask):
    block = functools.partial(network.block, layer)
    return run_tiles(block, h, y, h_halo, y_halo, features, senders, mask)


@jax.jit
def _draw_prior(prior: priors.Prior, key, place):
    return priors.sample(prior, priors.spot_keys(key, jnp.zeros_like(place), place))
