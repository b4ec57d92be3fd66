"""The ViT against plain numpy, its form read back from shapes, and files that do not fit."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import numpy_vit
import pytest
from PIL import Image

from stfm_jax.encoders import vit
from stfm_jax.encoders.configs import Config
from stfm_jax.errors import InputError

PLAIN = vit.Architecture(
    patch=8,
    width=24,
    depth=3,
    heads=3,
    hidden=48,
    swiglu=False,
    layer_scale=False,
    registers=0,
    embed_prefix=True,
    grid=3,
)
FORMS = {
    "plain": {},
    "layer_scale": {"layer_scale": True},
    "swiglu": {"swiglu": True},
    "registers_with_positions": {"registers": 4},
    "registers_without": {"registers": 4, "embed_prefix": False},
    "no_embed_class": {"embed_prefix": False},
    "one_layer_patch_16": {"depth": 1, "patch": 16},
    "patch_14_eps": {"patch": 14, "eps": 1e-2},
    "all": {"swiglu": True, "layer_scale": True, "registers": 2, "embed_prefix": False},
}
compute = jax.jit(vit.tokens, static_argnums=2)


def images(a, b=2, seed=1):
    side = a.grid * a.patch
    return np.random.default_rng(seed).normal(size=(b, side, side, 3)).astype(np.float32)


def read(tensors, heads=3, **config):
    return vit.architecture(tensors, Config(heads=heads, **config), "file")


@pytest.mark.parametrize("form", FORMS)
def test_equals_numpy(form):
    a = dataclasses.replace(PLAIN, **FORMS[form])
    tensors, x = numpy_vit.tensors(a), images(a)
    assert read(tensors, eps=a.eps) == a
    found = compute(vit.params(tensors, a, "file"), x, a)
    expected = numpy_vit.tokens(tensors, x, a)
    assert found.shape == expected.shape == (2, a.prefix + a.grid**2, a.width)
    assert np.abs(found - expected).max() < 1e-5 * expected.std()


def test_bfloat16_is_near_and_halves_the_matrices():
    a = dataclasses.replace(PLAIN, layer_scale=True)
    tensors, x = numpy_vit.tensors(a), images(a)
    params = vit.params(tensors, a, "file", precision="bfloat16")
    assert params.blocks["mlp.fc1.weight"].dtype == params.kernel.dtype == "bfloat16"
    assert params.blocks["mlp.fc1.bias"].dtype == params.positions.dtype == "float32"
    expected = numpy_vit.tokens(tensors, x, a)
    error = np.sqrt(np.mean((compute(params, x, a) - expected) ** 2)) / expected.std()
    assert 1e-5 < error < 2e-2


@pytest.mark.parametrize("grid", [2, 5])
def test_positions_of_another_grid_are_resampled_as_pillow_does(grid):
    a = dataclasses.replace(PLAIN, grid=4)
    params = vit.params(numpy_vit.tensors(a), a, "file")
    rows = [
        np.asarray(Image.fromarray(plane).resize((grid, grid), Image.Resampling.BICUBIC))
        for plane in np.moveaxis(np.asarray(params.positions), -1, 0)
    ]
    b = dataclasses.replace(a, grid=grid)
    native = params._replace(positions=np.stack(rows, axis=-1))
    np.testing.assert_allclose(
        compute(params, images(b), a), compute(native, images(b), b), atol=2e-5
    )


def test_pool():
    a = dataclasses.replace(PLAIN, registers=2)
    tokens = np.random.default_rng(0).normal(size=(2, a.prefix + 9, 24)).astype(np.float32)
    np.testing.assert_array_equal(vit.pool(tokens, a, "cls"), tokens[:, 0])
    both = np.concatenate([tokens[:, 0], tokens[:, 3:].mean(1)], axis=1)
    np.testing.assert_allclose(vit.pool(tokens, a, "cls_mean"), both, atol=1e-6)


def test_heads_are_the_usual_ones_without_a_config():
    a = dataclasses.replace(PLAIN, width=384, heads=6)
    assert read(numpy_vit.tensors(a), heads=None) == a
    with pytest.raises(InputError, match=r"file: expected a number of heads.*num_heads"):
        read(numpy_vit.tensors(PLAIN), heads=None)
    with pytest.raises(InputError, match="divides the width 24, found 7"):
        read(numpy_vit.tensors(PLAIN), heads=7)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"stated": {"depth": 12}}, "says depth 12, but the tensors have 3"),
        ({"stated": {"patch": 8, "registers": 4}}, "says registers 4, but the tensors have 0"),
        ({"activation": "gelu_tanh"}, "activation 'gelu_tanh'.*'gelu' only"),
    ],
)
def test_a_config_that_disagrees(config, match):
    with pytest.raises(InputError, match=f"file: .*{match}"):
        read(numpy_vit.tensors(PLAIN), **config)


def test_swiglu_has_silu_whatever_is_stated():
    a = dataclasses.replace(PLAIN, swiglu=True)
    assert read(numpy_vit.tensors(a), activation="gelu") == a


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"norm.bias": None}, "'norm.bias' .24., found none"),
        ({"blocks.1.mlp.fc1.weight": (48, 23)}, r"'blocks.1.mlp.fc1.weight' \[48, 24\], found"),
        ({"blocks.2.attn.q_norm.weight": (8,)}, "found 'blocks.2.attn.q_norm.weight'"),
        ({"patch_embed.proj.weight": None}, "a tensor 'patch_embed.proj.weight', found none"),
        ({"patch_embed.proj.weight": (24, 192)}, "with 4 axes, found"),
        ({"pos_embed": (1, 12, 24)}, "square grid.*found 12 rows"),
        ({"pos_embed": (1, 1, 24)}, None),
    ],
)
def test_tensors_that_do_not_fit(change, match):
    tensors = numpy_vit.tensors(PLAIN)
    for key, shape in change.items():
        tensors.pop(key, None)
        if shape is not None:
            tensors[key] = np.zeros(shape, np.float32)
    if match is None:  # one position alone is a grid of one
        assert read(tensors).grid == 1
        return
    with pytest.raises(InputError, match=f"file: .*{match}"):
        vit.params(tensors, read(tensors), "file")


def test_heads_of_classifiers_are_dropped():
    tensors = numpy_vit.tensors(PLAIN)
    extra = dict.fromkeys(("head.weight", "mask_token", "pooler.dense.bias"), np.zeros(3))
    vit.params(tensors | extra, read(tensors | extra), "file")


def test_images_that_patches_do_not_tile():
    params = vit.params(numpy_vit.tensors(PLAIN), PLAIN, "file")
    with pytest.raises(InputError, match="multiples of 8 pixels, found 24 x 20"):
        compute(params, np.zeros((1, 24, 20, 3), np.float32), PLAIN)
