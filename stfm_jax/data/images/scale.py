"""Micrometres per pixel: from what files say of themselves, or asked for."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from stfm_jax.data.images.image import SlideImage
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
LEAST, MOST = 0.05, 20.0  # [ours] what slides have: 72 dpi, which many files say, would be 353
_ALIKE = 0.05  # by which two statements of it may differ


def of_both(across: float | None, down: float | None, path: Path) -> float | None:
    """One scale of those of both axes, None where either is not said.

    Raises:
      InputError: they differ: pixels are taken to be square.
    """
    if not across or not down or not (across > 0 and down > 0):
        return None
    if abs(across - down) > _ALIKE * across:
        raise InputError(
            f"{path}: expected square pixels, found {across:g} by {down:g} um in the file; "
            "resample the image."
        )
    return 0.5 * (across + down)


def um_per_px(image: SlideImage, given: float | None, option: str) -> float:
    """Micrometres per pixel of an image: what is given, else what its file says.

    Args:
      given: by the user.
      option: that gives it, for messages.

    Raises:
      InputError: neither says it, or one no slide has.
    """
    said = image.um_per_px
    if given is not None:
        if not is_of_a_slide(given):
            raise InputError(
                f"{option}: expected micrometres per pixel between {LEAST:g} and {MOST:g}, found "
                f"{given:g}; scanners have about 0.25 (40x) or 0.5 (20x)."
            )
        if said is not None and is_of_a_slide(said) and abs(given - said) > _ALIKE * said:
            _LOG.warning(
                "%s: says %g um per pixel of itself; taking %g, as %s says",
                image.path,
                said,
                given,
                option,
            )
        return float(given)
    if said is None or not is_of_a_slide(said):
        found = "nothing" if said is None else f"{said:g}, which no slide has"
        raise InputError(
            f"{image.path}: expected the file to say its micrometres per pixel, found {found}; "
            f"give them, as in {option}=0.5 (20x) or 0.25 (40x)."
        )
    return said


def is_of_a_slide(um_per_px: float) -> bool:
    """Whether a slide can have this many micrometres per pixel."""
    return math.isfinite(um_per_px) and LEAST <= um_per_px <= MOST
