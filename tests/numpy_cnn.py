"""Convolutional networks for tests: random tensors, and layers in plain NumPy, float64."""

from __future__ import annotations

import numpy as np


def random_layer(rng: np.random.Generator, conv: str, norm: str, shape: tuple[int, ...]) -> dict:
    """Tensors of a convolution [out, in, k, k] and the BatchNorm behind it, under torch's names."""
    out, fan_in = shape[0], np.prod(shape[1:])
    tensors = {
        f"{conv}.weight": rng.normal(0, fan_in**-0.5, shape),
        f"{norm}.weight": rng.uniform(0.5, 1.5, out),
        f"{norm}.bias": rng.normal(0, 0.3, out),
        f"{norm}.running_mean": rng.normal(0, 0.3, out),
        f"{norm}.running_var": rng.uniform(0.5, 2, out),
    }
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    return tensors | {f"{norm}.num_batches_tracked": np.array(5)}


def layer(x, tensors, conv, norm, eps, stride=1, margin=None):
    """A convolution and its BatchNorm.

    Args:
      x: [b, h, w, in].
      stride: in pixels.
      margin: zeros on every side; None: "SAME" as TensorFlow has it, more below and right.
    """
    kernel = tensors[f"{conv}.weight"].astype(float)
    size = kernel.shape[-1]
    total = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[1:3]]
    sides = [(n // 2, n - n // 2) if margin is None else (margin, margin) for n in total]
    x = np.pad(x, ((0, 0), *sides, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    windows = windows[:, ::stride, ::stride]
    depthwise = kernel.shape[1] == 1 and x.shape[-1] > 1
    if depthwise:
        y = np.einsum("bhwckl,ckl->bhwc", windows, kernel[:, 0])
    else:
        y = np.einsum("bhwckl,ockl->bhwo", windows, kernel)
    scale, shift, mean, variance = (
        tensors[f"{norm}.{part}"].astype(float)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (y - mean) / np.sqrt(variance + eps) * scale + shift


def error(found, expected) -> float:
    """The largest difference, in standard deviations of what was expected."""
    found = np.asarray(found)
    assert found.shape == expected.shape and found.dtype == np.float32
    return np.abs(found - expected).max() / expected.std()
