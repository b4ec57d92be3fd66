"""The features that a model is to see of a slide: from its file, from embeddings, from an image.

A model of several encoders predicts with those that are there, where its method can.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from stfm_jax.data import embeddings, feature_blocks, image
from stfm_jax.data.feature_store import Features
from stfm_jax.data.readers import inputs
from stfm_jax.data.slide import JOINED_BY, Slide
from stfm_jax.encoders import loading
from stfm_jax.encoders.embed import embed
from stfm_jax.encoders.encoder import Encoder
from stfm_jax.errors import InputError
from stfm_jax.models.method import NotApplicable
from stfm_jax.store import Model, check_features

_LOG = logging.getLogger("stfm_jax")


def with_embeddings(slide: Slide, files: str, patch_px: float | None) -> Slide:
    """The slide with the embeddings of a file, or of several with commas between.

    Args:
      patch_px: side of the patches in pixels of level 0, over what the files say.
    """
    return embeddings.align_all(slide, inputs.open_embeddings(files, patch_px))


def with_image(slide: Slide, config: Any, model: Model, rules: image.Rules | None = None) -> Slide:
    """The slide with features of `predict.image`, or of its own, by the model's encoders.

    Of a model of several encoders those that the slide has features of are not made again.

    Args:
      slide: in pixels.
      config: names the image and the encoders.
      model: whose they are.
      rules: how the image is taken, in place of the config's.

    Raises:
      InputError: they cannot be made here, or would be of another encoder or other weights.
    """
    there = _of_model(model, slide) if model.widths else {}
    encoders = encoders_for(config, model, there)
    if config.predict.image and slide.spatial_unit != "pixel":
        raise InputError(
            f"{slide.where}: coordinates must be pixels of the image to be embedded from it, found "
            "micrometres; store pixels in obsm['spatial'] and uns['um_per_px']."
        )
    if config.predict.image:
        slide = image.with_image(slide, config.predict.image, rules or image.Rules.of(config.data))
        there = _of_model(model, slide) if model.widths else {}
    made = {encoder.identity: embed(slide, encoder) for encoder in encoders}
    return feature_blocks.joined(slide, there | made)


def encoders_for(
    config: Any, model: Model, there: Mapping[str, Features] | None = None
) -> tuple[Encoder, ...]:
    """The model's encoders that are to embed an image here.

    Args:
      config: names them, and the weights.
      model: trained on their features.
      there: features that need not be made, by encoder.

    Raises:
      InputError: they cannot be had, or are not those of the model.
    """
    lacking = [i for i, name in enumerate(model.encoders) if name not in (there or {})]
    # The config names them in the order of the model's, or says that all are precomputed.
    named = len(loading.names_of(config.encoder.name)) == len(model.encoders)
    encoders = loading.of_config(config.encoder, lacking) if named else ()
    if lacking and not encoders:
        raise InputError(
            f"the image: the model uses features of {config.encoder.name!r}, which "
            "is not built in; name the folder of its weights by --config.encoder.weights, or embed "
            "the slide with it and store them in obsm['features']."
        )
    for encoder in encoders:
        if model.encoder and encoder.identity not in model.encoders:
            raise InputError(
                f"the image: would be embedded by {encoder.identity!r}, but the model "
                f"was trained on {' and '.join(map(repr, model.encoders))}; give the weights that "
                "it was trained with by --config.encoder.weights."
            )
    return encoders


def arranged(model: Model, slide: Slide) -> tuple[Model, Slide]:
    """The slide with the features that the model sees, and the model for those of its encoders.

    Raises:
      InputError: features of no encoder of the model, or not of all where its method needs them.
    """
    if slide.widths or model.widths:
        model, slide = _chosen(model, slide)
    check_features(model, slide)
    return model, slide


def _chosen(model: Model, slide: Slide) -> tuple[Model, Slide]:
    there = _of_model(model, slide)
    lacking = [name for name in model.encoders if name not in there]
    if not there:
        raise InputError(
            f"{slide.where}: its features were made by "
            f"{', '.join(map(repr, feature_blocks.by_encoder(slide)))}, but the model was trained "
            f"on {' and '.join(map(repr, model.encoders))}; embed the slide with one of these."
        )
    if lacking:
        model = _without(model, lacking, slide)
    return model, feature_blocks.joined(slide, {name: there[name] for name in model.encoders})


def _of_model(model: Model, slide: Slide) -> dict[str, Features]:
    """The slide's features by the model's encoders; of a short name alone it is said."""
    found = feature_blocks.by_encoder(slide)
    there = {name: found[name] for name in model.encoders if name in found}
    for name in model.encoders:
        short = feature_blocks.short_name(name)
        if name not in there and short in found:
            there[name] = found[short]
            _LOG.warning(
                "%s: does not say how %r was embedded (uns['encoders']); taking it to be %s",
                slide.where,
                short,
                name,
            )
    return there


def _without(model: Model, lacking: list[str], slide: Slide) -> Model:
    """The model without some of its encoders."""
    kept = [i for i, name in enumerate(model.encoders) if name not in lacking]
    try:
        state = model.method.narrowed(model.state, kept)
    except NotApplicable as lack:
        raise InputError(
            f"{slide.where}: has no features of {', '.join(lacking)}, and {lack}; give them or the "
            "H&E image, or take a method that can do without, as in "
            "--config.predict.method=kernel_ridge."
        ) from lack
    names = [model.encoders[i] for i in kept]
    _LOG.warning(
        "%s: has no features of %s; predicted with those of %s alone",
        slide.where,
        ", ".join(lacking),
        ", ".join(names),
    )
    widths = tuple(model.widths[i] for i in kept)
    return dataclasses.replace(
        model,
        state=state,
        encoder=JOINED_BY.join(names),
        features=sum(widths),
        widths=widths if len(kept) > 1 else (),
    )
