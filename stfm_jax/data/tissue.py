"""Where on a slide the tissue lies, found on an overview of fixed micrometres per pixel.

One threshold for the slide: Otsu's, kept between two bounds, of how much more green is absorbed
than the least absorbed of red and blue. Haematoxylin and eosin both do that; glass, dust, shadows,
black ink and the dark borders of scans do not, whatever their brightness [ours]. Lengths and areas
are micrometres; nothing depends on the file's levels.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage import filters, morphology

from stfm_jax.data.images.image import SlideImage
from stfm_jax.data.images.sampling import resampled
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
OVERVIEW_UM = 8.0  # of a pixel of the overview
LEAST_TISSUE_UM2 = 50_000.0  # smaller pieces are left out
LEAST_HOLE_UM2 = 20_000.0  # smaller holes are filled
_FLOOR, _CAP = 0.03, 0.12  # optical density: of the threshold
_SMOOTH_UM = 12.0
_CLOSE_UM = 24.0
_BLACK = 60  # of 255: nothing stained is darker in its brightest channel
_PEN = 0.12  # optical density by which ink absorbs red more than haematoxylin does
_PEN_UM = 40.0  # left out around ink
_BRIGHT = 90  # percentile of the slide that is glass, where there is any
_SHARES = 0.005, 0.9  # of the slide, below and above which something is likely wrong


class Tissue(NamedTuple):
    """What was found on a slide."""

    overview: np.ndarray  # [h, w, 3] uint8
    mask: np.ndarray  # [h, w] bool
    um_per_px: float  # of both; their first pixel is in the corner of level 0
    threshold: float  # that was taken

    @property
    def share(self) -> float:
        """Of the slide."""
        return float(self.mask.mean())

    def at(self, coords_um: np.ndarray) -> np.ndarray:
        """Which of the places [n, 2] lie on tissue, [n] bool."""
        x, y = np.floor(coords_um / self.um_per_px).astype(int).T
        height, width = self.mask.shape
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        found = np.zeros(len(coords_um), bool)
        found[inside] = self.mask[y[inside], x[inside]]
        return found


def find(image: SlideImage, um_per_px: float, threshold: float | None = None) -> Tissue:
    """The tissue on a slide.

    Args:
      image: of the whole slide.
      um_per_px: of its level 0.
      threshold: in place of the one that is found, optical density.

    Raises:
      InputError: there is none.
    """
    overview = resampled(image, OVERVIEW_UM / um_per_px)
    mask, taken = of_overview(overview, OVERVIEW_UM, threshold)
    found = Tissue(overview, mask, OVERVIEW_UM, taken)
    if not mask.any():
        raise InputError(
            f"{image.path}: found no tissue of at least {LEAST_TISSUE_UM2 / 1e6:g} mm2 on it (of "
            f"{overview.shape[1] * OVERVIEW_UM / 1e3:.1f} x "
            f"{overview.shape[0] * OVERVIEW_UM / 1e3:.1f} mm, stain above {taken:.3f}); it must be "
            "the H&E image and its micrometres per pixel right. Of a very pale slide lower "
            "--config.predict.tissue_threshold."
        )
    if not _SHARES[0] <= found.share <= _SHARES[1]:
        _LOG.warning(
            "%s: %.1f %% of the slide were taken for tissue (stain above %.3f); look at the mask "
            "in the picture, and give --config.predict.tissue_threshold if it is wrong",
            image.path,
            100 * found.share,
            taken,
        )
    return found


def of_overview(
    overview: np.ndarray, um_per_px: float, threshold: float | None = None
) -> tuple[np.ndarray, float]:
    """The mask [h, w] of the tissue of an overview [h, w, 3] uint8, and the threshold taken."""
    density = _density(overview)
    out = _border(overview) | _pen(density, um_per_px)
    stain = density[..., 1] - np.minimum(density[..., 0], density[..., 2])
    stain = ndimage.gaussian_filter(np.where(out, 0, stain), _SMOOTH_UM / um_per_px)
    if threshold is None:
        threshold = float(np.clip(_otsu(stain[~out]), _FLOOR, _CAP))
    mask = (stain > threshold) & ~out
    mask = ndimage.binary_closing(
        np.pad(mask, 8, mode="edge"), morphology.disk(round(_CLOSE_UM / um_per_px))
    )[8:-8, 8:-8]
    mask &= ~out
    pixel = um_per_px**2
    mask = morphology.remove_small_objects(mask, max_size=LEAST_TISSUE_UM2 / pixel)
    mask = morphology.remove_small_holes(mask, max_size=LEAST_HOLE_UM2 / pixel) & ~out
    return mask, threshold


def _density(overview: np.ndarray) -> np.ndarray:
    """Optical density [h, w, 3] over the slide's own glass: what is white differs by scanner."""
    light = overview.reshape(-1, 3)
    light = light[light.max(axis=1) > _BLACK]
    glass = np.percentile(light, _BRIGHT, axis=0) if len(light) else np.full(3, 255.0)
    # A slide that tissue fills shows no glass: nothing paler than 200 is taken for it.
    glass = np.maximum(glass, 200.0)
    return -np.log10((overview.astype(np.float32) + 1) / (glass.astype(np.float32) + 1))


def _otsu(values: np.ndarray) -> float:
    values = np.clip(values, 0, 0.6)
    return float(filters.threshold_otsu(values)) if len(values) and np.ptp(values) else 0.0


def _border(overview: np.ndarray) -> np.ndarray:
    """Black pixels that hang together with the edge: beyond the scanned part, or the slide."""
    black = np.pad(overview.max(axis=2) < _BLACK, 1, constant_values=True)
    labels, _ = ndimage.label(black)
    return (labels == labels[0, 0])[1:-1, 1:-1]


def _pen(density: np.ndarray, um_per_px: float) -> np.ndarray:
    """Green and blue ink, which absorbs red the most, and black ink; with what is around them."""
    red, green, _ = np.moveaxis(density, -1, 0)
    coloured = (red - green > _PEN) & (red > 2 * _PEN)
    black = (density.min(axis=2) > 1.0) & (np.ptp(density, axis=2) < _PEN)
    ink = morphology.remove_small_objects(coloured | black, max_size=_PEN_UM**2 / um_per_px**2)
    if not ink.any():
        return ink
    return ndimage.distance_transform_edt(~ink) * um_per_px <= _PEN_UM
