"""What every encoder states and does, whatever it is made of.

An encoder looks at one or several square fields of view around a spot. Which encoders there are is
`loading.py`; slides, and embeddings kept in files, are `embed.py`.
"""

from __future__ import annotations

import abc
import dataclasses
import os
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from joblib import Parallel, delayed

from stfm_jax.data.feature_store import spans
from stfm_jax.data.patches import PatchSource, at_scale
from stfm_jax.encoders import stain_texture
from stfm_jax.encoders.preprocess import Preprocess
from stfm_jax.errors import InputError

PATCH_UM = 400.0  # of the descriptor


@dataclasses.dataclass(frozen=True)
class Encoder(abc.ABC):
    """An encoder of H&E patches; hashable."""

    name: str  # as configs and files spell it
    fields_um: tuple[float, ...]  # sides of the fields of view around a spot, micrometres

    @property
    @abc.abstractmethod
    def identity(self) -> str:
        """What is written beside embeddings: name, pooling, fields, and hash of the weights.

        Letters, digits, `_`, `-` and `.`: it names folders too. Equal identities give equal
        features, up to rounding.
        """

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Features of a spot, f."""

    @property
    @abc.abstractmethod
    def um_per_px(self) -> tuple[float, ...]:
        """Micrometres per pixel of each field as the encoder sees it."""

    @property
    @abc.abstractmethod
    def preprocess(self) -> Preprocess | None:
        """What is done to a view first; None: it takes views of any size as they are."""

    @property
    def input_px(self) -> int | None:
        """Side of the image that a network sees, pixels."""
        return self.preprocess.crop if self.preprocess else None

    @abc.abstractmethod
    def embed(self, images: np.ndarray) -> np.ndarray:
        """Features [b, f] float32 of one view of each spot, [b, h, w, 3] uint8 RGB.

        With several fields of view f is the part of `width` that one of them has.

        Raises:
          InputError: images of another kind, or smaller than the encoder sees.
        """

    @abc.abstractmethod
    def blocks(self, source: PatchSource, spots: np.ndarray) -> Iterator[np.ndarray]:
        """Features [m, width] float32 of some spots [n], in their order, a few at a time.

        Raises:
          InputError: patches that cannot be read, or are smaller than a field.
        """

    def embed_slide(self, source: PatchSource, coords_um: np.ndarray) -> np.ndarray:
        """Features [n, width] float32 of a slide's spots by the whole recipe: fields and views.

        Args:
          source: the patches of these spots.
          coords_um: [n, 2].
        """
        found = [*self.blocks(source, np.arange(len(coords_um)))]
        return np.concatenate([np.empty((0, self.width), np.float32), *found])


@dataclasses.dataclass(frozen=True)
class StainTexture(Encoder):
    """The built-in descriptor, made by hand; see `stain_texture`."""

    name: str = "stain_texture"
    fields_um: tuple[float] = (PATCH_UM,)

    BLOCK: ClassVar[int] = 16  # patches described at a time

    def __post_init__(self):
        (side_um,) = self.fields_um
        if not side_um >= stain_texture.MIN_SIZE_UM:
            raise InputError(
                f"config.encoder.patch_um must be at least {stain_texture.MIN_SIZE_UM:g}, found "
                f"{side_um:g}."
            )

    @property
    def identity(self) -> str:
        return f"{self.name}_{self.fields_um[0]:g}um"

    @property
    def width(self) -> int:
        return len(stain_texture.feature_names())

    @property
    def um_per_px(self) -> tuple[float, ...]:
        return (1.0,)  # about: working images have a multiple of 16 pixels a side

    @property
    def preprocess(self) -> None:
        return None

    def embed(self, images: np.ndarray) -> np.ndarray:
        images = checked(images)
        return stain_texture.describe(images, self.fields_um[0] / images.shape[1])

    def blocks(self, source: PatchSource, spots: np.ndarray) -> Iterator[np.ndarray]:
        """On all cores, some blocks for each at a time."""
        source = at_scale(source, self.um_per_px[0])
        jobs = max(1, min(os.cpu_count() or 1, -(-len(spots) // self.BLOCK)))
        with Parallel(n_jobs=jobs) as parallel:
            for some in spans(len(spots), self.BLOCK * jobs * 2):
                parts = (spots[some[i]] for i in spans(len(some), self.BLOCK))
                patches = [source.read(part, self.fields_um[0]) for part in parts]
                yield from parallel(
                    delayed(stain_texture.describe)(patch, source.um_per_px) for patch in patches
                )


def checked(images: np.ndarray) -> np.ndarray:
    """Images [b, h, w, 3] uint8.

    Raises:
      InputError: of another shape or type.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise InputError(
            f"expected images [b, h, w, 3] of uint8 (0 to 255), found {list(images.shape)} of "
            f"{images.dtype}; convert them."
        )
    return images
