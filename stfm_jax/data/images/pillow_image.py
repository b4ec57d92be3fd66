"""PNG, JPEG and whatever else Pillow decodes: one level, decoded whole at the first read."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from stfm_jax.data.images.image import (
    MAX_GIB,
    Level,
    SlideImage,
    check_decoded,
    on_background,
    reading,
    say_turned,
)
from stfm_jax.errors import InputError

_STRIP_ROWS = 512
_MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")  # 8 bits a channel
_GREY = ("L", "LA", "1")
_TEXT_BYTES = 1 << 28  # of a text or colour profile in a PNG, unpacked
_ORIENTATION, _WIDTH, _HEIGHT = 274, 256, 257  # tags
_PILLOW = threading.Lock()


class PillowImage(SlideImage):
    """An image that is decoded whole: 92 megapixels peak below 1 GiB."""

    def __init__(self, path: Path, um_per_px: float | None = None, max_gib: float = MAX_GIB):
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
            size = _stored_size(image)
            check_decoded(path, size, max_gib)
            say_turned(path, image.getexif().get(_ORIENTATION, 1))
            self.grey = image.mode in _GREY
            self.levels = (size,)

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
    with reading(path), _without_limits(), Image.open(path) as image:
        yield image


@contextlib.contextmanager
def _without_limits() -> Iterator[None]:
    """Lifts Pillow's process-wide limits, of 89 megapixels and 1 MiB of text; ours is MAX_GIB."""
    with _PILLOW:
        before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
        before += (PngImagePlugin.MAX_TEXT_MEMORY,)
        Image.MAX_IMAGE_PIXELS = None
        PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _TEXT_BYTES
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = before[:2]
            PngImagePlugin.MAX_TEXT_MEMORY = before[2]


def _stored_size(image: Image.Image) -> Level:
    """Of the pixels as they are stored: Pillow says that of a TIFF as it would be turned."""
    tags = getattr(image, "tag_v2", {})
    return Level(tags.get(_WIDTH, image.width), tags.get(_HEIGHT, image.height))


def _decode(image: Image.Image) -> np.ndarray:
    """uint8 [height, width, 3], copied in strips: Pillow's own copy is not doubled."""
    width, height = _stored_size(image)
    image.getexif()[_ORIENTATION] = 1  # or Pillow turns TIFFs, and nothing else
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    for top in range(0, height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, height)
        strip = image.crop((0, top, width, bottom))
        if transparent:
            white = PillowImage.background
            pixels[top:bottom] = on_background(np.asarray(strip.convert("RGBA")), white)
        else:
            pixels[top:bottom] = np.asarray(strip.convert("RGB"))
    return pixels
