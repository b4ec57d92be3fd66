"""Micrometres per pixel from where spots lie on their array, and what is said if others differ."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
# Pixels farther from their place are of another array: in array units, and as a share of their
# spread, since an image may be slightly skewed against the array.
_FITS, _SKEWED = 0.25, 0.01
_SAME = 0.1  # relative difference of two scales from which on it is said [ours]


def similarity(
    array: np.ndarray, pixels: np.ndarray, where: str, columns: str, mirrored: bool = False
) -> tuple[float, np.ndarray]:
    """Pixels per array unit, from the least-squares similarity transform (rotation and scale).

    Args:
      array: [n, 2] places on the array.
      pixels: [n, 2] pixel coordinates of the same spots.
      where: how a message names them.
      columns: how it names those of the array.
      mirrored: whether the image may show the array from behind.

    Returns:
      The pitch, and how far each spot lies from its place, [n] in pixels.

    Raises:
      InputError: fewer than two spots, or the two do not belong together.
    """
    # A similarity transform of the plane is a complex line: pixel = a * array + b, pitch = |a|.
    a, p = (points @ np.array([1, 1j]) for points in (array, pixels))
    a, p = a - a.mean(), p - p.mean()
    power = float(np.vdot(a, a).real)
    best: tuple[float, np.ndarray] = (0.0, np.abs(p))
    for turned in (a, a.conj()) if mirrored else (a,):
        factor = np.vdot(turned, p) / power if power > 0 else 0.0
        off = np.abs(p - factor * turned)
        if (off**2).sum() < (best[1] ** 2).sum():
            best = float(abs(factor)), off
    residual = float(np.sqrt(np.mean(best[1] ** 2)))
    if not residual < max(_FITS * best[0], _SKEWED * float(np.sqrt(np.mean(np.abs(p) ** 2)))):
        raise InputError(
            f"{where}: pixel coordinates must follow {columns} by a rotation and a scale, but "
            f"they miss it by {residual:g} pixels at a pitch of {best[0]:g}; check the columns."
        )
    return best


def agree(one: float, other: float) -> bool:
    """Whether two scales differ by no more than it takes to say so."""
    return bool(abs(np.log(one / other)) <= np.log1p(_SAME))


def um_per_px(scales: Mapping[str, float | None], where: str) -> float:
    """Micrometres per pixel by the first source that knows them; sources that differ are said.

    Args:
      scales: micrometres per pixel by their source, the most trusted first; None: it is silent.
      where: how messages name the slide.
    """
    known = {name: float(scale) for name, scale in scales.items() if scale is not None}
    (taken, scale), *others = known.items()
    for name, other in others:
        if not agree(other, scale):
            _LOG.warning(
                "%s: %.4g um per pixel by %s, which is taken, but %.4g by %s; one of them is of "
                "another image",
                *(where, scale, taken, other, name),
            )
    return scale
