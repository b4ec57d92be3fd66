"""`stain_texture_dense`: the built-in descriptor for dense lattices, computed once for a region.

The same columns as `stain_texture`, whose patches overlap 2,500-fold on bins of 8 um. Maps are
made on a grid that begins at the slide's corner, in squares of CORE_UM with a margin around them;
windows are those of the patch, but filters know what lies beyond it. So numbers are near those of
`stain_texture` and not the same, and it has a name of its own [ours].
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from joblib import Parallel, delayed

from stfm_jax.data.feature_store import spans
from stfm_jax.data.images.sampling import resampled
from stfm_jax.data.patches import PatchSource, WholeImage, whole_image
from stfm_jax.encoders import stain_texture
from stfm_jax.encoders.encoder import StainTexture

UM_PER_PX = 1.0
CORE_UM = 2048
MARGIN_UM = 208  # beyond the windows, for filters; the widest, of 16 um pixels, reach farther
IN_MEMORY = 1 << 30  # bytes of features; more of them go into a file until they are handed on


@dataclasses.dataclass(frozen=True)
class StainTextureDense(StainTexture):
    """The descriptor of many spots at once; needs the slide's image, not patches of it."""

    name: str = "stain_texture_dense"

    AT_ONCE: ClassVar[int] = 16_384  # spots handed on together

    def blocks(self, source: PatchSource, spots: np.ndarray) -> Iterator[np.ndarray]:
        """By squares of the slide, on all cores, then in the spots' order."""
        image = whole_image(source)
        coords_um = image.coords_um[spots]
        with _room(len(spots), self.width) as features:
            self._fill(features, image, coords_um)
            for some in spans(len(spots), self.AT_ONCE):
                yield np.array(features[some[0] : some[-1] + 1])

    def _fill(self, features: np.ndarray, image: WholeImage, coords_um: np.ndarray) -> None:
        squares = np.floor(coords_um / CORE_UM).astype(int)
        keys, of = np.unique(squares[:, ::-1], axis=0, return_inverse=True)
        order = np.argsort(of.ravel(), kind="stable")
        members = np.split(order, np.cumsum(np.bincount(of.ravel()))[:-1])
        jobs = max(1, min(os.cpu_count() or 1, len(keys)))
        with Parallel(n_jobs=jobs, return_as="generator", pre_dispatch=jobs + 1) as parallel:
            described = parallel(
                delayed(_square)(*self._read(image, key[::-1]), coords_um[here])
                for key, here in zip(keys, members, strict=True)
            )
            for here, rows in zip(members, described, strict=True):
                features[here] = rows

    def _read(self, image: WholeImage, square: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Pixels of a square with its margin, where they begin, and the field."""
        (field,) = self.fields_um
        margin = stain_texture.BLOCK_PX * int(
            np.ceil((field / 2 + MARGIN_UM) / UM_PER_PX / stain_texture.BLOCK_PX)
        )
        low = square * CORE_UM - margin
        side = CORE_UM + 2 * margin
        first = np.maximum(low, 0)
        box = (*first / image.um_per_px, *(low + side - first) / image.um_per_px)
        pixels = resampled(image.image, UM_PER_PX / image.um_per_px, box)
        before = (first - low)[::-1].astype(int)
        pads = [(int(b), side - int(b) - n) for b, n in zip(before, pixels.shape[:2], strict=True)]
        return np.pad(pixels, [*pads, (0, 0)], mode="symmetric"), low * UM_PER_PX, field


def _square(pixels: np.ndarray, low: np.ndarray, field: float, coords_um: np.ndarray) -> np.ndarray:
    return stain_texture.describe_region(pixels, UM_PER_PX, coords_um - low, field)


class _room:
    """An array [n, f] float32 to be filled, in memory or in a file without a name."""

    def __init__(self, n: int, width: int):
        self._shape, self._file = (n, width), None

    def __enter__(self) -> np.ndarray:
        if 4 * np.prod(self._shape, dtype=np.int64) <= IN_MEMORY:
            return np.empty(self._shape, np.float32)
        self._file = tempfile.TemporaryFile()
        return np.memmap(self._file, np.float32, "w+", shape=self._shape)

    def __exit__(self, *_) -> None:
        if self._file:
            self._file.close()
