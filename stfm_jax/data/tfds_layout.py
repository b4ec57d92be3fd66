"""How slides lie in a tensorflow-datasets data set: its name, its splits, and a record.

A slide is a split. Its spots are spread over records of a few thousand neighbouring rows, since one
record must stay below 2 GiB. Patches are not written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import tensorflow_datasets as tfds

from stfm_jax.data.slide import Slide, feature_width
from stfm_jax.errors import InputError

NAME, VERSION = "stfm_slides", "1.0.0"
RECORD_BYTES = 2**31 - 2**24  # protocol buffers end at 2 GiB; the rest is for names and headers
_OF_SPOTS = ("parent", "domains")  # texts, one for each spot
_TEXTS = ("name", "spatial_unit", "encoder", "patient", "section")


def split_name(slide: str) -> str:
    """A slide's name as that of a split: letters, digits and `_`; not `all`, which means all."""
    name = re.sub(r"\W", "_", slide)
    return "all_" if name == "all" else name


def record_fields(slides: Sequence[Slide]) -> tfds.features.FeaturesDict:
    """The fields of a record of m spots, the first of which is row `first_spot` of its slide.

    `coords_um`, `coords_in` [m, 2]; counts as a CSR matrix in `counts_data`, `counts_indices`,
    `counts_indptr`, in the type that the slides have them in; `barcodes`, `genes`, `parent` and
    `domains`, one a line; `registered_um` [m, 2]; `features` [m, f], where any slide has them;
    `z_um` and the other texts of `Slide`. What a slide does not know has no rows, no text, or is
    NaN.

    Raises:
      InputError: features of different widths.
    """

    def tensor(dtype: np.typing.DTypeLike, *shape: int | None) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

    width = feature_width(slides)
    fields = {
        "first_spot": np.int64,
        "z_um": np.float64,
        "coords_um": tensor(np.float64, None, 2),
        "coords_in": tensor(np.float64, None, 2),
        "registered_um": tensor(np.float64, None, 2),
        "counts_data": tensor(np.result_type(*(slide.counts.dtype for slide in slides)), None),
        "counts_indices": tensor(np.int32, None),
        "counts_indptr": tensor(np.int64, None),
        **{name: tfds.features.Text() for name in ("barcodes", "genes", *_OF_SPOTS, *_TEXTS)},
    }
    if width is not None:
        fields["features"] = tensor(np.float32, None, width)
    return tfds.features.FeaturesDict(fields)


def record(slide: Slide, first: int, end: int, fields: tfds.features.FeaturesDict) -> dict:
    """Rows `first` to `end` of a slide as one record.

    Raises:
      InputError: it would be larger than 2 GiB.
    """
    counts = slide.counts[first:end]
    arrays = {
        "coords_um": slide.coords_um[first:end],
        "coords_in": slide.coords_in[first:end],
        "registered_um": _rows(slide.registered_um, first, end, 2),
        "counts_data": counts.data,
        "counts_indices": counts.indices,
        "counts_indptr": counts.indptr,
    }
    if "features" in fields:
        arrays["features"] = _rows(slide.features, first, end, fields["features"].shape[1])
    arrays = {k: np.ascontiguousarray(v, fields[k].np_dtype) for k, v in arrays.items()}
    size = sum(array.nbytes for array in arrays.values())
    if size > RECORD_BYTES:
        raise InputError(
            f"{slide.where}: {end - first} spots take {size / 2**30:.1f} GiB, but a record must "
            f"stay below 2 GiB; set spots_per_record below {(end - first) * RECORD_BYTES // size}."
        )
    return {
        **arrays,
        "first_spot": first,
        "z_um": np.nan if slide.z_um is None else slide.z_um,
        "barcodes": "\n".join(slide.barcodes[first:end]),
        "genes": "\n".join(slide.genes),
        **{name: _lines(getattr(slide, name), first, end) for name in _OF_SPOTS},
        **{name: getattr(slide, name) or "" for name in _TEXTS},
    }


def _lines(values: np.ndarray | None, first: int, end: int) -> str:
    return "" if values is None else "\n".join(values[first:end])


def _rows(values: np.ndarray | None, first: int, end: int, width: int) -> np.ndarray:
    return np.zeros((0, width)) if values is None else values[first:end]


def slide_of(records: Sequence[dict], source: str) -> Slide:
    """A slide from its records, in order; without patches."""
    first = records[0]
    genes = np.array(first["genes"].decode().split("\n"), dtype=str)
    blocks = [
        sp.csr_matrix(
            (item["counts_data"], item["counts_indices"], item["counts_indptr"]),
            shape=(len(item["coords_um"]), len(genes)),
        )
        for item in records
    ]
    texts = {name: first[name].decode() for name in _TEXTS}

    def rows(key: str) -> np.ndarray | None:
        there = key in first and len(first[key])
        return np.concatenate([item[key] for item in records]) if there else None

    def lines(key: str) -> np.ndarray | None:
        there = first.get(key)  # domains are not in data sets of earlier versions
        return np.array(b"\n".join(r[key] for r in records).decode().split("\n")) if there else None

    return Slide(
        barcodes=lines("barcodes"),
        coords_um=rows("coords_um"),
        coords_in=rows("coords_in"),
        counts=sp.csr_matrix(sp.vstack(blocks)),
        genes=genes,
        features=rows("features"),
        z_um=None if np.isnan(first["z_um"]) else float(first["z_um"]),
        registered_um=rows("registered_um"),
        **{name: lines(name) for name in _OF_SPOTS},
        source=source,
        **{**texts, "encoder": texts["encoder"] or None},
    )
