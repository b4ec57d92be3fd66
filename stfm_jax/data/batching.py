"""From prepared slides to padded batches of static shape.

A `PreparedSlide` holds what a network needs of one slide, on the host and unpadded. `collate` puts
one or several of them (or regions of them) side by side as one disconnected graph and pads it to
a bucket, so that few shapes, and few traces, serve a whole run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from stfm_jax.ops.context import Context
from stfm_jax.ops.frames import EdgeGeometry, edge_geometry
from stfm_jax.ops.neighbors import Graph, knn_graph, median_spacing
from stfm_jax.ops.tiles import Tiles, hilbert_order, tile

TILE = 256  # spots; its edges stay in a CPU's cache


@dataclasses.dataclass(frozen=True)
class PreparedSlide:
    """One slide, or a region of one, ready for a network; n spots, e edges."""

    name: str
    coords: np.ndarray  # [n, 2] float64, in units of the slide's spot spacing
    features: np.ndarray  # [n, f] float32, standardised
    anchor: np.ndarray  # [n, g] float32, what the model stands on
    expr: np.ndarray | None  # [n, g] float32 target, None when predicting
    place: np.ndarray  # [n] int32, row in the slide's input; noise is keyed to it
    context: Context | None = None  # what its spots see of other sections, [n, K]


class Batch(NamedTuple):
    """Padded union of slides, N spots in tiles; a pytree of arrays.

    Rows follow the space-filling curve where there are several tiles; `place` says whose they are.
    """

    features: jax.Array  # [N, f]
    anchor: jax.Array  # [N, g]
    expr: jax.Array  # [N, g], zeros when unknown
    slide: jax.Array  # [N] int32, which slide of the batch
    place: jax.Array  # [N] int32, row in the slide's input
    spot_mask: jax.Array  # [N] bool
    tiles: Tiles  # neighbours and their geometry
    context: Context | None = None  # [N, K], where the slides have it


def spacing_units(coords_um: np.ndarray) -> np.ndarray:
    """Coordinates in units of the slide's median neighbour spacing, float64."""
    return np.asarray(coords_um, np.float64) / median_spacing(coords_um)


def region(slide: PreparedSlide, rng: np.random.Generator, at_least: int) -> PreparedSlide:
    """A random region: the `n U(0, 1)` spots nearest to a random spot [STFlow].

    Args:
      slide: the whole slide.
      rng: its randomness.
      at_least: smallest region, so that every spot has its neighbours.
    """
    n = len(slide.coords)
    size = max(int(n * rng.uniform()), min(at_least, n))
    centre = slide.coords[rng.integers(n)]
    distance = ((slide.coords - centre) ** 2).sum(axis=1)
    return take(slide, np.sort(np.argsort(distance, kind="stable")[:size]))


def take(slide: PreparedSlide, index: np.ndarray) -> PreparedSlide:
    """Some of a slide's spots, in the order of `index`."""
    rows = {
        field: None if getattr(slide, field) is None else getattr(slide, field)[index]
        for field in ("coords", "features", "anchor", "expr", "place")
    }
    context = jax.tree.map(lambda a: a[index], slide.context)
    return dataclasses.replace(slide, **rows, context=context)


def bucket_size(n: int) -> int:
    """The padded number of spots: 32, 64, 128, 192, 256, 384, 512, ... (at most half padding)."""
    size = 32
    while size < n:
        if size >= 128 and size + size // 2 >= n:
            return size + size // 2
        size *= 2
    return size


def collate(
    slides: Sequence[PreparedSlide],
    k: int,
    tile_size: int = TILE,
    devices: int = 1,
    first_slide: int = 0,
) -> Batch:
    """Pads the disjoint union of slides to a bucket and cuts it into tiles.

    Args:
      slides: whole slides or regions; each gets its own graph.
      k: neighbours per spot (ties add to them).
      tile_size: spots of a tile; a smaller union is one tile on each device.
      devices: D, that share the rows: each has as many spots as every other, but for one.
      first_slide: index of the first, where a step has several batches: noise is keyed to it.
    """
    sizes = [len(s.coords) for s in slides]
    n = bucket_size(sum(sizes))
    size = min(-(-n // devices), tile_size)
    n = -(-n // (size * devices)) * size * devices
    if n > size:
        slides = [take(s, hilbert_order(s.coords)) for s in slides]
    row = _rows_of_spots(sum(sizes), n, devices)
    graph, geometry = _union([_neighborhood(s, k) for s in slides], sizes)

    def spots(arrays, dtype=np.float32):
        values = np.concatenate(arrays)
        out = np.zeros((n, *values.shape[1:]), dtype)
        out[row] = values
        return out

    index = [np.full(m, first_slide + i) for i, m in enumerate(sizes)]
    return Batch(
        features=spots([s.features for s in slides]),
        anchor=spots([s.anchor for s in slides]),
        expr=spots([np.zeros_like(s.anchor) if s.expr is None else s.expr for s in slides]),
        slide=spots(index, dtype=np.int32),
        place=spots([s.place for s in slides], dtype=np.int32),
        spot_mask=spots([np.ones(sum(sizes))], dtype=bool),
        tiles=tile(Graph(*(row[a] for a in graph)), geometry, n, size, devices=devices),
        context=jax.tree.map(lambda *a: spots(a, a[0].dtype), *(s.context for s in slides)),
    )


def _rows_of_spots(spots: int, rows: int, devices: int) -> np.ndarray:
    """The row of each spot: in order, the same number on every device, padding behind them."""
    shares = np.diff(np.arange(devices + 1) * spots // devices)
    starts = np.arange(devices) * (rows // devices)
    return np.concatenate([start + np.arange(m) for start, m in zip(starts, shares, strict=True)])


def in_order(batch: Batch, values: jax.Array) -> np.ndarray:
    """Rows [..., N, g] of a batch of one slide, as [..., n, g] in the order of its input."""
    mask = np.asarray(batch.spot_mask)
    place = np.asarray(batch.place)[mask]
    out = np.empty((*values.shape[:-2], len(place), values.shape[-1]), values.dtype)
    out[..., place, :] = np.asarray(values)[..., mask, :]
    return out


def _neighborhood(slide: PreparedSlide, k: int) -> tuple[Graph, EdgeGeometry]:
    graph = knn_graph(slide.coords, k)
    return graph, edge_geometry(slide.coords, graph)


def _union(parts: Sequence[tuple[Graph, EdgeGeometry]], sizes) -> tuple[Graph, EdgeGeometry]:
    """Graphs side by side, their rows shifted."""
    offsets = np.cumsum([0, *sizes[:-1]])
    graphs = [Graph(*(a + o for a in g)) for (g, _), o in zip(parts, offsets, strict=True)]
    return tuple(
        type(each[0])(*(np.concatenate(field) for field in zip(*each, strict=True)))
        for each in (graphs, [geometry for _, geometry in parts])
    )
