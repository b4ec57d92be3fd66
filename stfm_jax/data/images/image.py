"""`SlideImage`: what every image of a slide states and does, whichever library reads it.

Places are pixels of level 0, the finest, y downwards; a level's own pixels are larger by the true
ratio of the sizes, which need not be whole. Which library opens a file is `opening.py`;
`sampling.py` reads at a scale that is asked for.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stfm_jax.data import foreign
from stfm_jax.errors import InputError

WHITE = (255, 255, 255)
DEEP = np.dtype(np.uint16)
MAX_GIB = 8.0  # [ours] of pixels that are decoded together: `data.max_image_gib`
_LOG = logging.getLogger("stfm_jax")


class Unreadable(Exception):
    """A library does not decode this file, another may; says why."""


class Level(NamedTuple):
    """Size of a level, pixels."""

    width: int
    height: int


class SlideImage(abc.ABC):
    """An H&E image of one or more levels, finest first.

    The file is opened at the first `read`, in every process anew, and until `close`; so it can be
    pickled and goes through a fork. Where pixels are transparent they have the background's colour.
    """

    path: Path
    levels: tuple[Level, ...]
    um_per_px: float | None  # of level 0 as the file says; None where it does not
    background: tuple[int, int, int] = WHITE
    grey: bool = False  # whether its file has one channel
    _open: Any = None
    _process: int | None = None  # that opened it: no library's handle survives a fork

    @property
    def size(self) -> Level:
        """Of level 0."""
        return self.levels[0]

    def ratio(self, level: int) -> float:
        """Pixels of level 0 on the side of one of a level's."""
        (width, height), (w, h) = self.levels[0], self.levels[level]
        return 0.5 * (width / w + height / h)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels [height, width, 3] uint8 of a level from its pixel (x, y) on, all inside it.

        Raises:
          InputError: the file is damaged, or holds what its library cannot decode.
        """
        with reading(self.path):
            return self._read(self._opened(), level, x, y, width, height)

    def close(self) -> None:
        """Frees what was opened or decoded; another `read` opens it again."""
        if self._open is not None and self._process == os.getpid():
            self._closes(self._open)
        self._open = None

    @abc.abstractmethod
    def _opens(self) -> Any:
        """What `_read` reads from."""

    @abc.abstractmethod
    def _read(self, opened: Any, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """See `read`."""

    @abc.abstractmethod
    def _closes(self, opened: Any) -> None:
        """Gives back what `_opens` gave."""

    def _opened(self) -> Any:
        if self._open is None or self._process != os.getpid():
            self._open, self._process = self._opens(), os.getpid()
        return self._open

    def __enter__(self) -> SlideImage:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": None}


def reading(path: Path) -> contextlib.AbstractContextManager[None]:
    """Whatever a library raises on an image becomes an InputError that names it."""
    advice = "get the file again, or convert it to a pyramidal TIFF."
    return foreign.reading(path, "a readable image", advice, (Unreadable,))


def check_decoded(path: Path, size: Level, max_gib: float) -> None:
    """Raises InputError for pixels that are decoded together and would take too much memory."""
    needed = size.width * size.height * 3 / 2**30
    if needed > max_gib:
        raise InputError(
            f"{path}: its {size.width} x {size.height} pixels, which are decoded together, take "
            f"{needed:.3g} GiB, but --config.data.max_image_gib allows {max_gib:g}; raise it, or "
            "convert the image to a pyramidal TIFF with tiles."
        )


def say_turned(path: Path, orientation: object) -> None:
    """Says where a file asks to be shown turned or mirrored, which no image here is."""
    if orientation not in (None, 0, 1):
        _LOG.warning(
            "%s: says that it is to be shown turned (orientation %s); pixels are taken as they are "
            "stored, and places must be of these",
            *(path, orientation),
        )


def on_background(
    rgba: np.ndarray, background: tuple[int, int, int], mixed: bool = False
) -> np.ndarray:
    """RGB [h, w, 3] of RGBA [h, w, 4] uint8 on a ground of one colour.

    Args:
      rgba: pixels, and how opaque they are.
      background: colour of the ground.
      mixed: whether colours are those on black already (associated alpha of TIFF).
    """
    alpha = rgba[..., 3:]
    if (alpha == 255).all():
        return rgba[..., :3]
    share = alpha.astype(np.float32) / 255
    own = rgba[..., :3] * (1.0 if mixed else share)
    on_ground = own + np.asarray(background, np.float32) * (1 - share)
    return np.clip(np.round(on_ground), 0, 255).astype(np.uint8)


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Pixels uint8 of such or of DEEP ones."""
    if values.dtype == DEEP:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return values
