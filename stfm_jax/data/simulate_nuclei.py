"""Nuclei of a simulated H&E tile: where they lie, how they look, and painting them. [ours]"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.spatial import cKDTree

from stfm_jax.data.simulate_canvas import (
    MARGIN_UM,
    NOISE_SIDE,
    TILE_PX,
    Nodes,
    periodic_noise,
    scatter,
    step,
)
from stfm_jax.data.simulate_tissue import CELL_TYPES, cell_density

_BRICK_UM, _BRICK_SIDE = 56.0, 8  # nuclei are drawn in bricks of 8 x 8 candidates, 7 um apart


@dataclasses.dataclass(frozen=True)
class Nuclei:
    """Nuclei that may touch a tile."""

    centers_um: np.ndarray  # [m, 2] slide coordinates
    half_axes_um: np.ndarray  # [m, 2]
    angle: np.ndarray  # [m]
    stain: np.ndarray  # [m]
    chromatin: np.ndarray  # [m]
    draws: np.ndarray  # [m, 4] uniform: lobe phase, lobe size, texture offsets

    def __len__(self) -> int:
        return len(self.angle)


def draw_nuclei(nodes: Nodes, key: tuple[int, int]) -> Nuclei:
    """The nuclei in and around a tile: thinned to the local density, typed by the local mixture."""
    points, draws = scatter("nuclei", key, *nodes.window(MARGIN_UM), _BRICK_UM, _BRICK_SIDE, 0.48)
    mixtures = nodes.at(points, nodes.mixtures)
    chance = cell_density(mixtures) * (_BRICK_UM / _BRICK_SIDE) ** 2
    keep = (draws[:, 0] < 1.25 * chance) & (nodes.at(points, nodes.inside) > 0)
    points, draws, mixtures = points[keep], draws[keep], mixtures[keep]
    kind = (draws[:, 1, None] > np.cumsum(mixtures, axis=1)).sum(axis=1)
    kind = np.minimum(kind, len(CELL_TYPES) - 1)
    look = {
        field: np.array([getattr(cell, field) for cell in CELL_TYPES])[kind]
        for field in ("radius_um", "aspect", "stain", "chromatin", "along")
    }
    radius = look["radius_um"] * np.exp(0.32 * (draws[:, 2] - 0.5) * (1 + look["chromatin"]))
    aspect = 1 + (look["aspect"] - 1) * (0.5 + draws[:, 3])
    nuclei = Nuclei(
        centers_um=points,
        half_axes_um=np.stack([radius * np.sqrt(aspect), radius / np.sqrt(aspect)], axis=1),
        angle=_angles(nodes, points, look["along"], draws[:, 4]),
        stain=look["stain"] * (0.75 + 0.5 * draws[:, 5]),
        chromatin=look["chromatin"],
        draws=draws[:, [6, 7, 2, 4]],
    )
    return _without_overlaps(nuclei, priority=draws[:, 7])


def _angles(nodes: Nodes, points: np.ndarray, along: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Orientation of the nuclei [m]: along the fibres where `along` is 1, else any."""
    dy, dx = np.gradient(nodes.fibres[..., 0])
    slope = nodes.at(points, np.stack([dx, dy], axis=-1))
    fibre = np.arctan2(slope[:, 1], slope[:, 0]) + np.pi / 2
    return fibre + (uniform - 0.5) * (np.pi - (np.pi - 0.5) * along)


def _without_overlaps(nuclei: Nuclei, priority: np.ndarray) -> Nuclei:
    """Drops each nucleus that overlaps another of higher priority (Matern's second process).

    The rule looks only at close pairs, so it decides alike in every tile that sees them.
    """
    radius = np.sqrt(nuclei.half_axes_um.prod(axis=1))
    pairs = cKDTree(nuclei.centers_um).query_pairs(MARGIN_UM / 2, output_type="ndarray")
    a, b = pairs.T
    apart = np.linalg.norm(nuclei.centers_um[a] - nuclei.centers_um[b], axis=1)
    close = apart < 0.85 * (radius[a] + radius[b])
    a, b = a[close], b[close]
    keep = np.ones(len(nuclei), bool)
    keep[np.where(priority[a] < priority[b], a, b)] = False
    return Nuclei(*(getattr(nuclei, f.name)[keep] for f in dataclasses.fields(Nuclei)))


def paint_nuclei(
    haem: np.ndarray, eosin: np.ndarray, nodes: Nodes, nuclei: Nuclei
) -> tuple[np.ndarray, np.ndarray]:
    """Paints nuclei over the background."""
    cover = np.zeros((TILE_PX, TILE_PX), np.float32)
    stain = np.zeros((TILE_PX, TILE_PX), np.float32)
    centers_px = (nuclei.centers_um - nodes.tile_um) / nodes.um_per_px - 0.5
    reach = 1.3 * nuclei.half_axes_um[:, 0] / nodes.um_per_px + 1
    order = np.argsort(reach)
    # Stamps of similar size are computed together, in one array each.
    for group in np.array_split(order, max(1, min(8, len(order) // 16))):
        if len(group) == 0:
            continue
        half = int(np.ceil(reach[group].max()))
        base = np.round(centers_px[group]).astype(int)
        alpha, dark = _stamps(nuclei, group, centers_px[group] - base, half, nodes.um_per_px)
        for (x, y), a, d in zip(base, alpha, dark, strict=True):
            rows, columns = _overlap(y, half), _overlap(x, half)
            if rows is None or columns is None:
                continue
            part = (rows[0], columns[0])
            fresh = a[rows[1], columns[1]] * (1 - cover[part])
            cover[part] += fresh
            stain[part] += fresh * d[rows[1], columns[1]]
    return haem * (1 - cover) + stain, eosin * (1 - 0.75 * cover)


def _overlap(center: int, half: int) -> tuple[slice, slice] | None:
    """Where a stamp of `half` around `center` meets the tile: slices of the tile and the stamp."""
    low, high = max(center - half, 0), min(center + half + 1, TILE_PX)
    if low >= high:
        return None
    return slice(low, high), slice(low - center + half, high - center + half)


def _stamps(
    nuclei: Nuclei, group: np.ndarray, offset_px: np.ndarray, half: int, um_per_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Cover and haematoxylin of some nuclei on small squares [b, 2 half + 1, 2 half + 1]."""
    ticks = np.arange(-half, half + 1, dtype=np.float32)
    x = (ticks[None, None, :] - offset_px[:, 0, None, None].astype(np.float32)) * um_per_px
    y = (ticks[None, :, None] - offset_px[:, 1, None, None].astype(np.float32)) * um_per_px
    pick = {f.name: getattr(nuclei, f.name)[group] for f in dataclasses.fields(Nuclei)}
    pick = {k: v.astype(np.float32)[:, None, None] for k, v in pick.items()}
    half_axes, draws = pick["half_axes_um"], pick["draws"]
    c, s = np.cos(pick["angle"]), np.sin(pick["angle"])
    u = (c * x + s * y) / half_axes[..., 0]
    v = (c * y - s * x) / half_axes[..., 1]
    # Two harmonics bend the ellipse, so that no two nuclei have the same outline.
    lobes = 2 * np.pi * draws[..., 0]
    square = u * u + v * v + 1e-6
    bend = (u * u - v * v) * np.cos(lobes) + 2 * u * v * np.sin(lobes)
    radius = np.sqrt(square) * (1 + 0.22 * (draws[..., 1] - 0.3) * bend / square)
    radius += 0.08 * u * (draws[..., 1] - 0.5)
    soft = 0.55 * max(um_per_px, 0.7) / np.sqrt(half_axes[..., 0] * half_axes[..., 1])
    alpha = step(radius, 1 + soft, 1 - soft)
    texture = _chromatin(x, y, draws)
    rim = np.exp(-(((radius - 0.88) / 0.18) ** 2))
    chromatin = pick["chromatin"]
    dark = pick["stain"] * (1 - 0.12 * chromatin + chromatin * (0.28 * texture + 0.40 * rim))
    return alpha, np.maximum(dark, 0.15)


def _chromatin(x: np.ndarray, y: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Clumped chromatin: noise in the nucleus's own place of a periodic texture."""
    noise = periodic_noise("chromatin", 2.2, 2.2)  # half-micrometre texels
    rows = (2 * y + NOISE_SIDE * draws[..., 2]).astype(int) % NOISE_SIDE
    columns = (2 * x + NOISE_SIDE * draws[..., 3]).astype(int) % NOISE_SIDE
    return noise[rows, columns]
