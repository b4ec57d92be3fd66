"""What predicting a slide will take, said before the work: memory, and disk beside the output.

What a method holds it says itself (`Method.bytes_needed`). Disk was estimated and measured on 2 CPU
cores (50 genes): 100,000 spots and 8 draws 0.9 GiB; 1,000,000 5.5.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.models.method import Request
from stfm_jax.predict import draw_store
from stfm_jax.runtime.memory import GIB, available_memory
from stfm_jax.store import Model


def memory(model: Model, num_spots: int, request: Request, features_held: bool) -> int:
    """Bytes of the host that prediction adds at its peak to what is held before it.

    Args:
      model: trained.
      num_spots: n.
      request: how it is to be predicted.
      features_held: whether features will lie in memory that do not yet.
    """
    held = 4 * model.features * num_spots if features_held else 0
    return held + model.method.bytes_needed(model.state, num_spots, request)


def disk(num_spots: int, genes: int, draws: int) -> int:
    """Bytes that the output takes, and the draws until it is written."""
    matrix = 4 * num_spots * genes
    drawn = draws * matrix
    return 4 * matrix + 256 * num_spots + (drawn if drawn > draw_store.IN_MEMORY else 0)


def check(model: Model, slide: Slide, request: Request, folder: Path, embeds: bool) -> None:
    """Refuses a slide that memory or disk cannot hold, before hours are spent on it.

    Args:
      model: trained.
      slide: to predict.
      request: how it is to be predicted.
      folder: of the output.
      embeds: whether its features are made from an image.

    Raises:
      InputError: says what is needed, what there is, and which option needs less.
    """
    n, genes, draws = slide.num_spots, len(model.genes.scored), request.draws
    there = available_memory()

    def needed(spots: int = n, draws: int = draws, embeds: bool = embeds) -> int:
        return memory(model, spots, dataclasses.replace(request, draws=draws), embeds)

    if needed() > there:
        ways = []
        if needed(draws=2) <= there:
            fitting = _largest(lambda k: needed(draws=k) <= there, draws)
            ways.append(f"lower --config.predict.draws from {draws} to {fitting}")
        if embeds and needed(embeds=False) <= there:
            ways.append("embed the slide into a file first, --config.predict.embeddings=FILE.h5")
        elif isinstance(slide.features, np.ndarray) and needed() - slide.features.nbytes <= there:
            ways.append("put its features into a file, --config.predict.embeddings=FILE.h5")
        fitting = _largest(lambda k: needed(spots=k) <= there, n)
        if fitting > 1000:
            ways.append(f"cut the slide into files of at most {fitting // 1000 * 1000:,} spots")
        raise InputError(
            f"{slide.where}: to predict {n:,} spots needs about {needed() / GIB:.1f} GiB of "
            f"memory, {there / GIB:.1f} GiB are free; "
            + ", or ".join([*ways, "use a machine with more memory"])
            + "."
        )
    _check_disk(slide, genes, draws, folder)


def check_features(slide: Slide, width: int, folder: Path) -> None:
    """Raises InputError where the features of a slide, kept in a folder meanwhile, have no room."""
    needed, free = 2 * 4 * slide.num_spots * width, free_disk(folder)  # twice: as they are put in
    if needed > free:
        raise InputError(
            f"{slide.where}: {width} features of {slide.num_spots:,} spots need "
            f"{needed / GIB:.1f} GiB beside --config.predict.output while they are made, "
            f"{free / GIB:.1f} GiB are free; make room, write to another disk, or ask for fewer "
            "spots by --config.predict.spacing_um."
        )


def _check_disk(slide: Slide, genes: int, draws: int, folder: Path) -> None:
    n, free = slide.num_spots, free_disk(folder)
    if disk(n, genes, draws) > free:
        raise InputError(
            f"{slide.where}: {draws} draws of {n:,} spots need about "
            f"{disk(n, genes, draws) / GIB:.1f} GiB beside --config.predict.output, "
            f"{free / GIB:.1f} GiB are free; lower --config.predict.draws, or choose another disk."
        )


def free_disk(folder: Path) -> int:
    """Bytes free on the disk that a folder lies on, or will lie on."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, by bisection; 0 where none does."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
