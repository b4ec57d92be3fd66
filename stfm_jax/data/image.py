"""H&E patches from image files: `ImagePatches` crops a slide image, `H5Patches` reads HEST patches.

Both implement `PatchSource`. Simulated images live in `simulate_patches.py`; which image belongs to
which slide is known by the readers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from stfm_jax.data.hdf5 import open_hdf5
from stfm_jax.data.patches import PatchSource
from stfm_jax.errors import InputError

MAX_PIXELS = 2_000_000_000  # [ours] decoding takes about 7 bytes a pixel: 14 GB
_STRIP_ROWS = 512
_MODES = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "1", "CMYK", "YCbCr")  # 8 bits a channel or less
_PILLOW = threading.Lock()
_GET_H5 = "HEST's patches/<id>.h5 come with the task's folder."
_MEND_H5 = "download the file again."


class ImagePatches:
    """Patches around pixel coordinates of one image file (JPEG, PNG or TIFF).

    The header is read, and the coordinates are checked, at once; the image is decoded at the first
    `read` and kept as uint8 [height, width, 3] until `close` (or the end of a `with` block), after
    which another `read` decodes it again. Decoding 92 megapixels peaks below 1 GiB.
    """

    def __init__(self, path: str | Path, coords_px: np.ndarray, um_per_px: float):
        """
        Args:
          path: image file.
          coords_px: [n, 2] (x, y), centres of the patches in pixels of the image.
          um_per_px: micrometres per pixel of the image.

        Raises:
          InputError: no readable image, too large an image, or coordinates outside it.
        """
        self.path = Path(path)
        self.coords_px = np.asarray(coords_px, dtype=np.float64)
        self.um_per_px = float(um_per_px)
        self._pixels: np.ndarray | None = None
        with _opened(self.path) as image:
            self.width, self.height = image.size
        _check_scale(self.um_per_px, self.path)
        self._check_coords()

    def read(self, indices: np.ndarray, size_um: float) -> np.ndarray:
        """Patches [b, p, p, 3] uint8 of some spots; see `PatchSource.read`."""
        indices = _checked(indices, len(self.coords_px), self.path)
        side = _side(size_um, self.um_per_px, self.path)
        pixels = self._decoded()
        corners = np.floor(self.coords_px[indices] - side / 2 + 0.5).astype(int)
        patches = np.empty((len(indices), side, side, 3), dtype=np.uint8)
        for patch, (x, y) in zip(patches, corners, strict=True):
            if 0 <= x <= self.width - side and 0 <= y <= self.height - side:
                patch[:] = pixels[y : y + side, x : x + side]
            else:
                rows = _reflected(y, side, self.height)
                patch[:] = pixels[rows[:, None], _reflected(x, side, self.width)]
        return patches

    def close(self) -> None:
        """Frees the decoded image."""
        self._pixels = None

    def __enter__(self) -> ImagePatches:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_pixels": None}

    def _decoded(self) -> np.ndarray:
        if self._pixels is None:
            with _opened(self.path) as image:
                self._pixels = _decode(image)
        return self._pixels

    def _check_coords(self) -> None:
        shape = self.coords_px.shape
        if len(shape) != 2 or shape[1] != 2:
            raise InputError(f"{self.path}: expected pixel coordinates [n, 2], found {shape}.")
        x, y = self.coords_px.T
        inside = (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
        if not inside.all():
            first = int(np.flatnonzero(~inside)[0])
            raise InputError(
                f"{self.path}: {int((~inside).sum())} of {len(inside)} spots lie outside the image "
                f"of {self.width} x {self.height} pixels, such as ({x[first]:g}, {y[first]:g}); "
                "coordinates must be (x, y) in pixels of this very image. They may be in another "
                "unit, in the order (y, x), or belong to an image of another size."
            )


class H5Patches:
    """The patches of a HEST file `patches/<id>.h5`, for the spots of a slide.

    The file is opened for each `read` and only the wanted rows and the central crop are read.
    """

    def __init__(self, path: str | Path, index: np.ndarray, um_per_px: float = 0.5):
        """
        Args:
          path: HDF5 file with `img` [m, 224, 224, 3] uint8.
          index: [n] row in the file for each spot of the slide.
          um_per_px: micrometres per pixel of the stored patches (HEST: 0.5, so 112 um).

        Raises:
          FileNotFoundError: there is no such file.
          InputError: a damaged file, patches of another kind, or an index outside it.
        """
        self.path = Path(path)
        self.index = np.asarray(index, dtype=int)
        self.um_per_px = float(um_per_px)
        with open_hdf5(self.path, ("img",), _GET_H5, _MEND_H5) as file:
            shape, dtype = file["img"].shape, file["img"].dtype
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or dtype != np.uint8:
            raise InputError(
                f"{self.path}: expected patches [n, p, p, 3] uint8, found {shape} {dtype}; "
                f"{_MEND_H5}"
            )
        self.side = shape[1]
        _check_scale(self.um_per_px, self.path)
        _checked(self.index, shape[0], self.path)

    def read(self, indices: np.ndarray, size_um: float) -> np.ndarray:
        """Patches [b, p, p, 3] uint8 of some spots; see `PatchSource.read`."""
        indices = _checked(indices, len(self.index), self.path)
        side = _side(size_um, self.um_per_px, self.path)
        if side > self.side:
            raise InputError(
                f"{self.path}: its patches are {self.side * self.um_per_px:g} um wide "
                f"({self.side} pixels), but {size_um:g} um are wanted; choose a patch size of at "
                f"most {self.side * self.um_per_px:g} um."
            )
        start = (self.side - side) // 2
        crop = slice(start, start + side)
        rows, place = np.unique(self.index[indices], return_inverse=True)
        patches = np.empty((len(rows), side, side, 3), dtype=np.uint8)
        with open_hdf5(self.path, ("img",), _GET_H5, _MEND_H5) as file:
            stored = file["img"]
            # Runs of neighbouring rows are one read each: HDF5 is slow at lists of single rows.
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) > 1) + 1):
                if len(run):
                    patches[run] = stored[rows[run[0]] : rows[run[-1]] + 1, crop, crop]
        return patches[place]

    def close(self) -> None:
        """Does nothing: the file is open only while `read` runs."""


def release(patches: PatchSource | None) -> None:
    """Frees what a source of patches holds in memory, seen through `SubsetPatches`.

    Call it between slides, so that only one decoded image is held at a time.
    """
    while patches is not None:
        if hasattr(patches, "close"):
            patches.close()
        patches = getattr(patches, "base", None)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file, header read; decoding errors inside the block become InputErrors."""
    if not path.is_file():
        raise InputError(f"{path}: expected an image, but there is no such file; check the path.")
    try:
        with _without_limit():
            image = Image.open(path)
        with image:
            if image.mode not in _MODES:
                raise InputError(
                    f"{path}: expected an 8-bit colour image, found mode {image.mode!r}; convert "
                    "it to RGB."
                )
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{path}: expected at most {MAX_PIXELS / 1e9:g} gigapixels, found "
                    f"{image.width} x {image.height}; scale the image (and the coordinates) down."
                )
            yield image
    except (OSError, SyntaxError, EOFError) as error:  # SyntaxError: Pillow's broken PNG
        raise InputError(
            f"{path}: expected a readable JPEG, PNG or TIFF image, but it is empty or damaged "
            f"({error}); get the file again."
        ) from error


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
    for top in range(0, image.height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, image.height)
        strip = image.crop((0, top, image.width, bottom))
        pixels[top:bottom] = np.asarray(strip.convert("RGB"))
    return pixels


def _reflected(start: int, side: int, length: int) -> np.ndarray:
    """Positions start .. start + side - 1 folded back into 0 .. length - 1, edges repeated."""
    folded = np.arange(start, start + side) % (2 * length)
    return np.where(folded < length, folded, 2 * length - 1 - folded)


def _checked(indices: np.ndarray, n: int, path: Path) -> np.ndarray:
    indices = np.asarray(indices, dtype=int)
    if indices.size and (indices.min() < 0 or indices.max() >= n):
        raise InputError(
            f"{path}: expected patch numbers from 0 to {n - 1}, found {indices.min()} to "
            f"{indices.max()}."
        )
    return indices


def _side(size_um: float, um_per_px: float, path: Path) -> int:
    side = round(size_um / um_per_px)
    if side < 1:
        raise InputError(
            f"{path}: a patch of {size_um:g} um is less than one pixel ({um_per_px:g} um); ask for "
            "larger patches."
        )
    return side


def _check_scale(um_per_px: float, path: Path) -> None:
    if not (np.isfinite(um_per_px) and um_per_px > 0):
        raise InputError(f"{path}: micrometres per pixel must be above 0, found {um_per_px}.")
