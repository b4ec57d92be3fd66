"""PNG, JPEG and whatever else Pillow decodes: one level, decoded whole at the first read."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from stfm_jax.data.images.image import Level, SlideImage, on_background, reading
from stfm_jax.errors import InputError

MAX_PIXELS = 2_000_000_000  # [ours] decoding takes about 7 bytes a pixel: 14 GB
_STRIP_ROWS = 512
_MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "1", "CMYK", "YCbCr")  # 8 bits a channel or less
_PILLOW = threading.Lock()


class PillowImage(SlideImage):
    """An image that is decoded whole: 92 megapixels peak below 1 GiB."""

    def __init__(self, path: Path, um_per_px: float | None = None):
        """Reads the header.

        Raises:
          InputError: no readable image of 8-bit colours, or too large a one.
        """
        self.path, self.um_per_px = path, um_per_px
        with _opened(path) as image:
            if image.mode not in _MODES:
                raise InputError(
                    f"{path}: expected an 8-bit colour image, found mode {image.mode!r}; convert "
                    "it to RGB."
                )
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{path}: expected at most {MAX_PIXELS / 1e9:g} gigapixels in a file that is "
                    f"decoded whole, found {image.width} x {image.height}; convert it to a "
                    "pyramidal TIFF with tiles, or scale it (and the coordinates) down."
                )
            self.levels = (Level(*image.size),)

    def _opens(self) -> np.ndarray:
        with _opened(self.path) as image:
            return _decode(image)

    def _closes(self, opened) -> None:
        pass  # an array: it goes when nothing holds it

    def _read(self, opened, level, x, y, width, height) -> np.ndarray:
        return opened[y : y + height, x : x + width]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file, header read."""
    with reading(path):
        with _without_limit():
            image = Image.open(path)
        with image:
            yield image


@contextlib.contextmanager
def _without_limit() -> Iterator[None]:
    """Lifts Pillow's process-wide limit of 89 megapixels; ours is MAX_PIXELS."""
    with _PILLOW:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode(image: Image.Image) -> np.ndarray:
    """uint8 [height, width, 3], copied in strips: Pillow's own copy is not doubled."""
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    transparent = image.mode in ("RGBA", "LA") or "transparency" in image.info
    for top in range(0, image.height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, image.height)
        strip = image.crop((0, top, image.width, bottom))
        if transparent:
            white = PillowImage.background
            pixels[top:bottom] = on_background(np.asarray(strip.convert("RGBA")), white)
        else:
            pixels[top:bottom] = np.asarray(strip.convert("RGB"))
    return pixels
