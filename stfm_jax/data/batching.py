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

from stfm_jax.ops.frames import edge_geometry
from stfm_jax.ops.neighbors import knn_graph, median_spacing


@dataclasses.dataclass(frozen=True)
class PreparedSlide:
    """One slide, or a region of one, ready for a network; n spots, e edges."""

    name: str
    coords: np.ndarray  # [n, 2] float64, in units of the slide's spot spacing
    features: np.ndarray  # [n, f] float32, standardised
    anchor: np.ndarray  # [n, g] float32, what the model stands on
    expr: np.ndarray | None  # [n, g] float32 target, None when predicting
    place: np.ndarray  # [n] int32, row in the slide's input; noise is keyed to it


class Batch(NamedTuple):
    """Padded union of slides; N spots, E edges; a pytree of arrays."""

    features: jax.Array  # [N, f]
    anchor: jax.Array  # [N, g]
    expr: jax.Array  # [N, g], zeros when unknown
    slide: jax.Array  # [N] int32, which slide of the batch
    place: jax.Array  # [N] int32
    spot_mask: jax.Array  # [N] bool
    senders: jax.Array  # [E] int32
    receivers: jax.Array  # [E] int32, ascending
    edge_mask: jax.Array  # [E] bool
    pca: jax.Array  # [E, 2] float32, see ops.frames.EdgeGeometry
    edge: jax.Array  # [E, 2]
    distance: jax.Array  # [E]
    blend: jax.Array  # [E]


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
    index = np.sort(np.argsort(distance, kind="stable")[:size])
    return dataclasses.replace(
        slide,
        **{
            f: None if getattr(slide, f) is None else getattr(slide, f)[index]
            for f in ("coords", "features", "anchor", "expr", "place")
        },
    )


def bucket_size(n: int) -> int:
    """The padded number of spots: 32, 64, 128, 192, 256, 384, 512, ... (at most half padding)."""
    size = 32
    while size < n:
        if size >= 128 and size + size // 2 >= n:
            return size + size // 2
        size *= 2
    return size


def collate(slides: Sequence[PreparedSlide], k: int) -> Batch:
    """Pads the disjoint union of slides to a bucket.

    Args:
      slides: whole slides or regions; each gets its own graph.
      k: neighbours per spot (ties add to them).
    """
    graphs = [knn_graph(s.coords, k) for s in slides]
    geometry = [edge_geometry(s.coords, g) for s, g in zip(slides, graphs, strict=True)]
    sizes = [len(s.coords) for s in slides]
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    n = bucket_size(sum(sizes))
    # Room for ties: k + 2 neighbours on average, growing in steps of k where a lattice has more.
    degree = k + 2
    while n * degree < sum(len(g.senders) for g in graphs):
        degree += k
    e = n * degree

    def spots(arrays, fill=0.0, dtype=np.float32):
        return _pad(np.concatenate(arrays), n, fill, dtype)

    def edges(arrays, fill=0.0, dtype=np.float32):
        return _pad(np.concatenate(arrays), e, fill, dtype)

    def shifted(field):
        return [getattr(g, field) + o for g, o in zip(graphs, offsets, strict=True)]

    return Batch(
        features=spots([s.features for s in slides]),
        anchor=spots([s.anchor for s in slides]),
        expr=spots([np.zeros_like(s.anchor) if s.expr is None else s.expr for s in slides]),
        slide=spots([np.full(m, i) for i, m in enumerate(sizes)], dtype=np.int32),
        place=spots([s.place for s in slides], dtype=np.int32),
        spot_mask=spots([np.ones(sum(sizes))], dtype=bool),
        senders=edges(shifted("senders"), fill=n - 1, dtype=np.int32),
        receivers=edges(shifted("receivers"), fill=n - 1, dtype=np.int32),
        edge_mask=edges([np.ones(sum(len(g.senders) for g in graphs))], dtype=bool),
        pca=edges([g.pca for g in geometry]),
        edge=edges([g.edge for g in geometry]),
        distance=edges([g.distance for g in geometry]),
        blend=edges([g.blend for g in geometry]),
    )


def _pad(values: np.ndarray, size: int, fill, dtype) -> np.ndarray:
    out = np.full((size, *values.shape[1:]), fill, dtype=dtype)
    out[: len(values)] = values
    return out
