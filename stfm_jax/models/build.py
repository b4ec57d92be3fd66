"""From a config to a method. Networks take typed attributes, never a ConfigDict."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from stfm_jax.data import coarsen
from stfm_jax.data.batching import TILE
from stfm_jax.data.registration import KINDS
from stfm_jax.data.retrieval import Reach
from stfm_jax.errors import InputError
from stfm_jax.flow import simplex_path
from stfm_jax.flow.priors import PRIORS
from stfm_jax.models import holotea
from stfm_jax.models.holotea import HoloTea
from stfm_jax.models.srast import SRast
from stfm_jax.models.stflow import ANCHORS, STFlow
from stfm_jax.nn.blocks import FRAMES
from stfm_jax.nn.control import ControlNet
from stfm_jax.nn.mlp import PRECISIONS
from stfm_jax.nn.split_net import SplitNet
from stfm_jax.nn.stflow_net import ATTENTIONS, EXPRESSIONS, ImageTower, STFlowNet
from stfm_jax.ops import simplex
from stfm_jax.regression.features import STANDARDIZATIONS
from stfm_jax.regression.split_images import ImageReader

METHODS = ("stflow", "holotea", "srast")
OF_STACKS = ("holotea",)  # whose slides must be registered
OF_PAIRS = ("srast",)  # of two resolutions of one tissue
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
    "stack.registration": KINDS,
    "stack.prior": holotea.PRIORS,
    "stack.base": holotea.BASES,
    "coarsen.group": (*coarsen.GROUPS, coarsen.SIZED, coarsen.NAMED),
    "srast.path": simplex_path.PATHS,
    "srast.noise": simplex_path.NOISES,
    "srast.pairing": simplex_path.PAIRINGS,
    "predict.whole": simplex.ALLOCATIONS,
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
    "stack.sections": 1,
    "stack.epochs": 1,
    "stack.candidates": 1,
    "stack.kept": 1,
    "stack.context_width": 1,
    "stack.consistency": 0,
    "stack.rho": 0,
    "srast.width": 1,
    "srast.blocks": 0,
    "srast.batch": 1,
    "srast.pool": 1,
    "srast.trained_on": 1,
    "srast.pairs_at_once": 1,
    "srast.velocity": 0,
    "srast.kl": 0,
    "srast.boundary": 0,
}


def build_split(config: Any) -> SRast:
    """The method that splits counts, as a config describes it.

    Raises:
      InputError: as `check`.
    """
    check(config)
    srast, model = config.srast, config.model
    reader = ImageReader(model.components, tuple(model.context), config.data.standardize)
    return SRast(
        network=SplitNet(srast.width, srast.blocks, srast.heads),
        path=srast.path,
        noise=srast.noise,
        pairing=srast.pairing,
        velocity=srast.velocity,
        kl=srast.kl,
        boundary=srast.boundary,
        latents=srast.latents,
        images=reader if srast.image else None,
        evaluations=config.sample.evaluations,
    )


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
    stflow = STFlow(
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
    return stflow if config.method == "stflow" else _holotea(config, stflow)


def _holotea(config: Any, base: STFlow) -> HoloTea:
    """The method for stacks whose base is this one."""
    stack = config.stack
    control = ControlNet(
        base=base.network,
        width=stack.context_width,
        noise=config.model.feature_noise,
        dropout=config.model.feature_dropout,
        global_attention=stack.global_attention,
        slides=config.train.slides_per_step,
    )
    reach = Reach(
        sections=stack.sections,
        candidates=stack.candidates,
        kept=stack.kept,
        image=stack.image,
        sigma_um=stack.sigma_um,
        z_um=stack.z_um,
        temperature=stack.temperature,
    )
    settings = {field.name: getattr(base, field.name) for field in dataclasses.fields(STFlow)}
    return HoloTea(
        **settings,
        control=control if stack.control else None,
        reach=reach,
        context_width=stack.context_width,
        trained_base=stack.base == "trained",
        see_expression=stack.expression,
        context_mix=stack.prior == "mix",
        rho=stack.rho,
        prior_decay_um=stack.prior_decay_um,
        consistency=stack.consistency,
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
    if config.srast.width % config.srast.heads:
        raise InputError(
            f"config.srast.width ({config.srast.width}) must be a multiple of config.srast.heads "
            f"({config.srast.heads})."
        )
    paired, fitted = config.srast.pairing == "optimal", config.srast.noise == "fitted"
    if paired and fitted and config.srast.path == "dirichlet":
        raise InputError(
            "config.srast.pairing=optimal exchanges noise between pairs, but fitted noise is each "
            "pair's own; set --config.srast.noise=uniform."
        )
    if config.coarsen.group == coarsen.SIZED and config.coarsen.size_um <= 0:
        raise InputError(
            "config.coarsen.group=size needs the side of the squares, --config.coarsen.size_um."
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
