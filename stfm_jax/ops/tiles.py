"""A slide cut into tiles of spots along a space-filling curve, each with its halo of neighbours.

What a layer computes for the T spots of a tile needs those spots and the senders of their edges
that lie outside, the halo. So a slide of any size is done tile by tile in the memory of one tile
(and its edges stay in the cache). Several devices share a slide in the same way: each holds a run
of tiles, and before every layer receives the halo rows that others hold (`with_received`).

Every receiver's edges are a row of a table [T, K]; lists are of varying length, so rows are padded.
Host side, NumPy: once per slide, outside jit.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.ops.frames import EdgeGeometry
from stfm_jax.ops.neighbors import Graph

HILBERT_BITS = 16  # of each coordinate
AXIS = "spots"  # of the mesh of devices that share the rows of a batch


class Edges(NamedTuple):
    """Edges as the attention takes them: a list, or a table with a row per receiver."""

    senders: jax.Array  # [e] or [T, K] int32, rows of what is looked at
    receivers: jax.Array  # [e] ascending, or [T, 1] int32, rows of those that look
    mask: jax.Array  # [e] or [T, K] bool, False for padding


class Tiles(NamedTuple):
    """p tiles of T spots; row i of a slide is row i % T of tile i // T. A pytree of arrays.

    On D devices every leading axis is split; what is p and i then counts on one device.
    """

    halo: jax.Array  # [p, H] int32, rows outside the tile that its spots look at: `with_received`
    senders: jax.Array  # [p, T, K] int32, rows of [the tile's spots, its halo]
    mask: jax.Array  # [p, T, K] bool, False for padding
    geometry: EdgeGeometry  # leading axes [p, T, K], float32
    sends: jax.Array | None = None  # [D, D, S] int32, rows that a device (axis 0) sends to another

    @property
    def num_tiles(self) -> int:
        return self.senders.shape[0]

    @property
    def size(self) -> int:
        """T, spots of a tile."""
        return self.senders.shape[1]


def hilbert_order(coords: np.ndarray) -> np.ndarray:
    """Order [n] of spots [n, 2] along a Hilbert curve: near in the order is near in the plane."""
    low, extent = coords.min(axis=0), np.ptp(coords, axis=0).max()
    cells = (1 << HILBERT_BITS) - 1
    grid = (coords - low) / (extent if extent > 0 else 1.0) * cells
    x, y = grid[:, 0].astype(np.int64), grid[:, 1].astype(np.int64)
    index = np.zeros(len(coords), np.int64)
    for bit in reversed(range(HILBERT_BITS)):
        right, upper = (x >> bit) & 1, (y >> bit) & 1
        index = (index << 2) | (3 * right ^ upper)
        # Turn the quadrant so that the curve enters and leaves it where its neighbours do.
        flip = (upper == 0) & (right == 1)
        x, y = np.where(flip, cells - x, x), np.where(flip, cells - y, y)
        x, y = np.where(upper == 0, y, x), np.where(upper == 0, x, y)
    return np.argsort(index, kind="stable")


def tile(
    graph: Graph,
    geometry: EdgeGeometry,
    num_rows: int,
    size: int,
    dtype=np.float32,
    devices: int = 1,
) -> Tiles:
    """Cuts a graph into tiles of `size` consecutive rows.

    Args:
      graph: edges over rows that follow one another in space (see `hilbert_order`).
      geometry: of its edges.
      num_rows: rows with padding, a multiple of size and devices.
      size: T.
      dtype: of the geometry.
      devices: D; each gets as many tiles as every other.
    """
    receivers, senders = graph.receivers.astype(np.int64), graph.senders.astype(np.int64)
    p = num_rows // size
    degrees = graph.degrees(num_rows)
    slot = np.arange(len(receivers)) - (np.cumsum(degrees) - degrees)[receivers]
    here = receivers // size
    outside = senders // size != here
    wanted, position = np.unique(here[outside] * num_rows + senders[outside], return_inverse=True)
    at, row = wanted // num_rows, wanted % num_rows
    rank, width = _ranks(at, p)
    row, sends = _exchange(at * size, row, num_rows // devices, devices)
    halo = np.zeros((p, _halo_width(width)), np.int32)
    halo[at, rank] = row
    local = senders - here * size
    local[outside] = size + rank[position]
    table_width = _table_width(int(degrees.max(initial=1)))

    def table(values, kind):
        out = np.zeros((num_rows, table_width, *values.shape[1:]), kind)
        out[receivers, slot] = values
        return out.reshape(p, size, table_width, *values.shape[1:])

    return Tiles(
        halo=halo,
        senders=table(local, np.int32),
        mask=table(np.ones(len(receivers)), bool),
        geometry=EdgeGeometry(*(table(a, dtype) for a in geometry)),
        sends=sends,
    )


def with_received(tiles: Tiles, a: jax.Array) -> jax.Array:
    """Rows [n, ...] of a device, followed by those the others send it: what `halo` counts in.

    Inside a `shard_map` over AXIS; on one device just the rows.
    """
    if tiles.sends is None:
        return a
    received = jax.lax.all_to_all(a[tiles.sends[0]], AXIS, split_axis=0, concat_axis=0)
    return jnp.concatenate([a, received.reshape(-1, *a.shape[1:])])


def _exchange(
    receiver: np.ndarray, row: np.ndarray, per_device: int, devices: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Where rows that are looked at lie on the device of those who look, and who sends what.

    Args:
      receiver: [m] a row that looks.
      row: [m] the row looked at.
      per_device: rows of a device.
      devices: D.

    Returns:
      Place [m] in `with_received`, and sends [D, D, S], None for one device.
    """
    if devices == 1:
        return row, None
    to, source = receiver // per_device, row // per_device
    place = row - source * per_device
    far = to != source
    # By receiving device, then by row: each sender's rows follow one another.
    total = devices * per_device
    needed, inverse = np.unique(to[far] * total + row[far], return_inverse=True)
    pair = needed // total * devices + needed % total // per_device
    rank, most = _ranks(pair, devices**2)
    width = _halo_width(max(most, 1))
    sends = np.zeros((devices, devices, width), np.int32)
    sends[pair % devices, pair // devices, rank] = needed % per_device
    place[far] = per_device + source[far] * width + rank[inverse]
    return place, sends


def _ranks(groups: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Rank of each element of ascending `groups` in its group, and the largest group's size."""
    sizes = np.bincount(groups, minlength=count)
    first = np.cumsum(sizes) - sizes
    return np.arange(len(groups)) - first[groups], int(sizes.max(initial=0))


def edge_list(tiles: Tiles) -> Edges:
    """The edges of all tiles as one list over the rows of the slide, with its padding."""
    p, size, width = tiles.senders.shape
    start = size * jnp.arange(p)[:, None, None]
    outside = jnp.maximum(tiles.senders - size, 0).reshape(p, -1)
    from_halo = jnp.take_along_axis(tiles.halo, outside, axis=1).reshape(tiles.senders.shape)
    senders = jnp.where(tiles.senders < size, start + tiles.senders, from_halo)
    receivers = jnp.repeat(jnp.arange(p * size), width)
    return Edges(senders.reshape(-1), receivers, tiles.mask.reshape(-1))


# Few different widths, so that few traces serve all slides.


def _halo_width(most: int) -> int:
    return _up(most, 32 if most <= 256 else 128)


def _table_width(degree: int) -> int:
    return _up(degree, 1 if degree <= 12 else 4 if degree <= 32 else 32)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
