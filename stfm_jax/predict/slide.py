"""Predicts a slide from a trained model into an AnnData file, with a picture beside it.

Of a large slide features are read and draws written some spots at a time; see `predict.budget` for
what is held.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd

import stfm_jax
from stfm_jax.data.image import Rules
from stfm_jax.data.lattice import spot_spacing_um
from stfm_jax.data.readers import inputs
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.models.method import Request, Section, Standing, gathered
from stfm_jax.ops import metrics
from stfm_jax.plots import slides as plots
from stfm_jax.predict import areas, budget, features, library, outputs, spatial_store
from stfm_jax.predict.afterwards import afterwards
from stfm_jax.predict.draw_store import DrawStore
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.runtime.files import atomic_path
from stfm_jax.score import expected
from stfm_jax.store import Model

_LOG = logging.getLogger("stfm_jax")
QUANTILES = {"q10": 0.1, "q90": 0.9}
NUMBERS_AT_ONCE = 1 << 24  # of draws whose spread is computed together
ODD_SPACING = (
    1.25  # times that of a training slide, or one over it, from which on it is said [ours]
)
FEWEST = 10  # spots by which their spacing is told
SHOWN = 50_000  # spots of a map


def read_input(config: Any, model: Model) -> tuple[Model, Slide]:
    """The slide to predict, with features of the model's encoders, and the model for these.

    Raises:
      InputError: no input, features of another encoder or width, or neither features nor image.
    """
    options = config.predict
    slide = inputs.read_to_predict(
        options.input,
        dataclasses.replace(reading(options), rules=Rules.of(config.data)),
        not (options.embeddings or options.image),
    )
    if options.embeddings:
        slide = features.with_embeddings(slide, options.embeddings, options.patch_px)
    slide = areas.restricted(slide, options.regions)
    _say_odd_spacing(model, slide)
    folder = Path(options.output).parent
    embeds = bool(options.image or slide.patches)
    budget.check(model, slide, request_of(model, config), folder, embeds)
    if embeds:
        slide = features.with_image(slide, config, model)
    if slide.features is None:
        raise InputError(
            f"{slide.where}: has no features in obsm[{options.features_key!r}]; add the embedding "
            f"of {model.encoder or 'the encoder the model was trained on'}, give a file of them by "
            "--config.predict.embeddings, or the H&E image by --config.predict.image."
        )
    model, slide = features.arranged(model, slide)
    if not slide.encoder:
        _LOG.warning(
            "%s: does not say which encoder made its features (uns['encoder']); taking them to be "
            "of %s",
            slide.where,
            model.encoder or "the model's encoder",
        )
    model.method.check_input(slide)
    return model, slide


def _say_odd_spacing(model: Model, slide: Slide) -> None:
    """Says where spots are as far apart as those of no training slide."""
    known = [about["pitch_um"] for about in model.slides.values() if about.get("pitch_um")]
    if not known or slide.num_spots < FEWEST:
        return
    apart = spot_spacing_um(slide.coords_um)
    if not any(1 / ODD_SPACING <= apart / each <= ODD_SPACING for each in known):
        nearest = min(known, key=lambda each: abs(np.log(apart / each)))
        _LOG.warning(
            "%s: spots lie %.3g um apart, those of the training slides %.3g: micrometres per pixel "
            "may be wrong (%s); if they are right, neighbourhoods are others than in training",
            slide.where, apart, nearest,
            f"{slide.um_per_px:g} are taken" if slide.um_per_px else "places are micrometres",
        )  # fmt: skip


def reading(options: Any) -> inputs.Options:
    """How the `predict` section of a config says that its input is read."""
    return inputs.Options(
        features_key="features" if options.embeddings else options.features_key,
        spatial_unit=options.spatial_unit or None,
        um_per_px=options.um_per_px,
        in_tissue=options.in_tissue,
        bin_um=options.bin_um,
        cells_um=options.cells_um,
        patch_px=options.patch_px,
    )


def request_of(model: Model, config: Any, index: int = 0) -> Request:
    """How a config asks a model to predict; index: of a section among those of its stack."""
    draws = config.predict.draws, config.sample.mean_draws
    return Request(model.genes, config.seed + index, *draws, make_mesh(config.devices))


def predict(
    model: Model,
    slide: Slide,
    config: Any,
    checkpoint: Path,
    *,
    about: Mapping[str, Any] | None = None,
    picture: Callable[..., None] | None = None,
) -> None:
    """Predicts a slide into `config.predict.output`, and a map beside it (same name, .png).

    The file holds the mean in `X` [n, g]; std, q10 and q90 over draws, if any, in `layers`;
    `obsm['spatial']` as it came in and `['spatial_um']`; normalisation and provenance in `uns`. Of
    a method that knows how far the slide is from the training slides, `obs['distance']` and
    `uns['stfm']['distance_ratio']`, in units of left-out training slides.
    `var` says how well each gene did on slides left out in training, `uns['stfm']['library']` which
    counts of a spot log1p was predicted for.
    The slide's expression is not looked at. Where the input file holds counts, the map shows them
    beside the prediction, and the log says the Pearson correlation; nothing was fitted to them.

    Args:
      model: trained.
      slide: of `read_input`.
      config: for seed, number of draws, output and provenance.
      checkpoint: where the model lies, for provenance.
      about: more provenance.
      picture: draws it in place of `_draw_maps`, with the same arguments.
    """
    output, genes = Path(config.predict.output), [str(gene) for gene in model.genes.scored]
    regions = areas.of_spots(slide, config.predict.regions) if config.predict.regions else None
    if config.predict.geojson:
        areas.check_geojson(slide)
    n, g = slide.num_spots, len(genes)
    scaled = library.scaled_to(model, config.predict.library, config.data.normalization)
    with atomic_path(output) as temporary, DrawStore(output.parent, n, g) as store:
        case = Section(slide, familiar=model.familiar(slide))
        predicted = model.method.predict(model.state, case, request_of(model, config))
        for draw in predicted.draws or ():
            store.append(scaled(gathered(draw, n)[:, :g]))
        mean = scaled(gathered(predicted.mean, n)[:, :g])
        draws = predicted.draws is not None
        adata = _annotations(model, slide, config, checkpoint, draws)
        if regions is not None:
            adata.obs["region"] = pd.Categorical(regions)
        adata.uns["stfm"] |= about or {}
        if predicted.standing is not None:
            _say_distance(adata, predicted.standing)
        adata.write_h5ad(temporary)
        _write_matrices(temporary, mean, store if draws else None, config.predict.draws)
    _LOG.info("%s: %d spots, %d genes -> %s", slide.where, n, g, output)
    if config.predict.spatialdata:
        store_path = outputs.beside(output, "SpatialData")
        spatial_store.write(output, store_path)
        _LOG.info("%s: as SpatialData -> %s", slide.where, store_path)
    measured, known, scores = None, np.full(slide.num_spots, True), None
    with afterwards(output, "compared with the input's counts"):
        measured = _measured(config.predict, slide, genes, config.data.normalization)
        if measured is not None:
            known = np.isfinite(measured).all(axis=1)
            scores = metrics.pearson(mean[known], measured[known])
            _LOG.info(
                "the input holds counts too, of %d spots: gene-wise Pearson %.3f",
                *(known.sum(), metrics.mean_over_genes(scores)[0]),
            )
    if regions is not None:
        path = outputs.beside(output, "table of regions")
        areas.write_table(path, regions, mean, measured, genes)
    if config.predict.geojson:
        areas.write_geojson(outputs.beside(output, "GeoJSON"), output, slide, genes)
    title = f"{slide.name}: predicted by {model.method.name}"
    if config.predict.maps:
        if not known.all():
            title += f"\n{known.sum():,} of {len(known):,} spots, which have counts"
            slide, measured, mean = slide.subset(known), measured[known], mean[known]
        draw = picture or _draw_maps
        with afterwards(output, "its map"):
            path = outputs.beside(output, "map")
            draw(path, slide, measured, mean, genes, scores, title)


def _annotations(
    model: Model, slide: Slide, config: Any, checkpoint: Path, draws: bool
) -> anndata.AnnData:
    """Everything of the output but its matrices."""
    adata = anndata.AnnData(
        obs=pd.DataFrame(index=pd.Index(slide.barcodes.astype(str))),
        var=expected.columns(model.expected, [str(gene) for gene in model.genes.scored]),
        obsm={"spatial": slide.coords_in, "spatial_um": slide.coords_um},
    )
    adata.uns["normalization"] = config.data.normalization
    adata.uns["spatial_unit"] = slide.spatial_unit
    adata.uns["encoder"] = model.encoder
    adata.uns |= provenance(model, config, checkpoint, draws)
    assumed = config.predict.library or library.trained_on(model)
    if config.data.normalization == "log1p" and assumed:
        adata.uns["stfm"]["library"] = float(assumed)
    return adata


def _say_distance(adata: anndata.AnnData, standing: Standing) -> None:
    """How far the slide and its spots are from the training slides."""
    adata.obs["distance"] = standing.of_spots()
    adata.uns["stfm"] |= {
        "distance_ratio": standing.ratio,
        "distance_usual": standing.usual,
        "distance_stranger": standing.stranger,
        "flexible_share": standing.share,
        "familiar_patient": standing.familiar,
    }


def provenance(model: Model, config: Any, checkpoint: Path, draws: bool = True) -> dict[str, Any]:
    """What `uns` says of how a prediction was made."""
    about = {
        "version": stfm_jax.__version__,
        "method": model.method.name,
        "checkpoint": str(checkpoint),
        "config": config.to_json_best_effort(),
        "X": "posterior mean: x_1_hat at t = 0" if draws else "prediction",
    }
    if draws:
        about |= {
            "draws": config.predict.draws,
            "evaluations_per_draw": config.sample.evaluations,
            "layers": "std, q10 and q90 over joint draws",
        }
    return {"stfm": about}


def _write_matrices(path: Path, mean: np.ndarray, store: DrawStore | None, draws: int) -> None:
    """Adds `X` and, of draws, the layers to an AnnData file, some spots at a time."""
    n, g = mean.shape
    at_once = max(1, NUMBERS_AT_ONCE // (draws * g))
    with h5py.File(path, "r+") as file:
        x = _matrix(file, "X", mean.shape)
        if store is None:
            x[:] = mean
            return
        layers = {name: _matrix(file["layers"], name, mean.shape) for name in ("std", *QUANTILES)}
        for first in range(0, n, at_once):
            last = min(first + at_once, n)
            sampled = store.read(first, last)
            x[first:last] = mean[first:last]
            layers["std"][first:last] = sampled.std(axis=0, ddof=1)
            for name, p in QUANTILES.items():
                layers[name][first:last] = metrics.quantiles(sampled, p)


def _matrix(group: h5py.Group, name: str, shape: tuple[int, int]) -> h5py.Dataset:
    """A matrix to be filled, marked as AnnData's on-disk format asks."""
    matrix = group.create_dataset(name, shape, np.float32)
    matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return matrix


def _measured(
    options: Any, slide: Slide, genes: list[str], normalization: str
) -> np.ndarray | None:
    """Expression in the input, where it has counts of every gene."""
    try:
        return inputs.read_expression(
            options.input, reading(options), slide.barcodes, genes, normalization
        )
    except (InputError, FileNotFoundError):
        return None


def _draw_maps(path: Path, slide: Slide, measured, mean, genes, scores, title: str) -> None:
    """Maps of the most variable genes."""
    some, title = shown(slide, title)
    figure = plots.spatial_maps(
        slide.coords_um[some],
        None if measured is None else measured[some],
        mean[some],
        genes,
        scores=scores,
        title=title,
    )
    plots.save(figure, path)


def shown(slide: Slide, title: str) -> tuple[Any, str]:
    """The spots of a picture, of a slide of over SHOWN some, and its title, which says so."""
    n = slide.num_spots
    if n <= SHOWN:
        return slice(None), title
    some = np.sort(np.random.default_rng(0).choice(n, SHOWN, replace=False))
    return some, f"{title}\n{SHOWN:,} of {n:,} spots"
