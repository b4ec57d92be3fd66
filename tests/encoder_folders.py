"""Downloaded encoders in small: folders with random weights and the config of a library."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy_vit

from stfm_jax.encoders import vit

SMALL = vit.Architecture(
    patch=8, width=24, depth=2, heads=3, hidden=48, swiglu=False, layer_scale=True,
    registers=0, embed_prefix=True, grid=4,
)  # fmt: skip
SIDE = SMALL.grid * SMALL.patch
MEAN, STD = (0.5, 0.4, 0.6), (0.2, 0.3, 0.25)


def safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """Writes float32 tensors as that library does."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        size = 4 * tensor.size
        shape = list(tensor.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    numbers = (np.ascontiguousarray(t, np.float32).tobytes() for t in tensors.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(numbers))
    return path


def timm_vit(folder: Path, a: vit.Architecture = SMALL, seed: int = 0, **config: Any) -> Path:
    """A ViT as timm's hub keeps it; `config` is over what is written."""
    safetensors(folder / "model.safetensors", numpy_vit.tensors(a, seed))
    side = a.grid * a.patch
    written = {
        "architecture": "vit_base_patch16_224",
        "global_pool": "token",
        "num_heads": a.heads,
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "mean": MEAN,
            "std": STD,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
        },
    }
    (folder / "config.json").write_text(json.dumps(written | config))
    return folder


def images(b: int = 3, side: int = SIDE, seed: int = 1) -> np.ndarray:
    """Noise [b, side, side, 3] uint8."""
    return np.random.default_rng(seed).integers(0, 256, (b, side, side, 3), dtype=np.uint8)
