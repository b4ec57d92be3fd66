"""Resize, crop and normalise against Pillow."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from stfm_jax.encoders import preprocess
from stfm_jax.encoders.preprocess import IMAGENET, Preprocess
from stfm_jax.errors import InputError

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
GREY = ((0.0,) * 3, (1 / 255,) * 3)  # normalised with it, pixels are grey levels
compute = jax.jit(preprocess.apply, static_argnums=0)


def tissue(height, width):
    """[2, height, width, 3] uint8, smooth with sharp edges."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(2, height, width, 3)), (0, 3, 3, 0))
    grey = 128 + 600 * smooth + 60 * (smooth > 0.05) + rng.normal(0, 8, smooth.shape)
    return np.clip(grey, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize("sides", [(64, 64), (128, 128), (40, 40), (75, 90), (90, 75)])
def test_equals_pillow(interpolation, sides):
    images = tissue(*sides)
    edge, short = 56, min(sides)
    height, width = (edge * side // short for side in sides)
    resized = np.stack(
        [
            np.asarray(Image.fromarray(x).resize((width, height), PILLOW[interpolation]))
            for x in images
        ]
    )
    top, left = (round((length - 48) / 2) for length in (height, width))
    expected = resized[:, top : top + 48, left : left + 48].astype(float)
    found = np.asarray(compute(Preprocess(edge, 48, *GREY, interpolation), images))
    assert found.shape == (2, 48, 48, 3) and found.dtype == np.float32
    error = np.abs(found - expected)
    assert error.max() < 2.1
    assert (error > 0.5).mean() < 0.05


def test_images_of_the_size_are_normalised_alone():
    images = tissue(32, 32)
    found = compute(Preprocess(32, 32, *IMAGENET, "bicubic"), images)
    np.testing.assert_allclose(found, (images / 255 - IMAGENET[0]) / IMAGENET[1], atol=1e-5)


def test_steps_that_do_not_go_together():
    with pytest.raises(InputError, match="bilinear, bicubic, found 'nearest'"):
        Preprocess(224, 224, *IMAGENET, "nearest")
    with pytest.raises(InputError, match="found 200 and 224 pixels"):
        Preprocess(200, 224, *IMAGENET, "bicubic")
