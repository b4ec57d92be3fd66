"""What every layer of a simulated H&E tile draws on: the tile's place, the tissue there, noise.

Everything here depends on the place in the slide alone, never on the tile that asks, so that layers
join from tile to tile. The layers are in `simulate_patches.py` and `simulate_nuclei.py`. [ours]
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy.ndimage import map_coordinates

from stfm_jax.data.simulate_tissue import Motion, Tissue, stream

TILE_PX = 256
MARGIN_UM = 24.0  # nuclei this far outside a tile may reach into it, or displace one that does
NOISE_SIDE = 512
_NODE_UM = 8.0  # spacing of the grid on which the tissue is evaluated


@dataclasses.dataclass(frozen=True)
class Nodes:
    """The tissue on a coarse grid around one tile; nodes lie at whole multiples of _NODE_UM."""

    first: np.ndarray  # [2] (x, y) number of the first node
    tile_um: np.ndarray  # [2] corner of the tile
    um_per_px: float
    inside: np.ndarray  # [ny, nx]
    mixtures: np.ndarray  # [ny, nx, types]
    fibres: np.ndarray  # [ny, nx, 2]
    radius_um: float

    @classmethod
    def around(
        cls, tissue: Tissue, motion: Motion, z_um: float, um_per_px: float, ix: int, iy: int
    ) -> Nodes:
        """The tissue around tile (ix, iy) of a section."""
        tile_um = np.array([ix, iy]) * TILE_PX * um_per_px
        size = TILE_PX * um_per_px
        first = np.floor((tile_um - MARGIN_UM) / _NODE_UM).astype(int)
        last = np.ceil((tile_um + size + MARGIN_UM) / _NODE_UM).astype(int)
        x, y = (np.arange(a, b + 1) * _NODE_UM for a, b in zip(first, last, strict=True))
        grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        points = motion.points(grid, z_um)
        shape = (len(y), len(x))
        return cls(
            first,
            tile_um,
            um_per_px,
            tissue.inside(points).astype(np.float32).reshape(shape),
            tissue.mixtures(points).reshape(*shape, -1),
            tissue.fibres(points).astype(np.float32).reshape(*shape, 2),
            tissue.radius_um,
        )

    def pixels(self, values: np.ndarray) -> np.ndarray:
        """Node values [ny, nx(, c)] interpolated at the tile's pixels [TILE_PX, TILE_PX(, c)]."""
        maps = []
        for axis, count in ((1, values.shape[0]), (0, values.shape[1])):
            at = self.tile_um[axis] + (np.arange(TILE_PX) + 0.5) * self.um_per_px
            at = at / _NODE_UM - self.first[axis]
            maps.append(np.maximum(0, 1 - abs(at[:, None] - np.arange(count))).astype(np.float32))
        flat = values.reshape(*values.shape[:2], -1).transpose(2, 0, 1)
        out = (maps[0] @ flat @ maps[1].T).transpose(1, 2, 0)
        return np.ascontiguousarray(out).reshape(TILE_PX, TILE_PX, *values.shape[2:])

    def at(self, points_um: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Node values [ny, nx(, c)] interpolated at slide coordinates [m, 2] -> [m(, c)]."""
        where = (points_um / _NODE_UM - self.first).T[::-1]
        planes = values.reshape(*values.shape[:2], -1)
        columns = [
            map_coordinates(planes[..., c], where, order=1, mode="nearest")
            for c in range(planes.shape[-1])
        ]
        return np.stack(columns, axis=-1).reshape(len(points_um), *values.shape[2:])

    def window(self, margin_um: float) -> tuple[np.ndarray, np.ndarray]:
        """Corners of the tile with a margin."""
        size = TILE_PX * self.um_per_px
        return self.tile_um - margin_um, self.tile_um + size + margin_um


@functools.cache
def periodic_noise(name: str, sigma_y: float, sigma_x: float) -> np.ndarray:
    """Periodic smooth noise [NOISE_SIDE, NOISE_SIDE] float32, mean 0 and variance 1."""
    white = np.fft.rfft2(stream(0, "noise", name).normal(size=(NOISE_SIDE, NOISE_SIDE)))
    wy, wx = np.fft.fftfreq(NOISE_SIDE), np.fft.rfftfreq(NOISE_SIDE)
    blur = np.exp(-2 * np.pi**2 * ((sigma_y * wy[:, None]) ** 2 + (sigma_x * wx) ** 2))
    blur[0, 0] = 0.0
    smooth = np.fft.irfft2(white * blur, s=(NOISE_SIDE, NOISE_SIDE))
    return (smooth / smooth.std()).astype(np.float32)


def noise_at(ix: int, iy: int, um_per_px: float) -> dict[str, np.ndarray]:
    """Noise textures [TILE_PX, TILE_PX] over a tile, continuous from tile to tile."""
    rows = (iy * TILE_PX + np.arange(TILE_PX)) % NOISE_SIDE
    columns = (ix * TILE_PX + np.arange(TILE_PX)) % NOISE_SIDE
    sigmas_um = {"fine": 1.2, "medium": 3.5, "cloud": 11.0, "bend_x": 14.0, "bend_y": 14.0}
    sigmas_px = {"grain": 0.5, **{k: s / um_per_px for k, s in sigmas_um.items()}}
    return {k: periodic_noise(k, s, s)[rows[:, None], columns] for k, s in sigmas_px.items()}


def step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    u = np.clip((x - low) / (high - low), 0, 1)
    return u * u * (3 - 2 * u)


def scatter(
    what: str,
    key: tuple[int, int],
    low: np.ndarray,
    high: np.ndarray,
    brick_um: float,
    side: int,
    spread: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Jittered grid points [m, 2] in a window with uniform draws [m, 8], keyed by brick.

    A brick's points depend on its place and the key alone, never on the window.

    Args:
      what: names the stream; key: (seed, section).
      low, high: [2] corners of the window, micrometres.
      brick_um: side of a brick, which holds `side` x `side` points.
      spread: half the jitter, relative to the points' spacing.
    """
    first, last = np.floor(low / brick_um).astype(int), np.floor(high / brick_um).astype(int)
    spacing = brick_um / side
    ticks = (np.arange(side) + 0.5) * spacing
    local = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    points, draws = [], []
    for by in range(first[1], last[1] + 1):
        for bx in range(first[0], last[0] + 1):
            # Keys must not be negative, and the window may reach below the slide's origin.
            rng = stream(key[0], what, key[1], bx + 2**31, by + 2**31)
            uniform = rng.uniform(size=(side * side, 10))
            shift = 2 * spread * spacing * (uniform[:, :2] - 0.5)
            points.append(np.array([bx, by]) * brick_um + local + shift)
            draws.append(uniform[:, 2:])
    points, draws = np.concatenate(points), np.concatenate(draws)
    keep = ((points >= low) & (points <= high)).all(axis=1)
    return points[keep], draws[keep]
