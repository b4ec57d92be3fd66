"""ResNets: small ones against plain NumPy, those in use against timm."""

from __future__ import annotations

import jax
import numpy as np
import optional
import pytest
from numpy_cnn import error, layer, random_layer

from stfm_jax.encoders import resnet
from stfm_jax.errors import InputError

WHERE = "a.pth"
WIDTH = 4
IMAGES = np.random.default_rng(1).normal(size=(2, 45, 64, 3)).astype(np.float32)


def random_tensors(depths, bottleneck):
    """Of a network that is WIDTH channels wide, and of its classifier."""
    rng = np.random.default_rng(0)
    found = random_layer(rng, "conv1", "bn1", (WIDTH, 3, 7, 7))
    before = WIDTH
    for stage, depth in enumerate(depths, start=1):
        narrow = WIDTH * 2 ** (stage - 1)
        after = narrow * 4 if bottleneck else narrow
        for block in range(depth):
            b = f"layer{stage}.{block}."
            widths = (before, narrow, narrow, after) if bottleneck else (before, narrow, after)
            for i, size in enumerate((1, 3, 1) if bottleneck else (3, 3), start=1):
                shape = (widths[i], widths[i - 1], size, size)
                found |= random_layer(rng, f"{b}conv{i}", f"{b}bn{i}", shape)
            if before != after:
                names = f"{b}downsample.0", f"{b}downsample.1"
                found |= random_layer(rng, *names, (after, before, 1, 1))
            before = after
    return found | {"fc.weight": np.zeros((5, before)), "fc.bias": np.zeros(5)}


def plain(tensors, x, depths, bottleneck):
    """The mean over the map behind the last stage of `depths`."""

    def conv(x, name, norm, stride=1):
        return layer(x, tensors, name, norm, 1e-5, stride, tensors[f"{name}.weight"].shape[-1] // 2)

    def relu(x):
        return np.maximum(x, 0)

    x = relu(conv(x, "conv1", "bn1", 2))
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # nothing is below 0
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2)).max((-1, -2))[:, ::2, ::2]
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            b, stride = f"layer{stage}.{block}.", 2 if block == 0 and stage > 1 else 1
            if bottleneck:
                y = relu(conv(x, f"{b}conv1", f"{b}bn1"))
                y = relu(conv(y, f"{b}conv2", f"{b}bn2", stride))
                y = conv(y, f"{b}conv3", f"{b}bn3")
            else:
                y = relu(conv(x, f"{b}conv1", f"{b}bn1", stride))
                y = conv(y, f"{b}conv2", f"{b}bn2")
            if f"{b}downsample.0.weight" in tensors:
                x = conv(x, f"{b}downsample.0", f"{b}downsample.1", stride)
            x = relu(x + y)
    return x.mean((1, 2))


@pytest.mark.parametrize(
    ("depths", "bottleneck", "stages"),
    [((2, 1, 1, 1), False, 4), ((2, 1, 2, 1), True, 3), ((1, 1, 1, 1), True, 4)],
)
def test_a_small_network_against_numpy(depths, bottleneck, stages):
    tensors = random_tensors(depths, bottleneck)
    params = resnet.params(tensors, WHERE, stages)
    expected = plain(tensors, IMAGES, depths[:stages], bottleneck)
    assert error(jax.jit(resnet.apply)(params, IMAGES), expected) < 1e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict.clear, ("conv1.weight", "no such")),
        (lambda t: t.pop("layer2.0.conv1.weight"), ("layer2.0.conv1.weight", "no such")),
        (
            lambda t: t.pop("layer2.0.downsample.0.weight"),
            ("layer2.0.downsample.0.weight", "no such"),
        ),
        (
            lambda t: t.update({"layer1.0.bn2.bias": np.zeros(3)}),
            ("layer1.0.bn2.bias", "[4]", "[3]"),
        ),
        (lambda t: t.update({"layer1.0.se.fc1.weight": np.zeros(3)}), ("layer1.0.se.fc1.weight",)),
        (lambda t: t.update({"conv1.weight": np.zeros(())}), ("conv1.weight", "[]")),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(change, words):
    tensors = random_tensors((1, 1, 1, 1), bottleneck=False)
    change(tensors)
    with pytest.raises(InputError) as told:
        resnet.params(tensors, WHERE)
    assert str(told.value).startswith(f"{WHERE}: expected")
    assert all(word in str(told.value) for word in words)


@pytest.mark.parity
@pytest.mark.parametrize(("name", "stages", "width"), [("resnet18", 4, 512), ("resnet50", 3, 1024)])
def test_networks_in_use_against_timm(name, stages, width):
    timm = optional.timm()
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", ".bias")):
            value.normal_(0, 0.1)
        elif key.endswith("running_var") or ("bn" in key and key.endswith("weight")):
            value.uniform_(0.5, 2)
    params = resnet.params({k: v.numpy() for k, v in model.state_dict().items()}, WHERE, stages)
    with torch.no_grad():
        x = torch.tensor(IMAGES).double().permute(0, 3, 1, 2)
        model = model.double()
        x = model.maxpool(model.act1(model.bn1(model.conv1(x))))
        for stage in range(1, stages + 1):
            x = getattr(model, f"layer{stage}")(x)
    expected = x.mean((2, 3)).numpy()
    assert expected.shape == (2, width)
    assert error(jax.jit(resnet.apply)(params, IMAGES), expected) < 1e-5
