"""Predicts the image of a slide: tissue is found on it, a lattice of spots laid over, and embedded.

Nothing but pixels is read of it. Features lie in files beside the output while they are needed, so
that a command that was stopped goes on; see `encoders.embed`.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stfm_jax.data import embeddings, lattice, tissue
from stfm_jax.data.image import ImagePatches
from stfm_jax.data.images.image import MAX_GIB
from stfm_jax.data.images.opening import open_image
from stfm_jax.data.images.scale import um_per_px
from stfm_jax.data.slide import Slide
from stfm_jax.encoders import embed
from stfm_jax.errors import InputError
from stfm_jax.plots import overview
from stfm_jax.plots.slides import save
from stfm_jax.predict import areas, budget, features
from stfm_jax.predict import slide as predict_slide
from stfm_jax.runtime import distributed
from stfm_jax.runtime.files import temporary_prefix
from stfm_jax.store import Model

_LOG = logging.getLogger("stfm_jax")
SPACING_UM = 100.0  # where a model does not know that of its training slides: Visium's
_ODD_SPACING = 1.5  # times that of the training slides, or one over it


def run(config: Any, model: Model, folder: Path) -> None:
    """Predicts `config.predict.input`, an image, into `config.predict.output`, with pictures.

    Raises:
      InputError: options; an image that cannot be read, of unknown scale, or without tissue; or
        features that cannot be made of it.
    """
    options = config.predict
    _check(options)
    spacing = spacing_um(options, model)
    found, slide = spots(options, spacing, config.data.max_image_gib)
    slide = areas.restricted(slide, options.regions)
    request, beside = predict_slide.request_of(model, config), Path(options.output).parent
    budget.check(model, slide, request, beside, embeds=False)
    encoders = features.encoders_for(config, model)
    budget.check_features(slide, sum(encoder.width for encoder in encoders), beside)
    with _kept(slide, Path(options.output)) as folder_of_features:
        several = [
            embed.stored(slide, encoder, folder_of_features / f"{encoder.identity}.h5")
            for encoder in encoders
        ]
        model, slide = features.arranged(model, embeddings.align_all(slide, several))
        model.method.check_input(slide)
        predict_slide.predict(
            model,
            slide,
            config,
            folder,
            about=_about(found, slide, options, spacing),
            picture=functools.partial(_draw, found),
        )


def spots(options: Any, spacing: float, max_gib: float = MAX_GIB) -> tuple[tissue.Tissue, Slide]:
    """The tissue of an image, and a slide of spots on it, with patches.

    Args:
      options: section `predict` of a config.
      spacing: between neighbouring spots, micrometres.
      max_gib: of pixels that are decoded together.

    Raises:
      InputError: no image, no scale, or no tissue.
    """
    path = Path(options.input)
    with open_image(path, max_gib) as image:
        scale = um_per_px(image, options.um_per_px, "--config.predict.um_per_px")
        found = tissue.find(image, scale, options.tissue_threshold)
        size_um = image.size[0] * scale, image.size[1] * scale
    coords = lattice.covering(size_um, spacing, options.lattice)
    coords = np.round(coords[found.at(coords)] / scale)
    if not len(coords):
        raise InputError(
            f"{path}: none of the spots, {spacing:g} um apart, lies on its tissue; lower "
            "--config.predict.spacing_um."
        )
    slide = Slide(
        name=path.stem.removesuffix(".ome"),
        barcodes=np.array([f"x{x:.0f}_y{y:.0f}" for x, y in coords]),
        coords_um=coords * scale,
        coords_in=coords,
        spatial_unit="pixel",
        patches=ImagePatches(path, coords, scale, max_gib),
        source=str(path),
    )
    _LOG.info(
        "%s: %.1f mm2 of tissue, %d spots %g um apart (%s), %g um per pixel",
        slide.where,
        found.mask.sum() * found.um_per_px**2 / 1e6,
        len(coords),
        spacing,
        options.lattice,
        scale,
    )
    return found, slide


def spacing_um(options: Any, model: Model) -> float:
    """Distance of neighbouring spots: what is asked for, else that of the training slides."""
    known = [slide["pitch_um"] for slide in model.slides.values() if slide.get("pitch_um")]
    trained = float(np.median(known)) if known else None
    if options.spacing_um is None:
        return trained or SPACING_UM
    if trained and not 1 / _ODD_SPACING <= options.spacing_um / trained <= _ODD_SPACING:
        _LOG.warning(
            "spots %g um apart were asked for; those of the training slides are %g, and what a "
            "method takes for the neighbourhood of a spot is another then",
            options.spacing_um,
            trained,
        )
    return float(options.spacing_um)


def _check(options: Any) -> None:
    if options.lattice not in lattice.FOLDS:
        raise InputError(
            f"config.predict.lattice must be one of {', '.join(lattice.FOLDS)}, found "
            f"{options.lattice!r}."
        )
    if options.spacing_um is not None and not options.spacing_um >= 1:
        raise InputError(
            f"config.predict.spacing_um must be at least 1, found {options.spacing_um:g}."
        )
    if options.image or options.embeddings:
        raise InputError(
            f"{options.input}: is an image, whose spots and features are made here; leave "
            "--config.predict.image and --config.predict.embeddings out."
        )


@contextmanager
def _kept(slide: Slide, output: Path) -> Iterator[Path]:
    """A folder beside the output for what is made of this image and these spots.

    It stays where the block is left by an error, and is found again.
    """
    path = Path(slide.source)
    about = f"{path.absolute()} {path.stat().st_size} {path.stat().st_mtime_ns} "
    digest = hashlib.sha256(about.encode() + np.ascontiguousarray(slide.coords_um).tobytes())
    folder = output.parent / f"{temporary_prefix(output)}{digest.hexdigest()[:12]}"
    yield folder
    distributed.barrier("features were used")
    if distributed.is_main():
        shutil.rmtree(folder, ignore_errors=True)


def _about(found: tissue.Tissue, slide: Slide, options: Any, spacing: float) -> dict[str, Any]:
    return {
        "image": Path(options.input).name,
        "um_per_px": slide.patches.um_per_px,
        "spacing_um": spacing,
        "lattice": options.lattice,
        "tissue_threshold": found.threshold,
        "tissue_share": found.share,
    }


def _draw(found, path, slide, measured, mean, genes, scores, title) -> None:
    shown, title = predict_slide.shown(slide, title)
    figure = overview.over_slide(
        found.overview,
        found.mask,
        found.um_per_px,
        slide.coords_um[shown],
        mean[shown],
        genes,
        title=title,
    )
    save(figure, path)
