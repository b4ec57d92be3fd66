"""Slides of scanners' makers, by OpenSlide (the extra `slides`).

Its label, macro and thumbnail are never read: they may name the patient.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stfm_jax.data.images.image import WHITE, Level, SlideImage, on_background, reading
from stfm_jax.data.images.scale import of_both

GENERIC = "generic-tiff"  # what it calls a TIFF of no maker
_CACHE_BYTES = 1 << 28  # of decoded tiles


def maker(path: Path) -> str | None:
    """Who made a file, as OpenSlide says; None where it does not know it, or is not installed."""
    openslide = _library()
    return openslide and openslide.OpenSlide.detect_format(str(path))


def installed() -> bool:
    return _library() is not None


class OpenSlideImage(SlideImage):
    """A slide with all its levels."""

    def __init__(self, path: Path):
        """Opens the slide.

        Raises:
          InputError: it is damaged, or of a kind that its maker's format has and OpenSlide not.
        """
        self.path = path
        with reading(path):
            slide = self._opened()
            about = slide.properties
            self.levels = tuple(Level(*size) for size in slide.level_dimensions)
            self.um_per_px = of_both(
                *(_number(about.get(f"openslide.mpp-{axis}")) for axis in "xy"), path
            )
            self.background = _colour(about.get("openslide.background-color"))

    def _opens(self) -> Any:
        openslide = _library()
        slide = openslide.OpenSlide(str(self.path))
        slide.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
        return slide

    def _closes(self, opened) -> None:
        opened.close()

    def _read(self, opened, level, x, y, width, height) -> np.ndarray:
        (w0, h0), (w, h) = self.levels[0], self.levels[level]
        place = round(x * w0 / w), round(y * h0 / h)
        rgba = np.asarray(opened.read_region(place, level, (width, height)))
        return on_background(rgba, self.background)


def _library() -> Any:
    try:
        import openslide
    except (ImportError, OSError):  # OSError: the package is there, its library not
        return None
    return openslide


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _colour(text: str | None) -> tuple[int, int, int]:
    """RRGGBB in hexadecimal digits."""
    try:
        return tuple(bytes.fromhex(text)) if text and len(text) == 6 else WHITE
    except ValueError:
        return WHITE
