"""PNG, JPEG and whatever else Pillow decodes: one level, decoded whole at the first read."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
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
_ORIENTATION = 274  # tag
_TURNED_BACK: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # by orientation, to as stored
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
}
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
            if getattr(image, "tag_v2", {}).get(_ORIENTATION, 1) > max(_TURNED_BACK):
                raise InputError(
                    f"{path}: expected pixels as they are shown, found a TIFF of {image.mode} that "
                    "is to be turned by 90 degrees; save it anew as RGB, turned or not."
                )
            size = Level(*image.size)
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


def opens(path: Path) -> bool:
    """Whether Pillow knows what a file is, of 8 bits; not whether it is whole."""
    try:
        with _opened(path) as image:
            return image.mode in _MODES
    except InputError:
        return False


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


def _decode(image: Image.Image) -> np.ndarray:
    """uint8 [height, width, 3], copied in strips: Pillow's own copy is not doubled."""
    turned = getattr(image, "tag_v2", {}).get(_ORIENTATION, 1)  # Pillow turns TIFFs, no others
    width, height = image.size
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
    return _TURNED_BACK.get(turned, np.asarray)(pixels)
