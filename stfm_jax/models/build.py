"""From a config to a method. Networks take typed attributes, never a ConfigDict."""

from __future__ import annotations

from typing import Any

from stfm_jax.errors import InputError
from stfm_jax.flow.priors import PRIORS
from stfm_jax.models.stflow import ANCHORS, STFlow
from stfm_jax.nn.blocks import FRAMES
from stfm_jax.nn.stflow_net import EXPRESSIONS, ImageTower, STFlowNet

METHODS = ("stflow",)
_CHOICES = {
    "method": METHODS,
    "prior": PRIORS,
    "model.anchor": ANCHORS,
    "model.expression": EXPRESSIONS,
    "model.frames": FRAMES,
    "train.loss_weight": ("velocity", "data"),
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
        loss_weight=config.train.loss_weight,
        evaluations=config.sample.evaluations,
    )


def check(config: Any) -> None:
    """Raises InputError for values outside their choices, before anything is read."""
    for field, choices in _CHOICES.items():
        value = config
        for part in field.split("."):
            value = value[part]
        if value not in choices:
            raise InputError(
                f"config.{field} must be one of {', '.join(choices)}, found {value!r}."
            )
    if config.model.width % config.model.heads:
        raise InputError(
            f"config.model.width ({config.model.width}) must be a multiple of config.model.heads "
            f"({config.model.heads})."
        )
    for field in ("train.epochs", "train.regions_per_slide", "train.slides_per_step"):
        section, name = field.split(".")
        if config[section][name] < 1:
            raise InputError(f"config.{field} must be at least 1, found {config[section][name]}.")
