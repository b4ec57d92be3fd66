"""A ViT in plain float64 numpy, under timm's names, and random tensors for it."""

from __future__ import annotations

import numpy as np
from scipy.special import erf

from stfm_jax.encoders import vit


def tensors(a: vit.Architecture, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors of an architecture; scales are around one, all else around zero."""
    rng = np.random.default_rng(seed)
    centre = ("norm.weight", "norm1.weight", "norm2.weight", "gamma")
    return {
        key: (rng.normal(0, 0.1, shape) + key.endswith(centre)).astype(np.float32)
        for key, shape in vit.shapes(a).items()
    }


def tokens(w, images, a: vit.Architecture) -> np.ndarray:
    """Normed tokens [b, t, d] of images [b, H, W, 3] at the native size."""
    w = {key: value.astype(np.float64) for key, value in w.items()}
    b, d, g, p = len(images), a.width, a.grid, a.patch
    tiles = images.astype(np.float64).reshape(b, g, p, g, p, 3).transpose(0, 1, 3, 5, 2, 4)
    x = _linear(
        tiles.reshape(b, g * g, -1),
        w["patch_embed.proj.weight"].reshape(d, -1),
        w["patch_embed.proj.bias"],
    )
    prefix = [w["cls_token"], w["reg_token"]] if a.registers else [w["cls_token"]]
    prefix = np.repeat(np.concatenate(prefix, axis=1), b, axis=0)
    if a.embed_prefix:
        x = np.concatenate([prefix, x], axis=1) + w["pos_embed"]
    else:
        x = np.concatenate([prefix, x + w["pos_embed"]], axis=1)
    for i in range(a.depth):
        start = f"blocks.{i}."
        layer = {k.removeprefix(start): v for k, v in w.items() if k.startswith(start)}
        x = _block(x, layer, a)
    return _norm(x, w, "norm", a.eps)


def _block(x, w, a):
    b, t, d = x.shape
    h = _linear(_norm(x, w, "norm1", a.eps), w["attn.qkv.weight"], w["attn.qkv.bias"])
    q, k, v = h.reshape(b, t, 3, a.heads, d // a.heads).transpose(2, 0, 3, 1, 4)
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(d // a.heads)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    h = (weights @ v).transpose(0, 2, 1, 3).reshape(b, t, d)
    h = _linear(h, w["attn.proj.weight"], w["attn.proj.bias"])
    x = x + h * w.get("ls1.gamma", 1)
    h = _linear(_norm(x, w, "norm2", a.eps), w["mlp.fc1.weight"], w["mlp.fc1.bias"])
    if a.swiglu:
        gate, value = np.split(h, 2, axis=-1)
        h = gate / (1 + np.exp(-gate)) * value
    else:
        h = h * 0.5 * (1 + erf(h / np.sqrt(2)))
    return x + _linear(h, w["mlp.fc2.weight"], w["mlp.fc2.bias"]) * w.get("ls2.gamma", 1)


def _linear(x, weight, bias):
    return x @ weight.T + bias


def _norm(x, w, name, eps):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]
