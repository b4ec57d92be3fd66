"""H&E patches from files: `ImagePatches` crops a slide's image, `H5Patches` reads HEST patches.

Both implement `PatchSource`. How image files are read is `images/`. Simulated images live in
`simulate_patches.py`; which image belongs to which slide is known by the readers.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stfm_jax.data.hdf5 import open_hdf5
from stfm_jax.data.images.image import MAX_GIB, SlideImage
from stfm_jax.data.images.opening import open_image
from stfm_jax.data.images.sampling import coarsest
from stfm_jax.data.images.scale import LEAST, MOST, is_of_a_slide
from stfm_jax.data.patches import PatchSource, WholeImage
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
_FEW = 0.1  # share of spots beyond the image that may be dropped [ours]

_GET_H5 = "HEST's patches/<id>.h5 come with the task's folder."
_MEND_H5 = "download the file again."


class ImagePatches:
    """Patches around pixel coordinates of one image, of any kind that `images.opening` opens.

    The header is read, and the coordinates are checked, at once; pixels at the first `read`. Of a
    file with tiles those under a patch alone are decoded; of PNG and JPEG the whole image, which is
    kept as uint8 [height, width, 3] until `close` (or the end of a `with` block).
    """

    def __init__(
        self, path: str | Path, coords_px: np.ndarray, um_per_px: float, max_gib: float = MAX_GIB
    ):
        """
        Args:
          path: image file.
          coords_px: [n, 2] (x, y), centres of the patches in pixels of the image (its level 0).
          um_per_px: micrometres per such pixel.
          max_gib: of pixels that are decoded together.

        Raises:
          InputError: no readable image, too large an image, or coordinates outside it.
        """
        self.path = Path(path)
        self.coords_px = np.asarray(coords_px, dtype=np.float64)
        self.image, self.level = open_image(path, max_gib), 0
        self.width, self.height = self.image.size
        self._um_per_px = float(um_per_px)  # of level 0
        _check_scale(self._um_per_px, self.path)
        self._check_coords()

    @property
    def um_per_px(self) -> float:
        """Of the patches that `read` returns."""
        return self._um_per_px * self.image.ratio(self.level)

    def at(self, um_per_px: float) -> ImagePatches:
        """These patches from the coarsest level whose pixels are no larger; the file is shared."""
        other = copy.copy(self)
        other.level = coarsest(self.image, um_per_px / self._um_per_px)
        return other

    def whole(self) -> WholeImage:
        """The image itself; see `data.patches.whole_image`."""
        return WholeImage(self.image, self._um_per_px, self.coords_px * self._um_per_px)

    def read(self, indices: np.ndarray, size_um: float) -> np.ndarray:
        """Patches [b, p, p, 3] uint8 of some spots; see `PatchSource.read`."""
        indices = _checked(indices, len(self.coords_px), self.path)
        side = _side(size_um, self.um_per_px, self.path)
        width, height = self.image.levels[self.level]
        centres = self.coords_px[indices] * (width / self.width, height / self.height)
        corners = np.floor(centres - side / 2 + 0.5).astype(int)
        patches = np.empty((len(indices), side, side, 3), dtype=np.uint8)
        for patch, (x, y) in zip(patches, corners, strict=True):
            if 0 <= x <= width - side and 0 <= y <= height - side:
                patch[:] = self.image.read(self.level, x, y, side, side)
            else:
                rows, columns = _reflected(y, side, height), _reflected(x, side, width)
                (top, low), (left, right) = _ends(rows), _ends(columns)
                pixels = self.image.read(self.level, left, top, right - left, low - top)
                patch[:] = pixels[(rows - top)[:, None], columns - left]
        return patches

    def close(self) -> None:
        """Frees the file, and what of it was decoded."""
        self.image.close()

    def __enter__(self) -> ImagePatches:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _check_coords(self) -> None:
        shape = self.coords_px.shape
        if len(shape) != 2 or shape[1] != 2:
            raise InputError(f"{self.path}: expected pixel coordinates [n, 2], found {shape}.")
        x, y = self.coords_px.T
        inside = _inside(self.coords_px, self.image)
        if not inside.all():
            first = int(np.flatnonzero(~inside)[0])
            raise InputError(
                f"{self.path}: {int((~inside).sum())} of {len(inside)} spots lie outside the image "
                f"of {self.width} x {self.height} pixels, such as ({x[first]:g}, {y[first]:g}); "
                "coordinates must be (x, y) in pixels of this very image. They may be in another "
                "unit, in the order (y, x), or belong to an image of another size."
            )


class Rules(NamedTuple):
    """How images of a data set are taken: fields of the section `data` of a config."""

    max_gib: float = MAX_GIB  # of pixels that are decoded together
    strict: bool = False  # a spot beyond the image is an error, however few there are

    @classmethod
    def of(cls, data: Any) -> Rules:
        """Those of the section `data` of a config."""
        return cls(data.max_image_gib, data.strict)


AS_USUAL = Rules()


def with_image(
    slide: Slide,
    path: str | Path,
    rules: Rules,
    pixels: np.ndarray | None = None,
    um_per_px: float | None = None,
) -> Slide:
    """The slide with patches of the image that its pixels refer to.

    Few spots beyond the image are dropped, and a line says so: outlines and arrays reach over it.

    Args:
      slide: of these spots.
      path: of the image.
      rules: how it is taken.
      pixels: [n, 2] places (x, y) on it; as the slide has them.
      um_per_px: of the image; of the slide.

    Raises:
      InputError: no readable image, too large a one, or one that most spots do not lie on.
    """
    pixels = slide.coords_in if pixels is None else pixels
    um_per_px = slide.um_per_px if um_per_px is None else um_per_px
    with open_image(path, rules.max_gib) as image:
        inside = _inside(pixels, image)
    lost = int((~inside).sum())
    if 0 < lost <= _FEW * len(inside) and not rules.strict:
        _LOG.warning(
            "%s: %d of %d spots lie beyond the image %s and are dropped "
            "(--config.data.strict=True refuses them)",
            *(slide.where, lost, len(inside), path),
        )
        slide, pixels = slide.subset(inside), pixels[inside]
    patches = ImagePatches(path, pixels, um_per_px, rules.max_gib)
    return dataclasses.replace(slide, patches=patches)


def _inside(coords_px: np.ndarray, image: SlideImage) -> np.ndarray:
    """Which places [n, 2] (x, y) lie on an image, [n] bool."""
    return ((coords_px >= 0) & (coords_px < np.array(image.size))).all(axis=1)


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


def _reflected(start: int, side: int, length: int) -> np.ndarray:
    """Positions start .. start + side - 1 folded back into 0 .. length - 1, edges repeated."""
    folded = np.arange(start, start + side) % (2 * length)
    return np.where(folded < length, folded, 2 * length - 1 - folded)


def _ends(positions: np.ndarray) -> tuple[int, int]:
    """The first position, and the one behind the last."""
    return int(positions.min()), int(positions.max()) + 1


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
    if not is_of_a_slide(um_per_px):
        raise InputError(
            f"{path}: micrometres per pixel must be between {LEAST:g} and {MOST:g}, as of slides, "
            f"found {um_per_px:g}; are they given in millimetres, or of another image?"
        )
