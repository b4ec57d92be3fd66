"""Predicts a slide from a trained model into an AnnData file, with a picture beside it."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

import stfm_jax
from stfm_jax.data.expression import expression
from stfm_jax.data.image import ImagePatches
from stfm_jax.data.readers import h5ad
from stfm_jax.data.slide import Slide
from stfm_jax.encoders.embed import Encoder, embed
from stfm_jax.errors import InputError
from stfm_jax.eval import plots
from stfm_jax.eval.model_store import Model, check_features
from stfm_jax.ops import metrics
from stfm_jax.runtime.files import atomic_path

_LOG = logging.getLogger("stfm_jax")
QUANTILES = {"q10": 0.1, "q90": 0.9}
MIN_DRAWS = 2


def read_input(config: Any, encoder: Encoder | None, model: Model) -> Slide:
    """The slide to predict, with features of the encoder the model was trained on.

    Raises:
      InputError: no input, features of another encoder or width, or neither features nor image.
    """
    options = config.predict
    if not options.input or not options.output:
        raise InputError(
            "--mode=predict needs --config.predict.input=IN.h5ad and "
            "--config.predict.output=OUT.h5ad."
        )
    output = Path(options.output)
    if output.suffix != ".h5ad" or output.resolve() == Path(options.input).resolve():
        raise InputError(
            f"--config.predict.output must name a new .h5ad file, found {options.output!r} (the "
            f"input is {options.input!r})."
        )
    slide = h5ad.read(
        options.input,
        features_key=options.features_key,
        spatial_unit=options.spatial_unit or None,
        um_per_px=options.um_per_px,
        require_counts=False,
    )
    if options.image:
        slide = _embed_image(slide, config, encoder)
    if slide.features is None:
        raise InputError(
            f"{slide.where}: has no features in obsm[{options.features_key!r}]; add the embedding "
            f"of {model.encoder or 'the encoder the model was trained on'}, or give the H&E image "
            "by --config.predict.image."
        )
    check_features(model, slide)
    if not slide.encoder:
        _LOG.warning(
            "%s: does not say which encoder made its features (uns['encoder']); taking them to be "
            "of %s",
            slide.where,
            model.encoder or "the model's encoder",
        )
    if slide.num_spots <= model.task.neighbors:
        raise InputError(
            f"{slide.where}: has {slide.num_spots} spots; the model needs more than "
            f"{model.task.neighbors}, its number of neighbours."
        )
    return slide


def _embed_image(slide: Slide, config: Any, encoder: Encoder | None) -> Slide:
    if encoder is None:
        raise InputError(
            f"--config.predict.image: the model uses features of {config.encoder.name!r}, which "
            "is not built in; embed the slide with it and store them in obsm['features']."
        )
    if slide.spatial_unit != "pixel":
        raise InputError(
            f"{slide.where}: coordinates must be pixels of the image to be embedded from it, found "
            "micrometres; store pixels in obsm['spatial'] and uns['um_per_px']."
        )
    um_per_px = float(
        np.linalg.norm(np.ptp(slide.coords_um, axis=0))
        / np.linalg.norm(np.ptp(slide.coords_in, axis=0))
    )
    patches = ImagePatches(config.predict.image, slide.coords_in, um_per_px)
    slide = dataclasses.replace(slide, patches=patches)
    return dataclasses.replace(slide, features=embed(slide, encoder), encoder=encoder.name)


def predict(model: Model, slide: Slide, config: Any, checkpoint: Path) -> anndata.AnnData:
    """Predicted expression of a slide.

    Args:
      model: trained.
      slide: with features; its expression, if any, is not looked at.
      config: for seed, number of draws and provenance.
      checkpoint: where the model lies, for provenance.

    Returns:
      AnnData: `X` posterior mean [n, g], `layers` std, q10 and q90 over draws, `obsm['spatial']`
      as it came in and `['spatial_um']`, normalisation and provenance in `uns`.
    """
    draws = config.predict.draws
    if draws < MIN_DRAWS:
        raise InputError(
            f"config.predict.draws must be at least {MIN_DRAWS} for a spread, found {draws}."
        )
    prepared = model.task.prepare(slide, model.fitted)
    mean, sampled = model.predict(prepared, config.seed, draws, config.sample.mean_draws)
    g = len(model.genes)
    mean, sampled = mean[:, :g], sampled[..., :g]
    layers = {"std": sampled.std(axis=0, ddof=1)}
    for name, p in QUANTILES.items():
        layers[name] = metrics.quantiles(sampled, p)
    adata = anndata.AnnData(
        X=mean.astype(np.float32),
        obs=pd.DataFrame(index=pd.Index(slide.barcodes.astype(str))),
        var=pd.DataFrame(index=pd.Index([str(gene) for gene in model.genes])),
        layers={name: np.asarray(value, np.float32) for name, value in layers.items()},
        obsm={"spatial": slide.coords_in, "spatial_um": slide.coords_um},
    )
    adata.uns["normalization"] = model.task.normalization
    adata.uns["spatial_unit"] = slide.spatial_unit
    adata.uns["encoder"] = model.encoder
    adata.uns["stfm"] = {
        "version": stfm_jax.__version__,
        "method": model.task.name,
        "checkpoint": str(checkpoint),
        "config": config.to_json_best_effort(),
        "draws": draws,
        "evaluations_per_draw": model.task.evaluations,
        "X": "posterior mean: x_1_hat at t = 0",
        "layers": "std, q10 and q90 over joint draws",
    }
    return adata


def write(adata: anndata.AnnData, slide: Slide, config: Any) -> None:
    """Writes the prediction and a map of its most variable genes beside it (same name, .png).

    Where the input file holds counts, the map shows them beside the prediction, and the log says
    the Pearson correlation; nothing was fitted to them.
    """
    output = Path(config.predict.output)
    genes = list(adata.var_names)
    measured = _measured(config, genes, adata.uns["normalization"])
    scores = None if measured is None else metrics.pearson(adata.X, measured)
    figure = plots.spatial_maps(
        slide.coords_um,
        measured,
        np.asarray(adata.X),
        genes,
        scores=scores,
        title=f"{slide.name}: predicted by {adata.uns['stfm']['method']}",
    )
    with atomic_path(output) as temporary:
        adata.write_h5ad(temporary)
    plots.save(figure, output.with_suffix(".png"))
    _LOG.info("%s: %d spots, %d genes -> %s", slide.where, adata.n_obs, adata.n_vars, output)
    if scores is not None:
        _LOG.info(
            "the input holds counts too: gene-wise Pearson %.3f", metrics.mean_over_genes(scores)[0]
        )


def _measured(config: Any, genes: list[str], normalization: str) -> np.ndarray | None:
    """Expression in the input file, where it has counts of every gene."""
    try:
        slide = h5ad.read(
            config.predict.input,
            features_key=config.predict.features_key,
            spatial_unit=config.predict.spatial_unit or None,
            um_per_px=config.predict.um_per_px,
        )
        return expression(slide, genes, normalization)
    except InputError:
        return None
