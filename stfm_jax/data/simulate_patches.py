"""H&E-like images of simulated tissue, rendered lazily and only where they are read.

Each section is one endless image on a fixed pixel grid, made in tiles: a patch is a crop, so
overlapping patches show the same nuclei. Colours add up as optical density (Beer-Lambert) of
haematoxylin and eosin. What the tissue is at a point comes from `simulate_tissue.py`. [ours]
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from stfm_jax.data.simulate_canvas import (
    NOISE_SIDE,
    TILE_PX,
    Nodes,
    noise_at,
    periodic_noise,
    scatter,
    step,
)
from stfm_jax.data.simulate_nuclei import draw_nuclei, paint_nuclei
from stfm_jax.data.simulate_tissue import CELL_TYPES, Motion, Tissue
from stfm_jax.errors import InputError

_FAT_BRICK_UM, _FAT_SIDE = 248.0, 4  # adipocytes in bricks of 4 x 4, 62 um apart
_CACHED_TILES = 128  # 25 MB
_BLUR_REACH, _LEAST_BLUR_PX = 3.0, 0.1  # in sigmas; a sigma that hardly blurs, in pixels

# Optical density of the stains in R, G, B; typical values for H&E, varied by section.
_HAEMATOXYLIN = np.array([0.59, 0.73, 0.34])
_EOSIN = np.array([0.16, 0.86, 0.44])
_COLUMNS = {cell.name: i for i, cell in enumerate(CELL_TYPES)}


@dataclasses.dataclass(frozen=True)
class Stain:
    """Colour of one section."""

    vectors: np.ndarray  # [2, 3] optical density of haematoxylin and eosin, unit length
    strength: np.ndarray  # [2] how strongly each was applied
    glass: np.ndarray  # [3] optical density of the empty slide


@dataclasses.dataclass(frozen=True)
class Scanner:
    """What a scanner makes of a slide's light."""

    blur_um: float  # sigma of a Gaussian; none below _LEAST_BLUR_PX
    gain: np.ndarray  # [3] factor of R, G and B
    pixel: float  # its pixel's size over that of others


def draw_stain(
    patient: np.random.Generator,
    section: np.random.Generator,
    stranger: np.random.Generator,
    vector: float,
    strength: float,
) -> Stain:
    """Stain of a section: differs between patients, and a little between a patient's sections.

    Args:
      patient, section: streams of these differences.
      stranger: stream of a further difference between patients.
      vector: standard deviation of that in the stains' colours.
      strength: in the logarithm of their strengths.
    """
    vectors = np.stack([_HAEMATOXYLIN, _EOSIN])
    vectors = vectors + 0.035 * patient.normal(size=(2, 3)) + 0.015 * section.normal(size=(2, 3))
    vectors = np.maximum(vectors + vector * stranger.normal(size=(2, 3)), 0.02)
    log_strength = 0.14 * patient.normal(size=2) + 0.07 * section.normal(size=2)
    log_strength = log_strength + strength * stranger.normal(size=2)
    return Stain(
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        strength=np.exp(log_strength),
        glass=0.035 + 0.01 * section.uniform(size=3),
    )


class SimulatedPatches:
    """A `PatchSource` over one simulated section. The image has no edge: glass surrounds tissue."""

    def __init__(
        self,
        tissue: Tissue,
        motion: Motion,
        z_um: float,
        coords_um: np.ndarray,
        stain: Stain,
        key: tuple[int, int],
        um_per_px: float = 1.0,
        scanner: Scanner | None = None,
    ):
        """
        Args:
          motion: from the volume's plane to the slide.
          z_um: height of the section in the volume.
          coords_um: [n, 2] spot centres in the slide's frame.
          key: (seed, section), decides the nuclei.
          um_per_px: of the image, whatever the scanner.
          scanner: its blur and gain.
        """
        self.tissue, self.motion, self.z_um, self.stain = tissue, motion, float(z_um), stain
        self.coords_um = coords_um
        self.key = key
        self.um_per_px = um_per_px
        self.scanner = scanner
        self._tile = functools.lru_cache(maxsize=_CACHED_TILES)(self._render_tile)

    def read(self, indices: np.ndarray, size_um: float) -> np.ndarray:
        """Patches [b, p, p, 3] uint8 of some spots; see `PatchSource.read`."""
        indices = np.asarray(indices)
        n, side = len(self.coords_um), round(size_um / self.um_per_px)
        if side < 1:
            raise InputError(
                f"simulated patches: expected a patch of at least one pixel "
                f"({self.um_per_px:g} um), found size_um={size_um:g}; ask for larger patches."
            )
        if indices.size and (indices.min() < 0 or indices.max() >= n):
            raise InputError(
                f"simulated patches: expected spot indices from 0 to {n - 1}, found "
                f"{indices.min()} to {indices.max()}; pass indices of this slide's spots."
            )
        corners = np.round(self.coords_um[indices] / self.um_per_px - side / 2).astype(int)
        blur_px = 0.0 if self.scanner is None else self.scanner.blur_um / self.um_per_px
        margin = int(np.ceil(_BLUR_REACH * blur_px)) if blur_px >= _LEAST_BLUR_PX else 0
        patches = np.empty((len(indices), side + 2 * margin, side + 2 * margin, 3), np.uint8)
        for patch, corner in zip(patches, corners - margin, strict=True):
            self._crop(patch, corner)
        if self.scanner is None or (margin == 0 and np.all(self.scanner.gain == 1)):
            return patches
        light = patches.astype(np.float32)
        if margin:
            sigmas = (0, blur_px, blur_px, 0)
            light = gaussian_filter(light, sigmas, truncate=_BLUR_REACH)
            light = light[:, margin:-margin, margin:-margin]
        return np.clip(light * self.scanner.gain, 0, 255).astype(np.uint8)

    def _crop(self, patch: np.ndarray, corner: np.ndarray) -> None:
        """Fills `patch` [p, p, 3] with the image from pixel `corner` (x, y) on."""
        side = len(patch)
        for iy in range(corner[1] // TILE_PX, (corner[1] + side - 1) // TILE_PX + 1):
            for ix in range(corner[0] // TILE_PX, (corner[0] + side - 1) // TILE_PX + 1):
                low = np.array([ix, iy]) * TILE_PX
                (x0, y0), (x1, y1) = (
                    np.maximum(corner, low),
                    np.minimum(corner + side, low + TILE_PX),
                )
                patch[y0 - corner[1] : y1 - corner[1], x0 - corner[0] : x1 - corner[0]] = (
                    self._tile(ix, iy)[y0 - low[1] : y1 - low[1], x0 - low[0] : x1 - low[0]]
                )

    def _render_tile(self, ix: int, iy: int) -> np.ndarray:
        """Tile [TILE_PX, TILE_PX, 3] uint8 of the image."""
        nodes = Nodes.around(self.tissue, self.motion, self.z_um, self.um_per_px, ix, iy)
        noise = noise_at(ix, iy, self.um_per_px)
        if nodes.inside.max() <= 0:
            haem = eosin = np.zeros((TILE_PX, TILE_PX), np.float32)
        else:
            haem, eosin = _background(nodes, noise)
            haem, eosin = paint_nuclei(haem, eosin, nodes, draw_nuclei(nodes, self.key))
            present = _edge(nodes, noise) * _vacuoles_kept(nodes, noise, self.key)
            haem, eosin = haem * present, eosin * present
        amounts = np.stack([haem, eosin], axis=-1) * self.stain.strength.astype(np.float32)
        density = amounts @ self.stain.vectors.astype(np.float32)
        density += self.stain.glass.astype(np.float32) + 0.008 * noise["grain"][..., None]
        return np.clip(255.0 * np.exp(-density), 0, 255).astype(np.uint8)


def _fibre_texture(fibres: np.ndarray) -> np.ndarray:
    """Streaks along the fibres, from the coordinates across and along them, [h, w, 2] -> [h, w]."""
    across = np.round(fibres * 2.0).astype(int) % NOISE_SIDE  # half-micrometre texels
    along = np.round(fibres * 1.0).astype(int) % NOISE_SIDE
    thin = periodic_noise("thin", 40.0, 2.5)[across[..., 1], across[..., 0]]
    thick = periodic_noise("thick", 45.0, 5.0)[along[..., 1], along[..., 0]]
    return 0.6 * thin + 0.8 * thick


def _background(nodes: Nodes, noise: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin [TILE_PX, TILE_PX] of everything but nuclei and vacuoles."""
    mix = nodes.pixels(nodes.mixtures)
    share = {name: mix[..., i] for name, i in _COLUMNS.items()}
    epithelium = share["tumour"] + share["tumour_dark"]
    matrix = step(share["fibroblast"] + share["endothelial"] + 0.4 * share["adipocyte"], 0.2, 0.6)
    streaks = _fibre_texture(nodes.pixels(nodes.fibres))
    mottled = 0.10 * noise["medium"] + 0.07 * noise["fine"] + 0.06 * noise["cloud"]
    collagen = 0.50 + 0.13 * streaks + 0.05 * noise["fine"] + 0.05 * noise["medium"]
    collagen *= step(streaks + 0.35 * noise["medium"], -2.2, -1.5)  # clefts between the bundles
    cytoplasm = 0.40 + 0.10 * share["macrophage"] + mottled
    cytoplasm -= 0.14 * step(share["lymphocyte"], 0.2, 0.8)
    necrotic = 0.62 + 0.16 * noise["medium"] + 0.10 * noise["fine"]
    dead = step(share["debris"], 0.15, 0.5)
    eosin = matrix * collagen + (1 - matrix) * cytoplasm
    eosin = dead * necrotic + (1 - dead) * eosin
    haem = 0.05 + 0.13 * epithelium * (1 + 0.5 * noise["medium"]) + 0.07 * share["lymphocyte"]
    return np.maximum(haem, 0), np.maximum(eosin, 0)


def _edge(nodes: Nodes, noise: dict[str, np.ndarray]) -> np.ndarray:
    """1 in the tissue, 0 on glass, with a slightly frayed border, [TILE_PX, TILE_PX]."""
    distance = nodes.pixels(nodes.inside) * nodes.radius_um / 2  # micrometres, roughly
    return step(distance + 5 * noise["cloud"] + 2 * noise["medium"], -1.5, 1.5)


def _vacuoles_kept(nodes: Nodes, noise: dict[str, np.ndarray], key: tuple[int, int]) -> np.ndarray:
    """0 inside fat vacuoles, 1 elsewhere, [TILE_PX, TILE_PX].

    Adipocytes are cells of a Voronoi diagram; thin membranes remain along its borders.
    """
    fat = nodes.mixtures[..., _COLUMNS["adipocyte"]]
    kept = np.ones((TILE_PX, TILE_PX), np.float32)
    if fat.max() < 0.18:
        return kept
    seeds, draws = scatter("fat", key, *nodes.window(130.0), _FAT_BRICK_UM, _FAT_SIDE, 0.38)
    filled = nodes.at(seeds, fat) > 0.18 + 0.3 * draws[:, 0]
    if not filled.any():
        return kept
    axes = [t + (np.arange(TILE_PX) + 0.5) * nodes.um_per_px for t in nodes.tile_um]
    pixels = np.stack(np.meshgrid(*axes), axis=-1)
    # Few pixels lie near fat, and the search below is dear: sort out the others in blocks.
    block = 16
    middle = pixels[block // 2 :: block, block // 2 :: block]
    reach = 75.0 + block * nodes.um_per_px
    near = cKDTree(seeds[filled]).query(middle, distance_upper_bound=reach)[0] < reach
    near = near.repeat(block, axis=0).repeat(block, axis=1)
    pixels = pixels[near] + 2.5 * np.stack([noise["bend_x"], noise["bend_y"]], axis=-1)[near]
    distance, index = cKDTree(seeds).query(pixels, k=3)
    gap = np.linalg.norm(seeds[index[:, 1:]] - seeds[index[:, :1]], axis=-1)
    borders = (distance[:, 1:] ** 2 - distance[:, :1] ** 2) / (2 * gap)
    rounded = -5.0 * np.log(np.exp(-borders / 5.0).sum(axis=-1))  # smooth minimum of the two
    depth = rounded - 0.6 - 1.2 * draws[index[:, 0], 1]
    kept[near] -= step(depth, -0.7, 0.7) * filled[index[:, 0]]
    return kept
