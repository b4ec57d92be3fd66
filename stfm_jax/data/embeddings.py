"""Patch embeddings as HEST-bench stores them, and putting them on a slide.

One `.h5` file per slide: `embeddings` [n, f], `coords` [n, 2] pixels, `barcodes` [n, 1] bytes.
[ours] the attribute `encoder` names the encoder with its patch size; files of the HEST code have
none. Making embeddings is the business of `stfm_jax.encoders`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from stfm_jax.data import feature_blocks, feature_store
from stfm_jax.data.hdf5 import decode_strings, open_hdf5
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.runtime.files import atomic_path

_LOG = logging.getLogger("stfm_jax")
_GET = "Embed the slides with `python run.py --mode=embed`, or check the embeddings folder."
_MEND = "delete the file and embed the slide again."


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Embeddings of one slide's patches."""

    embeddings: feature_store.Features  # [n, f] float32
    coords: np.ndarray  # [n, 2] pixels, as stored
    barcodes: np.ndarray  # [n] str
    encoder: str | None  # name with patch size; None where the file does not say
    source: str = ""  # the file, for messages

    @property
    def where(self) -> str:
        return self.source or "embeddings"


def write(
    path: str | Path, embeddings: np.ndarray, coords: np.ndarray, barcodes: np.ndarray, encoder: str
) -> None:
    """Writes an embedding file, whole or not at all.

    Args:
      embeddings: [n, f], stored as float32.
      coords: [n, 2] pixels.
      barcodes: [n] str.
      encoder: name of the encoder, patch size included.

    Raises:
      InputError: the lengths differ.
    """
    if not len(embeddings) == len(coords) == len(barcodes):
        raise InputError(
            f"{path}: expected as many embeddings as coordinates and barcodes, found "
            f"{len(embeddings)}, {len(coords)} and {len(barcodes)}."
        )
    encoded = np.array([str(b).encode() for b in barcodes], dtype=bytes).reshape(-1, 1)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("embeddings", data=np.asarray(embeddings, dtype=np.float32))
        file.create_dataset("coords", data=np.asarray(coords))
        file.create_dataset("barcodes", data=encoded)
        file.attrs["encoder"] = encoder


def read(path: str | Path) -> Embeddings:
    """Reads an embedding file of this project or of the HEST code; half precision becomes float32.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is empty, damaged, lacks a dataset, or its datasets differ in length.
    """
    stored = open_stored(path)
    with open_hdf5(path, ("embeddings",), _GET, _MEND) as file:
        values = file["embeddings"][()].astype(np.float32, copy=False)
    return dataclasses.replace(stored, embeddings=values)


def open_stored(path: str | Path) -> Embeddings:
    """Reads an embedding file as `read`, but embeddings stay there; see `data.feature_store`."""
    with open_hdf5(path, ("embeddings", "coords", "barcodes"), _GET, _MEND) as file:
        shape = file["embeddings"].shape
        coords = file["coords"][()]
        barcodes = decode_strings(file["barcodes"][()])
        if len(shape) != 2 or not shape[0] == len(coords) == len(barcodes):
            raise InputError(
                f"{path}: expected embeddings [n, f], coords [n, 2] and barcodes [n, 1], found "
                f"{shape}, {coords.shape} and {barcodes.shape}; {_MEND}"
            )
        features = feature_store.stored_features(file["embeddings"], str(path))
        return Embeddings(features, coords, barcodes, file.attrs.get("encoder"), str(path))


def align(slide: Slide, embeddings: Embeddings) -> Slide:
    """The slide with embeddings as its features, matched by barcode.

    Spots without an embedding are dropped (HEST embeds the spots under tissue only), and a line is
    logged.

    Raises:
      InputError: a barcode occurs twice in the embeddings, or none matches the slide.
    """
    values, times = np.unique(embeddings.barcodes, return_counts=True)
    if (times > 1).any():
        raise InputError(
            f"{embeddings.where}: barcodes must be unique, but '{values[times > 1][0]}' occurs "
            f"{times.max()} times; {_MEND}"
        )
    row = pd.Index(embeddings.barcodes).get_indexer(slide.barcodes)
    found = row >= 0
    if not found.any():
        raise InputError(
            f"{slide.where}: none of its {slide.num_spots} barcodes (such as "
            f"{_examples(slide.barcodes)}) is among the {len(embeddings.barcodes)} of "
            f"{embeddings.where} (such as {_examples(embeddings.barcodes)}); they must be of the "
            "same slide and spelled alike."
        )
    if not found.all():
        _LOG.info(
            "%s: %d of %d spots dropped, which have no embedding in %s",
            slide.where,
            int((~found).sum()),
            len(found),
            embeddings.where,
        )
        slide = slide.subset(found)
    features = feature_store.take(embeddings.embeddings, row[found])
    return dataclasses.replace(slide, features=features, encoder=embeddings.encoder, widths=())


def align_all(slide: Slide, several: Sequence[Embeddings]) -> Slide:
    """The slide with the embeddings of one encoder or of several, as `align`.

    Spots that lack one of them are dropped.

    Raises:
      InputError: as `align`; two embeddings of one encoder, or of several one that names none.
    """
    for each in several:
        slide = align(slide, each)
    if len(several) == 1:
        return slide
    names = [each.encoder or "" for each in several]
    if len(set(names)) < len(names) or "" in names:
        raise InputError(
            f"{slide.where}: expected embeddings of different encoders that are named in their "
            f"files, found {', '.join(map(repr, names))}."
        )
    return feature_blocks.joined(slide, {e.encoder: align(slide, e).features for e in several})


def _examples(barcodes: np.ndarray) -> str:
    return ", ".join(repr(str(b)) for b in barcodes[:2])
