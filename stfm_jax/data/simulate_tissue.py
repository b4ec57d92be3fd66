"""The simulated tissue itself: what lies at a point (x, y, z), in micrometres.

Domains, cell-type mixtures, hidden gene programs, fibre directions and the outline are functions of
a point, built from smooth random fields: the same at any resolution, in any section, in any order.
Sections, spots and counts are made in `simulate.py`, images in `simulate_patches.py`. [ours]
"""

from __future__ import annotations

import dataclasses

import numpy as np

DOMAINS = ("tumour", "stroma", "immune", "fat", "necrosis")

# The outline's random field is clipped here, so that tissue lies within a known radius.
_OUTLINE_CLIP, _OUTLINE_SWING = 2.0, 0.3


@dataclasses.dataclass(frozen=True)
class CellType:
    """How often a cell type occurs, how much RNA it holds and how its nucleus looks."""

    name: str
    shares: tuple[float, ...]  # [domains] relative share of the cells in each domain
    area_um2: float  # tissue area that one cell takes
    rna: float  # relative RNA content of one cell
    radius_um: float  # of the nucleus, geometric mean of its half-axes
    aspect: float  # long half-axis over short half-axis
    stain: float  # haematoxylin of the nucleus, relative
    chromatin: float  # contrast of the chromatin texture, 0 (smudged) to 1 (coarse, with a rim)
    along: float  # 1: the long axis follows the fibres, 0: any direction


# shares:                            tumour stroma immune fat  necrosis
CELL_TYPES = (
    CellType("tumour", (0.60, 0.03, 0.06, 0.00, 0.10), 170.0, 1.8, 5.2, 1.25, 0.80, 0.9, 0.0),
    CellType("tumour_dark", (0.24, 0.02, 0.03, 0.00, 0.05), 130.0, 1.4, 4.3, 1.45, 1.30, 0.5, 0.2),
    CellType("fibroblast", (0.06, 0.66, 0.10, 0.08, 0.05), 420.0, 0.9, 3.6, 4.0, 1.05, 0.3, 1.0),
    CellType("endothelial", (0.03, 0.12, 0.05, 0.06, 0.00), 330.0, 0.9, 3.2, 3.0, 1.15, 0.3, 0.8),
    CellType("lymphocyte", (0.04, 0.08, 0.66, 0.04, 0.08), 62.0, 0.6, 3.0, 1.1, 1.55, 0.4, 0.0),
    CellType("macrophage", (0.03, 0.06, 0.10, 0.04, 0.12), 230.0, 1.2, 4.0, 1.5, 0.75, 0.6, 0.0),
    CellType("adipocyte", (0.00, 0.03, 0.00, 0.78, 0.00), 1800.0, 0.5, 2.6, 2.8, 1.1, 0.2, 0.5),
    CellType("debris", (0.00, 0.00, 0.00, 0.00, 0.60), 330.0, 0.3, 1.7, 1.3, 1.5, 0.0, 0.0),
)


def stream(seed: int, *keys: str | int) -> np.random.Generator:
    """An independent random stream for each (seed, keys); the same keys give the same stream."""
    # As spawn_key: plain entropy is padded with zeros, so that (seed, 0) would equal (seed).
    words = [int.from_bytes(k.encode(), "little") if isinstance(k, str) else int(k) for k in keys]
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=words))


@dataclasses.dataclass(frozen=True)
class Field:
    """k independent smooth random fields of unit variance, from random Fourier features.

    f(p) = cos(p^T W + b) A approximates a Gaussian process with a squared-exponential kernel.
    """

    frequencies: np.ndarray  # [3, m] float32, radians per micrometre
    phases: np.ndarray  # [m] float32
    weights: np.ndarray  # [m, k] float32

    def __call__(self, points_um: np.ndarray) -> np.ndarray:
        """Values [n, k] float32 at points [n, 3]."""
        angles = points_um.astype(np.float32) @ self.frequencies
        angles += self.phases
        return np.cos(angles, out=angles) @ self.weights


def random_field(
    rng: np.random.Generator,
    length_um: float,
    num: int,
    z_stretch: float = 1.0,
    num_waves: int = 192,
) -> Field:
    """Draws `num` fields of correlation length `length_um` (`length_um / z_stretch` along z)."""
    frequencies = rng.normal(size=(3, num_waves)) / length_um
    frequencies[2] *= z_stretch
    weights = rng.normal(size=(num_waves, num))
    weights *= np.sqrt(2.0) / np.linalg.norm(weights, axis=0)
    phases = rng.uniform(0, 2 * np.pi, num_waves)
    return Field(*(a.astype(np.float32) for a in (frequencies, phases, weights)))


@dataclasses.dataclass(frozen=True)
class Motion:
    """A rigid motion, possibly with a reflection: slide = volume @ matrix.T + shift_um."""

    matrix: np.ndarray  # [2, 2] orthogonal
    shift_um: np.ndarray  # [2]

    def apply(self, volume_um: np.ndarray) -> np.ndarray:
        """Volume coordinates [n, 2] -> slide coordinates [n, 2]."""
        return volume_um @ self.matrix.T + self.shift_um

    def invert(self, slide_um: np.ndarray) -> np.ndarray:
        """Slide coordinates [n, 2] -> volume coordinates [n, 2]."""
        return (slide_um - self.shift_um) @ self.matrix

    def points(self, slide_um: np.ndarray, z_um: float) -> np.ndarray:
        """Slide coordinates [n, 2] of a section at `z_um` -> volume points [n, 3]."""
        return np.column_stack([self.invert(slide_um), np.full(len(slide_um), z_um)])


@dataclasses.dataclass(frozen=True)
class Tissue:
    """One block of tissue as functions of points [n, 3] in micrometres."""

    center_um: np.ndarray  # [2]
    radius_um: float
    level: float  # where the outline cuts its function; sets the tissue's area
    domain_bias: np.ndarray  # [domains]
    outline_field: Field  # 1
    coarse: Field  # [domains], shapes of the domains
    fine: Field  # [domains], ragged borders
    local: Field  # [types], local noise of the mixtures
    hidden: Field  # [programs], the part of gene programs that no image shows
    warp: Field  # 2, bends the fibres
    fibre_angle: float
    # What a patient adds, see `simulate_patient`.
    type_shift: np.ndarray | float = 0.0  # [types] added to the log shares of cell types
    shown: np.ndarray | float = 0.0  # [programs] correlation with what the image shows
    shown_axes: np.ndarray | None = None  # [domains, programs] of the domains' shape

    @property
    def reach_um(self) -> float:
        """No tissue lies further than this from the centre."""
        return self.radius_um * np.sqrt(1 + _OUTLINE_CLIP * _OUTLINE_SWING - self.level)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Outline function [n]: positive in the tissue, about 1 per radius at its border."""
        offset = (points[:, :2] - self.center_um) / self.radius_um
        swing = np.clip(self.outline_field(points)[:, 0], -_OUTLINE_CLIP, _OUTLINE_CLIP)
        return 1 - (offset**2).sum(axis=1) + _OUTLINE_SWING * swing - self.level

    def domains(self, points: np.ndarray) -> np.ndarray:
        """Soft domains [n, domains] float32; rows sum to 1."""
        logits = self.coarse(points) + 0.4 * self.fine(points) + self.domain_bias
        tumour, stroma = logits[:, 0], logits[:, 1]
        # Lymphocytes gather at the tumour's border; necrosis sits deep inside the tumour.
        logits[:, 2] += 0.9 * np.exp(-(((tumour - stroma) / 0.5) ** 2))
        logits[:, 4] += 0.7 * tumour
        return _softmax(5.0 * logits)

    def mixtures(self, points: np.ndarray) -> np.ndarray:
        """Cell-type shares [n, types] float32; rows sum to 1."""
        return self.mixtures_of(self.domains(points), points)

    def mixtures_of(self, domains: np.ndarray, points: np.ndarray) -> np.ndarray:
        """`mixtures` where `domains` [n, domains] at the points are known already."""
        shares = np.array([cell.shares for cell in CELL_TYPES], np.float32)  # [types, domains]
        weights = (domains @ shares.T + 1e-3) * np.exp(0.8 * self.local(points) + self.type_shift)
        return weights / weights.sum(axis=1, keepdims=True)

    def programs(self, points: np.ndarray) -> np.ndarray:
        """Program activities [n, programs], mean 0 and variance 1: hidden, or in part shown."""
        hidden = self.hidden(points)
        if not np.any(self.shown):
            return hidden
        shape = self.coarse(points) @ self.shown_axes
        return np.sqrt(1 - self.shown**2) * hidden + self.shown * shape

    def fibres(self, points: np.ndarray) -> np.ndarray:
        """Coordinates [n, 2] across and along the fibres, in bent micrometres."""
        c, s = np.cos(self.fibre_angle), np.sin(self.fibre_angle)
        return points[:, :2] @ np.array([[c, -s], [s, c]]) + 140.0 * self.warp(points)


def cell_density(mixtures: np.ndarray) -> np.ndarray:
    """Cells per square micrometre [n], from shares [n, types] and the area each type takes."""
    return 1.0 / (mixtures @ np.array([cell.area_um2 for cell in CELL_TYPES], np.float32))


def grow_tissue(
    seed: int,
    area_um2: float,
    z_um: np.ndarray,
    num_programs: int,
    domain_length_um: float,
    local_length_um: float,
    program_length_um: float,
    z_stretch: float,
) -> Tissue:
    """Draws a tissue whose sections at `z_um` [sections] have `area_um2` on average.

    Args:
      seed: of the volume; nothing else is random.
      domain_length_um: correlation length of the domains; their ragged borders have a quarter.
      local_length_um: correlation length of the local noise of the mixtures.
      program_length_um: correlation length of the hidden gene programs.
      z_stretch: how much faster everything changes along z than in the plane.
    """
    radius = np.sqrt(area_um2 / np.pi)
    num_domains, num_types = len(DOMAINS), len(CELL_TYPES)
    bias = np.array([0.45, 0.45, -0.35, -0.75, -1.25])
    tissue = Tissue(
        center_um=np.full(2, np.ceil(2 * radius)),
        radius_um=radius,
        level=0.0,
        domain_bias=bias + 0.15 * stream(seed, "bias").normal(size=num_domains),
        outline_field=random_field(stream(seed, "outline"), 0.45 * radius, 1, 0.5, 64),
        coarse=random_field(stream(seed, "coarse"), domain_length_um, num_domains, z_stretch),
        fine=random_field(stream(seed, "fine"), domain_length_um / 4, num_domains, z_stretch),
        local=random_field(stream(seed, "local"), local_length_um, num_types, z_stretch),
        hidden=random_field(stream(seed, "hidden"), program_length_um, num_programs, z_stretch),
        warp=random_field(stream(seed, "warp"), 260.0, 2, z_stretch, 96),
        fibre_angle=stream(seed, "angle").uniform(0, 2 * np.pi),
    )
    return dataclasses.replace(tissue, level=_level_for_area(tissue, area_um2, z_um))


def _level_for_area(tissue: Tissue, area_um2: float, z_um: np.ndarray) -> float:
    reach = tissue.reach_um
    ticks = np.linspace(-reach, reach, 72)
    plane = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2) + tissue.center_um
    heights = z_um[np.unique(np.linspace(0, len(z_um) - 1, 7).astype(int))]
    values = [tissue.inside(np.column_stack([plane, np.full(len(plane), z)])) for z in heights]
    return float(np.quantile(values, 1 - area_um2 / (2 * reach) ** 2))


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float32)
    return weights / weights.sum(axis=1, keepdims=True)
