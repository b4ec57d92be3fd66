"""Convolutions with their BatchNorms folded in: from named tensors, and applied.

What the convolutional encoders share. A network's parameters are a dict: name of a convolution in
the file of weights -> `Convolution`; the names and shapes in it also say how the network is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from stfm_jax.encoders.weights import Tensors
from stfm_jax.errors import InputError

_NORM = ("weight", "bias", "running_mean", "running_var")  # of a BatchNorm, each [out]


class Layer(NamedTuple):
    """A convolution without bias and the BatchNorm behind it, as a file of weights names them."""

    conv: str
    norm: str
    shape: tuple[int, int, int, int]  # out, in, k, k: torch's order; depthwise: out, 1, k, k


class Convolution(NamedTuple):
    """A convolution and the BatchNorm behind it, in one."""

    kernel: jax.Array  # [k, k, in, out]; depthwise: [k, k, 1, out]
    bias: jax.Array  # [out]


Params = dict[str, Convolution]  # by Layer.conv


def folded(
    tensors: Tensors, layers: Iterable[Layer], eps: float, unused: str, where: str
) -> Params:
    """Parameters of a network, float32, folded in float64.

    Args:
      tensors: name -> array.
      layers: of the network, in its order.
      eps: added to the variances by the BatchNorms.
      unused: regular expression of the whole names of tensors that are there for training or for
        a head that is not wanted.
      where: the file, for messages.

    Raises:
      InputError: naming the first tensor, in the network's order, that is missing or of another
        shape; or else the first that is unknown.
    """
    layers = tuple(layers)
    params = {layer.conv: _fold(tensors, layer, eps, where) for layer in layers}
    used = {f"{layer.conv}.weight" for layer in layers}
    used |= {f"{layer.norm}.{part}" for layer in layers for part in _NORM}
    unknown = (n for n in tensors if n not in used and not re.fullmatch(unused, n))
    if name := next(unknown, ""):
        raise InputError(
            f"{where}: expected nothing beside the network's tensors, found {name!r} with shape "
            f"{list(tensors[name].shape)}; give weights of the architecture that was named."
        )
    return params


def _fold(tensors: Tensors, layer: Layer, eps: float, where: str) -> Convolution:
    width = layer.shape[:1]
    kernel = _take(tensors, f"{layer.conv}.weight", layer.shape, where)
    scale, shift, mean, variance = (
        _take(tensors, f"{layer.norm}.{part}", width, where) for part in _NORM
    )
    scale = scale / np.sqrt(variance + eps)
    kernel = (kernel * scale[:, None, None, None]).transpose(2, 3, 1, 0)
    return Convolution(
        jnp.asarray(kernel, jnp.float32), jnp.asarray(shift - mean * scale, jnp.float32)
    )


def _take(tensors: Tensors, name: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """The tensor [shape] in float64."""
    if name not in tensors or tensors[name].shape != shape:
        found = f"{list(tensors[name].shape)}" if name in tensors else "no such tensor"
        raise InputError(
            f"{where}: expected {name!r} with shape {list(shape)}, found {found}; give weights of "
            "the architecture that was named."
        )
    return tensors[name].astype(np.float64)


def convolve(
    images: jax.Array,
    conv: Convolution,
    stride: int = 1,
    padding: str | tuple[tuple[int, int], tuple[int, int]] = "SAME",
) -> jax.Array:
    """Images [b, h, w, in] under a convolution -> [b, h', w', out].

    Args:
      padding: above and below, left and right, in pixels; "SAME": as TensorFlow.
    """
    if conv.kernel.shape[:2] == (1, 1):  # a product of matrices is quicker on CPUs
        strided = images[:, ::stride, ::stride]
        return jnp.matmul(strided, conv.kernel[0, 0], precision="highest") + conv.bias
    convolved = lax.conv_general_dilated(
        images,
        conv.kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    return convolved + conv.bias


def convolve_depthwise(images: jax.Array, conv: Convolution, stride: int = 1) -> jax.Array:
    """Images [b, h, w, c], each channel under its own kernel, "SAME" -> [b, h', w', c].

    A sum of shifted images: on CPUs much quicker than XLA's grouped convolution.
    """
    size = conv.kernel.shape[0]
    pads = lax.padtype_to_pads(images.shape[1:3], (size, size), (stride, stride), "SAME")
    padded = jnp.pad(images, ((0, 0), *pads, (0, 0)))
    height, width = (stride * ((n - 1) // stride) + 1 for n in images.shape[1:3])
    shifted = (
        padded[:, i : i + height : stride, j : j + width : stride] * conv.kernel[i, j, 0]
        for i in range(size)
        for j in range(size)
    )
    return sum(shifted, conv.bias)
