"""Where the H&E patches of a slide's spots come from.

A `PatchSource` gives square RGB patches centred on spots, in spot order. The encoders only know
this interface; image files, HEST patch files and simulated tissue implement it.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from stfm_jax.data.images.image import SlideImage
from stfm_jax.errors import InputError


class PatchSource(Protocol):
    """Square H&E patches, one per spot of a slide, in the slide's spot order."""

    um_per_px: float  # micrometres per pixel of the patches that `read` returns

    def read(self, indices: np.ndarray, size_um: float) -> np.ndarray:
        """Reads the patches of some spots.

        Args:
          indices: [b] spot indices.
          size_um: side of the patch in micrometres; patches reaching over the image's edge are
            filled by reflection.

        Returns:
          [b, p, p, 3] uint8, p = round(size_um / um_per_px).

        Raises:
          InputError: unreadable image, or a source whose stored patches are smaller than
            `size_um` (message says how large they are).
        """
        ...


def at_scale(source: PatchSource, um_per_px: float) -> PatchSource:
    """The source with pixels as large as may be, but no larger than this; or as it is.

    Of an image with levels, seen through `SubsetPatches` too; whatever has one scale keeps it.
    """
    at = getattr(source, "at", None)
    return source if at is None else at(um_per_px)


class WholeImage(NamedTuple):
    """The image that a source's patches are of."""

    image: SlideImage
    um_per_px: float  # of its level 0
    coords_um: np.ndarray  # [n, 2] the spots, from its corner


def whole_image(source: PatchSource) -> WholeImage:
    """The image behind a source of patches, seen through `SubsetPatches` too.

    Raises:
      InputError: it has none, but patches alone.
    """
    whole = getattr(source, "whole", None)
    if whole is None:
        raise InputError(
            "config.encoder.name: stain_texture_dense needs the image of the slide, found patches "
            "of its spots alone; take stain_texture."
        )
    return whole()
