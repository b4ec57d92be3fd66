"""ResNets (He et al. 2015, arXiv 1512.03385), cut behind any of their four stages and averaged.

ResNet-18 behind all stages is the encoder of Ciga et al. (2022; 512 features), ResNet-50 behind the
third HEST's baseline (1,024 features). Names and strides are torchvision's and timm's: a
bottleneck's 3x3 convolution has the stride ("v1.5").
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from stfm_jax.encoders.convolution import Convolution, Layer, Params, convolve, folded
from stfm_jax.encoders.weights import Tensors

STAGES = 4
_EPS = 1e-5  # of the BatchNorms
_KINDS = {  # by whether blocks are bottlenecks, and their number in each stage
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}


def params(tensors: Tensors, where: str, stages: int = STAGES) -> Params:
    """Parameters of the first stages; width, depth and kind of block are read off the tensors.

    Args:
      tensors: name -> array, under torchvision's names.
      where: the file, for messages.
      stages: how many are kept.

    Raises:
      InputError: naming the first tensor that does not fit.
    """
    later = (f"layer{stage}" for stage in range(stages + 1, STAGES + 1))
    unused = rf".*\.num_batches_tracked|({'|'.join(('fc', *later))})\..*"
    return folded(tensors, layers(tensors, stages), _EPS, unused, where)


def kind(tensors: Tensors) -> str:
    """`resnet18`, `resnet34`, `resnet50`, ... by blocks; plain `resnet` where no name has these."""
    convs = {name.removesuffix(".weight") for name in tensors}
    depths = tuple(len(_blocks(convs, stage)) for stage in range(1, STAGES + 1))
    return _KINDS.get(("layer1.0.conv3" in convs, depths), "resnet")


def width(params: Params) -> int:
    """Features that `apply` gives."""
    *_, last = params.values()
    return len(last.bias)


def layers(tensors: Tensors, stages: int) -> Iterator[Layer]:
    """The convolutions of the first stages, in their order; blocks are told by tensors' names."""
    convs = {name.removesuffix(".weight") for name in tensors}
    width = before = (*np.shape(tensors.get("conv1.weight")), 64)[0]
    yield Layer("conv1", "bn1", (width, 3, 7, 7))
    bottleneck = "layer1.0.conv3" in convs
    for stage in range(1, stages + 1):
        narrow = width * 2 ** (stage - 1)
        after = narrow * (4 if bottleneck else 1)
        first, *rest = _blocks(convs, stage) or (_block_name(stage, 0),)
        yield from _block_layers(first, before, narrow, bottleneck)
        if stage > 1 or before != after:
            shape = (after, before, 1, 1)
            yield Layer(f"{first}downsample.0", f"{first}downsample.1", shape)
        for name in rest:
            yield from _block_layers(name, after, narrow, bottleneck)
        before = after


def _block_layers(name: str, before: int, narrow: int, bottleneck: bool) -> Iterator[Layer]:
    plain = ((narrow, before, 3, 3), (narrow, narrow, 3, 3))
    deep = ((narrow, before, 1, 1), (narrow, narrow, 3, 3), (4 * narrow, narrow, 1, 1))
    for i, shape in enumerate(deep if bottleneck else plain, start=1):
        yield Layer(f"{name}conv{i}", f"{name}bn{i}", shape)


def _blocks(convs: Container[str], stage: int) -> tuple[str, ...]:
    """The names of a stage's blocks, as far as there are such convolutions."""
    names = (_block_name(stage, i) for i in itertools.count())
    return tuple(itertools.takewhile(lambda name: f"{name}conv1" in convs, names))


def _block_name(stage: int, block: int) -> str:
    return f"layer{stage}.{block}."


def features(params: Params, images: jax.Array) -> jax.Array:
    """Map [b, h', w', c] behind the last stage that the parameters have.

    Args:
      images: [b, h, w, 3] float32, normalised.
    """
    x = jax.nn.relu(_convolve(images, params["conv1"], 2))
    margin = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), margin)
    for stage in range(1, STAGES + 1):
        for block, name in enumerate(_blocks(params, stage)):
            x = _block(params, name, x, 2 if stage > 1 and block == 0 else 1)
    return x


def _block(params: Params, name: str, x: jax.Array, stride: int) -> jax.Array:
    """A residual block; its last but one convolution has the stride."""
    convs = [params[f"{name}conv{i}"] for i in (1, 2, 3) if f"{name}conv{i}" in params]
    y = x
    for conv in convs[:-2]:
        y = jax.nn.relu(_convolve(y, conv))
    y = jax.nn.relu(_convolve(y, convs[-2], stride))
    y = _convolve(y, convs[-1])
    if shortcut := params.get(f"{name}downsample.0"):
        x = _convolve(x, shortcut, stride)
    return jax.nn.relu(x + y)


def _convolve(images: jax.Array, conv: Convolution, stride: int = 1) -> jax.Array:
    """With torch's padding: the same on both sides."""
    margin = conv.kernel.shape[0] // 2
    return convolve(images, conv, stride, ((margin, margin), (margin, margin)))


def apply(params: Params, images: jax.Array) -> jax.Array:
    """Features [b, c] of normalised images [b, h, w, 3]: the mean over the map."""
    return features(params, images).mean((1, 2))
