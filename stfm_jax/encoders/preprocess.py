"""What an encoder does to its images first: resize, crop, scale, normalise, as Pillow would.

The published transforms are torchvision's on Pillow images: shorter edge to a length, centre crop,
/255, mean and standard deviation. Pillow rounds to 8 bits behind each of its two passes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from stfm_jax.errors import InputError

_METHODS = {"bilinear": "linear", "bicubic": "cubic"}

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Steps from 8-bit images to an encoder's input; hashable, a static argument when jitted."""

    resize: int  # length of the shorter edge, pixels
    crop: int  # side of the central square, pixels
    mean: tuple[float, float, float]  # of RGB from 0 to 1
    std: tuple[float, float, float]
    interpolation: str  # key of _METHODS

    def __post_init__(self):
        if self.interpolation not in _METHODS:
            raise InputError(
                f"expected an interpolation of {', '.join(_METHODS)}, found "
                f"{self.interpolation!r}; write one of them into the encoder's config."
            )
        if not 0 < self.crop <= self.resize:
            raise InputError(
                f"expected images resized to no less than what is cropped, found {self.resize} "
                f"and {self.crop} pixels; correct the encoder's config."
            )


def apply(preprocess: Preprocess, images: jax.Array) -> jax.Array:
    """Images [b, crop, crop, 3] float32, normalised, from [b, h, w, 3] uint8 RGB."""
    pixels = _resized(images.astype(jnp.float32), preprocess)
    pixels = _central(pixels, preprocess.crop) / 255
    return (pixels - jnp.array(preprocess.mean)) / jnp.array(preprocess.std)


def _resized(pixels: jax.Array, preprocess: Preprocess) -> jax.Array:
    b, height, width, _ = pixels.shape
    edge, short = preprocess.resize, min(height, width)
    method = _METHODS[preprocess.interpolation]
    for shape in (
        (b, height, edge * width // short, 3),
        (b, edge * height // short, edge * width // short, 3),
    ):
        if shape != pixels.shape:
            # Rounded products would be grey levels off on accelerators.
            pixels = jax.image.resize(
                pixels, shape, method, antialias=True, precision=jax.lax.Precision.HIGHEST
            )
            pixels = jnp.clip(jnp.floor(pixels + 0.5), 0, 255)  # halves go up there
    return pixels


def _central(pixels: jax.Array, side: int) -> jax.Array:
    top, left = (round((length - side) / 2) for length in pixels.shape[1:3])
    return pixels[:, top : top + side, left : left + side]
