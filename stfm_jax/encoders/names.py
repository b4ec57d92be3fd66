"""Tensors of published ViTs under the names of timm, the ones that `vit.py` reads.

Read are the names of transformers 4 and 5 (ViT, DINOv2, DINOv2 with registers), of Meta's DINOv2
and of timm itself, also as a part of a larger model. `weights.strip` takes off a checkpoint's nests
before.
"""

from __future__ import annotations

import re

import numpy as np

from stfm_jax.encoders.weights import Tensors
from stfm_jax.errors import InputError

_CLASS_TOKEN = re.compile(r"(.*?)(?:embeddings\.)?cls_token")

# Tried in order, each on the outcome of the one before.
_RENAMES = tuple(
    (re.compile(pattern), to)
    for pattern, to in (
        (r"^embeddings\.(cls_token|mask_token)", r"\1"),
        (r"^embeddings\.position_embeddings", "pos_embed"),
        (r"^(embeddings\.)?register_tokens", "reg_token"),
        (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"^layernorm\.", "norm."),
        (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2's chunks of blocks
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.(attention\.)?(query|q_proj)\.", ".attn.q."),
        (r"\.attention\.(attention\.)?(key|k_proj)\.", ".attn.k."),
        (r"\.attention\.(attention\.)?(value|v_proj)\.", ".attn.v."),
        (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.layer_scale(\d)\.lambda1", r".ls\1.gamma"),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        (r"\.mlp\.(weights_in|w12)\.", ".mlp.fc1."),
        (r"\.mlp\.(weights_out|w3|down_proj)\.", ".mlp.fc2."),
        (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
        (r"\.mlp\.up_proj\.", ".mlp.fc1_x."),
    )
)
# What timm keeps in one tensor, from the parts that stand in its rows.
_JOINED = {"attn.qkv": ("attn.q", "attn.k", "attn.v"), "mlp.fc1": ("mlp.fc1_g", "mlp.fc1_x")}


def to_timm(tensors: Tensors, where: str) -> dict[str, np.ndarray]:
    """The tensors of one ViT under timm's names; of a larger model, its ViT alone.

    Args:
      tensors: a file's tensors by name.
      where: the file, for messages.

    Raises:
      InputError: no class token, or several.
    """
    flat = _within(tensors, where)
    named = _joined({_renamed(key): tensor for key, tensor in flat.items()})
    # Only DINOv2 calls them so, and there a position is added before the registers come in.
    if any(key.endswith("register_tokens") for key in flat):
        return _without_class_position(named)
    return named


def has_vit(tensors: Tensors) -> bool:
    """Whether some tensor is a class token."""
    return any(_CLASS_TOKEN.fullmatch(key) for key in tensors)


def _within(tensors: Tensors, where: str) -> Tensors:
    """The part below the prefix that the class token has, without that prefix."""
    prefixes = [m[1] for key in tensors if (m := _CLASS_TOKEN.fullmatch(key))]
    if len(prefixes) != 1:
        raise InputError(
            f"{where}: expected the tensors of one ViT, so one 'cls_token', found "
            f"{', '.join(p + 'cls_token' for p in prefixes) or 'none'} among {len(tensors)} "
            "tensors; give a file with one image encoder."
        )
    (prefix,) = prefixes
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _renamed(key: str) -> str:
    for pattern, to in _RENAMES:
        key = pattern.sub(to, key)
    return key


def _joined(tensors: Tensors) -> dict[str, np.ndarray]:
    out = dict(tensors)
    for key in tensors:
        for whole, parts in _JOINED.items():
            siblings = [key.replace(f".{parts[0]}.", f".{part}.") for part in parts]
            if f".{parts[0]}." in key and all(name in out for name in siblings):
                joined = np.concatenate([out.pop(name) for name in siblings])
                out[key.replace(f".{parts[0]}.", f".{whole}.")] = joined
    return out


def _without_class_position(tensors: Tensors) -> dict[str, np.ndarray]:
    """The class token with its position added, and the positions of the patches alone."""
    positions = tensors["pos_embed"]
    cls_token = tensors["cls_token"] + positions[:, :1]
    return {**tensors, "cls_token": cls_token, "pos_embed": positions[:, 1:]}
