"""Slides from a data set that `--mode=export` wrote with tensorflow-datasets, without TensorFlow.

Importing this imports tensorflow-datasets, so it is imported only where such a data set is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets

from stfm_jax.data import foreign
from stfm_jax.data import tfds_layout as layout
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

_READ = ("slides", "folds", "genes", "folds_from")  # of the metadata
HOW_TO_GET = "write one by --mode=export, which says where it is"


def read(folder: Path) -> tuple[dict[str, Slide], dict[str, Any]]:
    """All slides, without patches, and what was written of them together (`folds`, `genes`, ...).

    Raises:
      FileNotFoundError: there is no data set.
      InputError: it is another's or of another version, it is damaged, or records are missing.
    """
    if not (folder / "dataset_info.json").is_file():
        raise FileNotFoundError(
            f"{folder}: expected a data set of tensorflow-datasets there (dataset_info.json, "
            f"...), found none; {HOW_TO_GET}."
        )
    advice = "copy it again, or export it again."
    with foreign.reading(folder, "a whole data set", advice):
        builder = tensorflow_datasets.builder_from_directory(folder)
        _check_kind(builder.info, folder)
        about = {key: builder.info.metadata[key] for key in _READ}
        spots = about["slides"].items()
        return {name: _slide(builder, name, number, folder) for name, number in spots}, about


def _check_kind(info: tensorflow_datasets.core.DatasetInfo, folder: Path) -> None:
    version = str(info.version)
    if info.name != layout.NAME or version.split(".")[0] != layout.VERSION.split(".")[0]:
        raise InputError(
            f"{folder}: expected the data set {layout.NAME} {layout.VERSION}, found {info.name} "
            f"{version}, which was written by another program or version; {HOW_TO_GET}."
        )


def _slide(builder, name: str, num_spots: int, folder: Path) -> Slide:
    records = builder.as_data_source(split=layout.split_name(name))
    records = sorted(records, key=lambda item: item["first_spot"])
    ends = np.cumsum([0, *(len(item["coords_um"]) for item in records)])
    if [item["first_spot"] for item in records] != [*ends[:-1]] or ends[-1] != num_spots:
        raise InputError(
            f"{folder}: expected {num_spots} spots of {name!r}, found records of {ends[-1]}; "
            "records are missing: copy the data set again, or export it again."
        )
    return layout.slide_of(records, str(folder))
