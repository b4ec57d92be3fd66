"""From a config to a method. Networks take typed attributes, never a ConfigDict."""

from __future__ import annotations

from typing import Any

import jax

from stfm_jax.data.batching import TILE
from stfm_jax.errors import InputError
from stfm_jax.flow.priors import PRIORS
from stfm_jax.models.stflow import ANCHORS, STFlow
from stfm_jax.nn.blocks import FRAMES
from stfm_jax.nn.mlp import PRECISIONS
from stfm_jax.nn.stflow_net import ATTENTIONS, EXPRESSIONS, ImageTower, STFlowNet
from stfm_jax.regression.features import STANDARDIZATIONS

METHODS = ("stflow",)
_CHOICES = {
    "method": METHODS,
    "prior": PRIORS,
    "model.anchor": ANCHORS,
    "model.expression": EXPRESSIONS,
    "model.frames": FRAMES,
    "model.attention": ATTENTIONS,
    "model.precision": PRECISIONS,
    "train.loss_weight": ("velocity", "data"),
    "data.standardize": STANDARDIZATIONS,
    "data.missing_genes": ("error", "drop"),
}
_AT_LEAST = {
    "data.num_genes": 1,
    "model.neighbors": 1,
    "train.epochs": 1,
    "train.regions_per_slide": 1,
    "train.slides_per_step": 1,
    "train.accumulate": 1,
    "devices": 0,
    "sample.evaluations": 1,
    "sample.mean_draws": 1,
    "sample.draws": 2,  # the CRPS compares draws
}


def build(config: Any, num_genes: int) -> STFlow:
    """The method that a config describes, for this many genes.

    Raises:
      InputError: a field has a value that is not among its choices.
    """
    check(config)
    model = config.model
    token = model.expression == "token"
    has_tower = token and model.anchor != "none" and model.image_weight > 0
    network = STFlowNet(
        num_genes=num_genes,
        width=model.width,
        num_blocks=model.blocks,
        heads=model.heads,
        dropout=model.dropout,
        expression=model.expression,
        frames=model.frames,
        time_scale=model.time_scale,
        feature_noise=model.feature_noise,
        feature_dropout=model.feature_dropout,
        zero_init=token or model.anchor != "none",
        attention=model.attention,
        dtype=model.precision,
    )
    image = ImageTower(
        num_genes, model.image_width, dropout=model.image_dropout, noise=model.image_noise
    )
    return STFlow(
        network=network,
        image=image if has_tower else None,
        image_weight=model.image_weight,
        normalization=config.data.normalization,
        standardize=config.data.standardize,
        components=model.components,
        context=tuple(model.context),
        token_context=model.token_context,
        anchor=model.anchor,
        prior=config.prior,
        neighbors=model.neighbors,
        tile=model.tile or default_tile(),
        edge_cache=int(model.edge_cache_gib * 2**30) or default_edge_cache(),
        loss_weight=config.train.loss_weight,
        evaluations=config.sample.evaluations,
    )


def default_tile() -> int:
    """Spots of a tile: what a CPU's cache holds, or enough to fill an accelerator."""
    return TILE if jax.default_backend() == "cpu" else 16_384


def default_edge_cache() -> int:
    """Bytes for edge features, of what a machine surely has."""
    return (1 if jax.default_backend() == "cpu" else 4) << 30


def check(config: Any) -> None:
    """Raises InputError for values outside their choices or bounds, before anything is read."""
    for field, choices in _CHOICES.items():
        value = _value(config, field)
        if value not in choices:
            raise InputError(
                f"config.{field} must be one of {', '.join(choices)}, found {value!r}."
            )
    if config.model.width % config.model.heads:
        raise InputError(
            f"config.model.width ({config.model.width}) must be a multiple of config.model.heads "
            f"({config.model.heads})."
        )
    for field, least in _AT_LEAST.items():
        value = _value(config, field)
        if value < least:
            raise InputError(f"config.{field} must be at least {least}, found {value}.")


def check_devices(config: Any, devices: int) -> None:
    """Raises InputError where a config cannot be computed on so many devices."""
    if devices > 1 and config.model.attention == "segments":
        raise InputError(
            f"config.model.attention=segments works on one device, found {devices}; set "
            "--config.devices=1, or --config.model.attention=tiled."
        )


def _value(config: Any, field: str) -> Any:
    for part in field.split("."):
        config = config[part]
    return config
