"""What the config.json of a downloaded encoder says, as timm or transformers mean it.

timm writes `architecture`, arguments (in `model_args`, or at top level as UNI does, which timm
itself ignores) and `pretrained_cfg`; what is missing there has timm's defaults [timm 1.0.31].
transformers writes `model_type` and fields, and the images' part into preprocessor_config.json.
Tensors are trusted before either: see `vit.architecture`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stfm_jax.encoders.preprocess import CLIP, HALF, IMAGENET, Preprocess
from stfm_jax.errors import InputError

CONFIG, IMAGES = "config.json", "preprocessor_config.json"

# Heads that timm's names stand for, unless an argument says another number.
_TIMM_HEADS = (
    (r"vit_tiny_", 3),
    (r"vit_small_", 6),
    (r"vit_base_", 12),
    (r"vit_large_|vit_huge_|vit_giant_patch14_(clip_)?224", 16),
    (r"vit_giant_patch14_(reg4_)?dinov2", 24),
)
# Fields of `vit.Architecture` under the two libraries' names.
_TIMM_STATES = {
    "patch": "patch_size",
    "width": "embed_dim",
    "depth": "depth",
    "registers": "reg_tokens",
}
_HF_STATES = {
    "patch": "patch_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "registers": "num_register_tokens",
}
_TIMM_POOLS = {"token": "cls"}
_HF_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
# Of transformers' image processors, for fields that the file leaves out:
# size, mean and standard deviation, Pillow's number.
_HF_IMAGES = {"ViT": (224, HALF, 2), "Bit": (224, CLIP, 3)}


@dataclasses.dataclass(frozen=True)
class Config:
    """What a config states of an encoder; None where it is silent."""

    library: str | None = None  # "timm", "transformers"
    name: str = ""  # timm's architecture, or transformers' model_type
    heads: int | None = None
    eps: float = 1e-6  # of the layer norms
    activation: str | None = None  # of a plain MLP; a SwiGLU has SiLU whatever is stated
    stated: Mapping[str, int] = dataclasses.field(
        default_factory=dict
    )  # fields of `vit.Architecture`
    preprocess: Preprocess | None = None
    pool: str | None = None  # "cls"


def read(folder: str | Path) -> Config:
    """The config of a folder; one that states nothing where there is no config.json.

    Raises:
      InputError: a file that is no JSON object, or values that are not understood.
    """
    path = Path(folder) / CONFIG
    if not path.exists():
        return Config()
    found = _object(path)
    try:
        if "model_type" not in found:
            return timm_config(found)
        images = path.with_name(IMAGES)
        return huggingface_config(found, _object(images) if images.exists() else None)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise InputError(
            f"{path}: expected the config of a timm or transformers model, found a value that is "
            f"none ({error!r}); get the file again."
        ) from error


def timm_config(found: Mapping[str, Any]) -> Config:
    """The Config in timm's config.json."""
    args = {**found, **(found.get("model_args") or {})}
    name = str(found.get("architecture", ""))
    return Config(
        library="timm",
        name=name,
        heads=args.get("num_heads") or _heads_of(name),
        activation=args.get("act_layer"),
        stated=_stated(args, _TIMM_STATES),
        # Without pretrained_cfg the whole file is one.
        preprocess=_timm_preprocess(found.get("pretrained_cfg") or found),
        pool=_TIMM_POOLS.get(args.get("global_pool", "token")),
    )


def huggingface_config(found: Mapping[str, Any], images: Mapping[str, Any] | None) -> Config:
    """The Config in transformers' config.json and, where there is one, preprocessor_config.json."""
    name = str(found["model_type"])
    return Config(
        library="transformers",
        name=name,
        heads=found.get("num_attention_heads"),
        eps=float(found.get("layer_norm_eps", 1e-12 if name == "vit" else 1e-6)),
        activation=found.get("hidden_act"),
        stated=_stated(found, _HF_STATES),
        preprocess=None if images is None else _huggingface_preprocess(images),
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected JSON, but it is unreadable ({error}); get the file again."
        ) from error
    if not isinstance(found, dict):
        raise InputError(
            f"{path}: expected a JSON object, found {type(found).__name__}; get the file again."
        )
    return found


def _heads_of(name: str) -> int | None:
    return next((heads for pattern, heads in _TIMM_HEADS if re.match(pattern, name)), None)


def _stated(found: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, int]:
    return {
        ours: int(found[theirs]) for ours, theirs in names.items() if found.get(theirs) is not None
    }


def _timm_preprocess(cfg: Mapping[str, Any]) -> Preprocess:
    _, height, width = cfg.get("input_size") or (3, 224, 224)
    return Preprocess(
        resize=int(_square(height, width) / (cfg.get("crop_pct") or 0.875)),
        crop=height,
        mean=tuple(cfg.get("mean") or IMAGENET[0]),
        std=tuple(cfg.get("std") or IMAGENET[1]),
        interpolation=cfg.get("interpolation") or "bicubic",
    )


def _huggingface_preprocess(images: Mapping[str, Any]) -> Preprocess:
    kind = str(images.get("image_processor_type", images.get("feature_extractor_type", "ViT")))
    size, (mean, std), number = _HF_IMAGES["Bit" if kind.startswith("Bit") else "ViT"]
    resize = _side(images.get("size", size))
    crops = images.get("do_center_crop", kind.startswith("Bit"))
    number = images.get("resample", number)
    if not images.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    else:
        mean, std = images.get("image_mean", mean), images.get("image_std", std)
    return Preprocess(
        resize=resize,
        crop=_side(images.get("crop_size", resize)) if crops else resize,
        mean=tuple(mean),
        std=tuple(std),
        interpolation=_HF_INTERPOLATIONS.get(number, f"Pillow's {number}"),
    )


def _side(size: int | Mapping[str, int]) -> int:
    """Pixels of `224`, `{"shortest_edge": 224}` or `{"height": 224, "width": 224}`."""
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        return int(edge if edge is not None else _square(size["height"], size["width"]))
    return int(size)


def _square(height: int, width: int) -> int:
    if height != width:
        raise InputError(
            f"expected square images, found {height} x {width}; encoders of other images are not "
            "read."
        )
    return height
