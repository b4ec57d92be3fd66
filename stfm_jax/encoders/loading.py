"""Encoders by name, or from the folder that a user has downloaded.

What a file holds is told by its tensors; which published model that is, by the table of `known.py`.
A row of it goes before the config beside the weights, and an option before both.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stfm_jax.encoders import configs, efficientnet, known, names, resnet, vit, weights
from stfm_jax.encoders.configs import Config
from stfm_jax.encoders.dense import StainTextureDense
from stfm_jax.encoders.encoder import PATCH_UM, Encoder, StainTexture
from stfm_jax.encoders.known import Known
from stfm_jax.encoders.networks import EfficientNet, ResNet, Vit
from stfm_jax.encoders.preprocess import HALF, IMAGENET, Preprocess
from stfm_jax.encoders.weights import Tensors
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
STAIN_TEXTURE, EFFICIENTNET = "stain_texture", "efficientnet_lite0"
DENSE = "stain_texture_dense"
DESCRIPTORS = {STAIN_TEXTURE: StainTexture, DENSE: StainTextureDense}  # have no weights
BUILT_IN = (*DESCRIPTORS, EFFICIENTNET)  # need no folder
POOLS = ("cls", "cls_mean")
NORMS = {"imagenet": IMAGENET, "half": HALF, "none": ((0.0,) * 3, (1.0,) * 3)}
_UM_PER_PX = 0.5  # taken where nothing says it: 20x, as nearly all pathology models [ours]
_FIELDS_UM = (160.0, 320.0)  # of EfficientNet [ours]
_LIST = "docs/encoders.md lists the models that are known"


def load(
    name: str | os.PathLike,
    weights: str | os.PathLike = "",
    *,
    pool: str = "",
    norm: str = "",
    um_per_px: float | None = None,
    patch_um: float = PATCH_UM,
) -> Encoder:
    """An encoder, its weights checked and read when they are first needed.

    Args:
      name: `stain_texture`, `stain_texture_dense`, `efficientnet_lite0`, a model of
        docs/encoders.md whose weights are given, or the path of its folder or file.
      weights: folder or file of the weights. Of `efficientnet_lite0` the package's, if not given.
      pool: of a vision transformer, `cls` or `cls_mean`, in place of the model's own.
      norm: `imagenet`, `half` or `none`, in place of the model's own.
      um_per_px: micrometres per pixel that a network is to see, in place of the model's own.
      patch_um: of the descriptors, side of the patch.

    Raises:
      InputError: no such model or file; a file of another model, damaged, or asking for more than
        tensors; or its pooling or images are not known and not given.

    >>> load("stain_texture").identity
    'stain_texture_400um'
    """
    name = os.path.expanduser(os.fspath(name))
    _check_choice("pool", pool, POOLS)
    _check_choice("norm", norm, NORMS)
    if um_per_px is not None and not um_per_px > 0:
        raise InputError(f"config.encoder.um_per_px must be above 0, found {um_per_px}.")
    if name in DESCRIPTORS:
        return DESCRIPTORS[name](fields_um=(float(patch_um),))
    if name == EFFICIENTNET and not weights:
        weights = efficientnet.installed()
    if weights:
        return _from_file(Path(os.path.expanduser(weights)), name, pool, norm, um_per_px)
    if os.path.exists(name):
        return _from_file(Path(name), "", pool, norm, um_per_px)
    raise InputError(
        f"expected an encoder of {', '.join(BUILT_IN)}, or the folder of another, found {name!r}, "
        f"which is neither; {_LIST}, and --config.encoder.weights names the folder of one."
    )


def names_of(value: str | Sequence[str]) -> tuple[str, ...]:
    """The encoders that `config.encoder.name` names: a tuple, or a string with commas."""
    text = value if isinstance(value, str) else ",".join(value)
    found = tuple(part.strip(" ()'\"") for part in text.split(","))
    found = tuple(part for part in found if part)
    if len(set(found)) < len(found) or not found:
        raise InputError(f"config.encoder.name must name encoders, each once, found {value!r}.")
    return found


def of_config(section: Any, numbers: Sequence[int] | None = None) -> tuple[Encoder, ...]:
    """The encoders that the section `encoder` of a config names, where they are to embed here.

    None where embeddings are given: no name is built in or has weights.

    Args:
      section: of a config.
      numbers: of the names that are meant, from 0; None: all.

    Raises:
      InputError: as `load`; or only some of several names are to embed here.
    """
    names = names_of(section.name)
    folders = by_name("weights", section.weights, names)
    pools, norms = (by_name(field, section[field], names) for field in ("pool", "norm"))
    scales = by_name("um_per_px", section.um_per_px or "", names)
    names = names if numbers is None else tuple(names[i] for i in numbers)
    here = [name for name in names if name in BUILT_IN or name in folders]
    if not here:
        return ()
    if len(here) < len(names):
        (first, *_) = (name for name in names if name not in here)
        raise InputError(
            f"config.encoder.name names {first!r}, which is not built in; give its folder by "
            f"--config.encoder.weights={first}=FOLDER ({_LIST})."
        )
    return tuple(
        load(
            name,
            folders.get(name, ""),
            pool=pools.get(name, ""),
            norm=norms.get(name, ""),
            um_per_px=_number(scales.get(name)),
            patch_um=section.patch_um,
        )
        for name in names
    )


def by_name(field: str, value: Any, names: Sequence[str]) -> dict[str, str]:
    """A field of `config.encoder` that is said of single encoders, by their names.

    Args:
      field: its name.
      value: VALUE, where it can be of one encoder only; or NAME=VALUE, several with commas between.
      names: of the encoders.

    Raises:
      InputError: it says so in another way.
    """
    value = value if isinstance(value, list | tuple) else str(value).split(",")
    parts = [part.strip() for part in value if part.strip()]
    meant = [name for name in names if name not in BUILT_IN] or [*set(names) - DESCRIPTORS.keys()]
    pairs = dict(part.split("=", 1) for part in parts if part.partition("=")[0] in names)
    if len(pairs) == len(parts):
        return pairs
    if len(parts) == 1 and len(meant) == 1:
        return {meant[0]: parts[0]}
    raise InputError(
        f"config.encoder.{field} must be VALUE, where it can be of one network only, or NAME=VALUE "
        f"for each with commas between, of the names {', '.join(names)} in config.encoder.name; "
        f"found {','.join(value)!r}."
    )


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError as error:
        raise InputError(
            f"config.encoder.um_per_px must be a number, or NAME=NUMBER, found {text!r}."
        ) from error


def _check_choice(field: str, value: str, choices: Sequence[str] | Mapping) -> None:
    if value and value not in choices:
        raise InputError(
            f"config.encoder.{field} must be one of {', '.join(choices)}, found {value!r}."
        )


def _from_file(path: Path, name: str, pool: str, norm: str, um_per_px: float | None) -> Encoder:
    """The encoder in a file; `name`: what the user says it is, "" for nothing."""
    file = weights.find(path)
    where, tensors = str(file), weights.strip(weights.read(file)).tensors
    config, sha256 = configs.read(file.parent), weights.digest(file)
    is_vit = names.has_vit(tensors)
    tensors = names.to_timm(tensors, where) if is_vit else tensors
    architecture = vit.architecture(tensors, config, where) if is_vit else None
    shape = known.signature(architecture) if is_vit else _convolutional(tensors, where)
    said = name or f"{file.parent.name} {file.name}"
    # Names of architectures are those of ResNets, and say nothing of whose ViT it is.
    row = known.find(shape, said if is_vit else f"{said} {config.name}", config.library, sha256)
    _check_name(name, row, where)
    images = _images(row, shape, config, norm, where)
    common = {
        "name": _slug(row.name if row else name or config.name or "network"),
        "fields_um": (images.resize * (um_per_px or (row.um_per_px if row else _UM_PER_PX)),),
        "images": images,
        "sha256": sha256,
        "options": norm,
        "source": where,
        "tensors": tensors,
    }
    if not row and um_per_px is None:
        _LOG.warning(
            "%s: its micrometres per pixel are not known, taken to be %g; "
            "--config.encoder.um_per_px says otherwise",
            where,
            _UM_PER_PX,
        )
    if is_vit:
        vit.check(tensors, architecture, where)
        _check_tiles(images, architecture, where)
        chosen = pool or (row.pool if row else _config_pool(shape, config, where))
        return Vit(**common, architecture=architecture, pool=chosen)
    if pool:
        raise InputError(f"config.encoder.pool: {where} is no vision transformer; leave it out.")
    if shape == EFFICIENTNET:
        fields = _FIELDS_UM if um_per_px is None else common["fields_um"]
        made = EfficientNet(**common | {"name": EFFICIENTNET, "fields_um": fields})
    else:
        # Bottlenecks as HEST has them, whoever trained them.
        made = ResNet(**common, stages=resnet.STAGES - ("layer1.0.conv3.weight" in tensors))
    _ = made.params  # small: read and checked at once
    return made


def _convolutional(tensors: Tensors, where: str) -> str:
    if "_conv_stem.weight" in tensors:
        return EFFICIENTNET
    if "conv1.weight" in tensors:
        return resnet.kind(tensors)
    raise InputError(
        f"{where}: expected a vision transformer ('cls_token'), a ResNet ('conv1.weight') or an "
        f"EfficientNet-Lite0 ('_conv_stem.weight'), found {', '.join(list(tensors)[:3])}, ...; "
        "models of other kinds are not read: give their embeddings instead."
    )


def _check_name(name: str, row: Known | None, where: str) -> None:
    """A name that is a known model's must be that of the file."""
    said = known.named(name) if name else None
    if said is not None and (row is None or row.words != said.words):
        found = f"those of {row.name}" if row else "tensors of another shape"
        raise InputError(
            f"{where}: expected the weights of {said.name}, as config.encoder.name says, found "
            f"{found}; correct the name or the folder."
        )


def _images(row, shape, config: Config, norm: str, where: str) -> Preprocess:
    found = row.preprocess if row else config.preprocess
    if found is None:
        raise InputError(
            f"{where}: expected to be told how images are prepared, by {configs.CONFIG} or "
            f"{configs.IMAGES} beside it, found neither{_alike(shape)}."
        )
    if not row and known.sharing(shape):
        _LOG.warning("%s: is prepared for as its config says%s", where, _alike(shape))
    mean, std = NORMS[norm] if norm else (found.mean, found.std)
    return Preprocess(found.resize, found.crop, mean, std, found.interpolation)


def _config_pool(shape, config: Config, where: str) -> str:
    if config.pool:
        return config.pool
    raise InputError(
        f"{where}: whether features are the class token, or it and the mean of the patches, is "
        f"not known; say --config.encoder.pool=cls or cls_mean{_alike(shape)}."
    )


def _alike(shape) -> str:
    """Known models of a shape, to be named."""
    rows = known.sharing(shape)
    if not rows:
        return ""
    said = ", ".join(f"{row.name} ({row.pool})" if row.pool else row.name for row in rows)
    return f"; of this shape are {said}: if it is one, name the folder or the encoder so"


def _check_tiles(images: Preprocess, a: vit.Architecture, where: str) -> None:
    if images.crop % a.patch:
        raise InputError(
            f"{where}: expected images whose side is a multiple of {a.patch} pixels, the patch of "
            f"its tensors, found {images.crop} in its config; get both files from one release."
        )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "network"
