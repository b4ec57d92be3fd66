"""Whether an image can be that of a slide's spots: what is odd about the two is said.

Looked at on a small overview before the image is embedded. Nothing here refuses a slide.
"""

from __future__ import annotations

import logging

import numpy as np
from scipy import ndimage

from stfm_jax.data import tissue
from stfm_jax.data.images.image import SlideImage
from stfm_jax.data.images.sampling import coarsest, resampled
from stfm_jax.data.lattice import spot_spacing_um
from stfm_jax.data.patches import whole_image
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
_SIDE = 512  # pixels of the overview, at most
_MOST_PIXELS = 1_000_000_000  # of the level that it is made of: else it takes too long
_GREY = 2  # by which channels of a grey image may differ
# [ours] Shares of the tissue's extent, and of its area, below which spots are of a smaller image;
# and of spots on tissue below which they are likely of another one.
_EXTENT, _AREA, _ON_TISSUE = 0.5, 0.25, 0.5


def say_odd(slide: Slide) -> None:
    """Says where a slide's image has no colours, or where its spots do not lie on its tissue."""
    try:
        image, um_per_px, coords_um = whole_image(slide.patches)
    except InputError:  # patches without an image
        return
    ratio = max(1.0, max(image.size) / _SIDE)
    level = image.levels[coarsest(image, ratio)]
    if level.width * level.height > _MOST_PIXELS:
        return
    overview = resampled(image, ratio)
    if np.ptp(overview.astype(int), axis=-1).max() <= _GREY:
        _LOG.warning(
            "%s: %s is grey; expected the colours of H&E, and what is predicted from other images "
            "means little",
            *(slide.where, image.path),
        )
        return
    mask, _ = tissue.of_overview(overview, um_per_px * ratio)
    if mask.any():
        _say_beside(slide, image, mask, coords_um / (um_per_px * ratio), ratio)


def _say_beside(
    slide: Slide, image: SlideImage, mask: np.ndarray, at: np.ndarray, ratio: float
) -> None:
    """Says where spots lie beside the tissue.

    Args:
      slide: whose spots they are.
      image: of it.
      mask: [h, w] where the tissue is.
      at: [n, 2] places (x, y) of the spots in pixels of the mask.
      ratio: pixels of the image to one of the mask.
    """
    reach = spot_spacing_um(at) / 2
    ends = np.array([np.flatnonzero(mask.any(axis=k)).max() + 1 for k in (0, 1)])
    (left, top), (right, bottom) = at.min(axis=0) - reach, at.max(axis=0) + reach
    rows, columns = (
        slice(max(int(top), 0), int(bottom) + 1),
        slice(max(int(left), 0), int(right) + 1),
    )
    if mask[rows, columns].sum() < _AREA * mask.sum() and (at.max(axis=0) < _EXTENT * ends).all():
        _LOG.warning(
            "%s: spots reach to (%.0f, %.0f), the tissue in %s to (%.0f, %.0f): places may be of "
            "an image that was scaled down; multiply them, or give that image",
            *(slide.where, *at.max(axis=0) * ratio, image.path, *ends * ratio),
        )
        return
    near = ndimage.distance_transform_edt(~mask) <= reach
    x, y = np.clip(np.floor(at).astype(int), 0, np.array(mask.shape)[::-1] - 1).T
    share = near[y, x].mean()
    if share < _ON_TISSUE:
        _LOG.warning(
            "%s: %.0f %% of its spots lie on the tissue in %s: places may be (y, x), mirrored, or "
            "of another image; look at the map",
            *(slide.where, 100 * share, image.path),
        )
