"""Patch embeddings in `.h5` files, of whoever made them, and putting them on a slide.

| who | features | places | who is where |
|---|---|---|---|
| here | `features` [n, f], attribute `encoder` | as TRIDENT's | `barcodes` [n, 1] |
| TRIDENT | `features` [n, f] | `coords` [n, 2], corners in level 0, `patch_size_level0` | |
| CLAM | `features` [n, f] | `coords` [n, 2], corners in level 0, no size | |
| HEST-bench, and here once | `embeddings` [n, f] | `coords` [n, 2], not used | `barcodes` [n, 1] |

[ours] Our files have the attribute `encoder`, which names the encoder with its fields of view, also
on the file itself, and `um_per_px` on `coords`. Making embeddings is the business of
`stfm_jax.encoders`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from scipy.spatial import cKDTree

from stfm_jax.data import feature_blocks, feature_store, labels
from stfm_jax.data.hdf5 import decode_strings, open_hdf5, require_room_for
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.runtime.files import atomic_path

_LOG = logging.getLogger("stfm_jax")
_GET = "Embed the slides with `python run.py --mode=embed`, or check the embeddings folder."
_MEND = "get the file again, or embed the slide anew."
_FEATURES = ("features", "embeddings")
_FOLDER = "features_"  # of TRIDENT, before the encoder's name
# Patches and spots of one place differ by rounding at a level of the pyramid. [ours]
_SAME_PX, _SAME_SHARE = 4.0, 0.02
_MOST = 0.5  # share of spots with an embedding below which that is a warning [ours]


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Embeddings of one slide's patches."""

    embeddings: feature_store.Features  # [n, f] float32
    coords: np.ndarray  # [n, 2] pixels of level 0, as stored
    barcodes: np.ndarray | None  # [n] str; None where the file has none: known by place
    encoder: str | None  # name with patch size; None where the file does not say
    source: str = ""  # the file, for messages
    side_px: float | None = None  # of patches, whose corners `coords` are; None: not known
    um_per_px: float | None = None  # of level 0
    placed: bool = True  # whether it is known what `coords` are: HEST's code wrote them in two ways

    @property
    def where(self) -> str:
        return self.source or "embeddings"

    @property
    def centres(self) -> np.ndarray:
        """Of the patches, [n, 2] pixels of level 0.

        Raises:
          InputError: the side of the patches is not known.
        """
        if self.side_px is None:
            apart = _step(self.coords)
            raise InputError(
                f"{self.where}: does not say how large its patches are, whose corners `coords` "
                "are; say it in pixels of level 0 by --config.predict.patch_px (neighbouring "
                f"patches are {apart:g} apart)."
            )
        return np.asarray(self.coords, np.float64) + self.side_px / 2


def write(
    path: str | Path,
    embeddings: np.ndarray,
    centres: np.ndarray,
    barcodes: np.ndarray,
    encoder: str,
    *,
    side_px: float = 0.0,
    um_per_px: float | None = None,
) -> None:
    """Writes an embedding file, whole or not at all, which TRIDENT's readers open too.

    Args:
      embeddings: [n, f], stored as float32.
      centres: [n, 2] pixels of level 0; what is stored are the corners, in whole pixels.
      barcodes: [n] str.
      encoder: name of the encoder, patch size included.
      side_px: of the largest patch that the encoder sees, pixels of level 0.
      um_per_px: of level 0.

    Raises:
      InputError: the lengths differ.
    """
    if not len(embeddings) == len(centres) == len(barcodes):
        raise InputError(
            f"{path}: expected as many embeddings as coordinates and barcodes, found "
            f"{len(embeddings)}, {len(centres)} and {len(barcodes)}."
        )
    encoded = np.array([str(b).encode() for b in barcodes], dtype=bytes).reshape(-1, 1)
    corners = np.round(np.asarray(centres, np.float64) - side_px / 2).astype(np.int64)
    name = Path(path).stem
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        features = file.create_dataset("features", data=np.asarray(embeddings, dtype=np.float32))
        coords = file.create_dataset("coords", data=corners)
        file.create_dataset("barcodes", data=encoded)
        file.attrs["encoder"] = encoder
        features.attrs.update({"name": name, "encoder": encoder})
        coords.attrs.update({"name": name, "overlap": 0, "patch_size_level0": float(side_px)})
        # One level alone is seen: patch_size is of level 0 as well.
        coords.attrs["patch_size"] = round(side_px)
        if um_per_px is not None:
            magnification = max(1, round(10 / um_per_px))
            coords.attrs["um_per_px"] = um_per_px
            coords.attrs["level0_magnification"] = magnification
            coords.attrs["target_magnification"] = magnification


def read(path: str | Path) -> Embeddings:
    """Reads an embedding file.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is damaged, or not an embedding file.
    """
    stored = open_stored(path)
    values = np.asarray(stored.embeddings, dtype=np.float32)
    return dataclasses.replace(stored, embeddings=values)


def open_stored(path: str | Path) -> Embeddings:
    """Reads an embedding file as `read`, but embeddings stay there; see `data.feature_store`."""
    if str(path).endswith((".pt", ".pth")):
        raise InputError(
            f"{path}: a tensor says nothing of where its patches lie; give the .h5 file of the "
            "same slide (CLAM: h5_files/<slide>.h5 beside pt_files/), which has `coords`."
        )
    with open_hdf5(path, (), _GET, _MEND) as file:
        key = next((name for name in _FEATURES if name in file), None)
        if key is None or "coords" not in file:
            raise InputError(_lacking(file, path))
        matrix, coords = file[key], file["coords"]
        if not all(isinstance(each, h5py.Dataset) for each in (matrix, coords)):
            raise InputError(f"{path}: expected {key} and coords to be arrays; {_MEND}")
        require_room_for(coords)
        named = next((name for name in ("barcodes", "barcode") if name in file), None)
        barcodes = None if named is None else decode_strings(file[named][()])
        if matrix.ndim == 1:
            raise InputError(
                f"{path}: expected features of patches [n, f], found {matrix.shape}: those of a "
                "whole slide, or of no patch; give the folder's features_<encoder>/<slide>.h5."
            )
        batched = matrix.ndim == 3 and matrix.shape[0] == 1
        shape = matrix.shape[1:] if batched else matrix.shape
        at = coords[()].reshape(-1, 2) if coords.size == 2 * shape[0] else coords[()]
        found = shape, at.shape, () if barcodes is None else barcodes.shape
        lengths = {len(at), shape[0], *(() if barcodes is None else [len(barcodes)])}
        if len(shape) != 2 or at.ndim != 2 or len(lengths) > 1:
            raise InputError(
                f"{path}: expected {key} [n, f], coords [n, 2] and barcodes [n, 1] (or none), "
                f"found {found[0]}, {found[1]} and {found[2]}; {_MEND}"
            )
        if not shape[0]:
            raise InputError(f"{path}: has no patches; {_MEND}")
        if batched:
            features = matrix[0].astype(np.float32)
        else:
            features = feature_store.stored_features(matrix, str(path))
        sized = None if key == "embeddings" else _side(coords.attrs)
        scale = _number(coords.attrs, "um_per_px")
        encoder = _encoder(file, matrix, Path(path))
        return Embeddings(
            features, at, barcodes, encoder, str(path), sized, scale, key != "embeddings"
        )


def _lacking(file: h5py.File, path: str | Path) -> str:
    there = ", ".join(sorted(file)) or "nothing"
    if "coords" in file:
        return (
            f"{path}: holds coords of patches and no features (it holds {there}); give the file of "
            "their features, as features_<encoder>/<slide>.h5 of TRIDENT."
        )
    return (
        f"{path}: expected an embedding file with {' or '.join(_FEATURES)}, and coords, but it "
        f"holds {there}; {_MEND}"
    )


def _side(attributes: h5py.AttributeManager) -> float | None:
    """Of a patch, pixels of level 0: as TRIDENT says it, or as CLAM's patch files."""
    side = _number(attributes, "patch_size_level0")
    if side is None and "downsample" in attributes:
        size, factor = _number(attributes, "patch_size"), _number(attributes, "downsample")
        side = None if size is None or factor is None else size * factor
    return side


def _number(attributes: h5py.AttributeManager, key: str) -> float | None:
    """The first number of an attribute; None where it holds none that is finite."""
    try:
        value = float(np.asarray(attributes[key]).reshape(-1)[0])
    except (KeyError, ValueError, TypeError, IndexError):
        return None
    return value if np.isfinite(value) else None


def _encoder(file: h5py.File, matrix: h5py.Dataset, path: Path) -> str | None:
    """Who made the features, as the file says, or TRIDENT's folder."""
    for attributes in (file.attrs, matrix.attrs):
        if "encoder" in attributes:
            found = attributes["encoder"]
            return found.decode() if isinstance(found, bytes) else str(found)
    folder = path.resolve().parent.name
    return folder.removeprefix(_FOLDER) if folder.startswith(_FOLDER) else None


def align(slide: Slide, embeddings: Embeddings) -> Slide:
    """The slide with embeddings as its features, matched by barcode, or without those by place.

    Spots without an embedding are dropped (HEST embeds the spots under tissue only), and a line is
    logged.

    Raises:
      InputError: a barcode occurs twice in the embeddings, or none matches the slide; patches do
        not lie at the spots.
    """
    row = _by_place(slide, embeddings) if embeddings.barcodes is None else _row(slide, embeddings)
    found = row >= 0
    if not found.all():
        _LOG.log(
            logging.WARNING if found.mean() < _MOST else logging.INFO,
            "%s: %d of %d spots dropped, which have no embedding in %s",
            slide.where,
            int((~found).sum()),
            len(found),
            embeddings.where,
        )
        slide = slide.subset(found)
    features = feature_store.take(embeddings.embeddings, row[found])
    return dataclasses.replace(slide, features=features, encoder=embeddings.encoder, widths=())


def _row(slide: Slide, embeddings: Embeddings) -> np.ndarray:
    """Which embedding each spot has by barcode, [n]; -1: none."""
    values, times = np.unique(embeddings.barcodes, return_counts=True)
    if (times > 1).any():
        raise InputError(
            f"{embeddings.where}: barcodes must be unique, but '{values[times > 1][0]}' occurs "
            f"{times.max()} times; {_MEND}"
        )
    row = labels.places(slide.barcodes, embeddings.barcodes, slide.where)
    if not (row >= 0).any():
        raise InputError(
            f"{slide.where}: none of its {slide.num_spots} barcodes (such as "
            f"{_examples(slide.barcodes)}) is among the {len(embeddings.barcodes)} of "
            f"{embeddings.where} (such as {_examples(embeddings.barcodes)}); they must be of the "
            "same slide and spelled alike."
        )
    return row


def _by_place(slide: Slide, embeddings: Embeddings) -> np.ndarray:
    """Which embedding each spot has by the centre of its patch, [n]; -1: none."""
    if slide.spatial_unit != "pixel":
        raise InputError(
            f"{embeddings.where}: has no barcodes, so that spots are matched by their place in "
            f"pixels of level 0, but {slide.where} has micrometres; store pixels in "
            "obsm['spatial'] and uns['um_per_px']."
        )
    distance, row = cKDTree(embeddings.centres).query(slide.coords_in)
    near = distance <= max(_SAME_PX, _SAME_SHARE * embeddings.side_px)
    if not near.any():
        raise InputError(
            f"{embeddings.where}: has no barcodes, and no patch lies at a spot of {slide.where}: "
            f"the nearest is {distance.min():g} pixels away. Make patches around the spots, or "
            "predict at the patches themselves, --config.predict.input=" + embeddings.where
        )
    return np.where(near, row, -1)


def _step(coords: np.ndarray) -> float:
    """How far apart neighbouring corners are, along x or y."""
    steps = np.diff(np.unique(np.asarray(coords)[:, 0])), np.diff(np.unique(coords[:, 1]))
    return float(min((s.min() for s in steps if len(s)), default=0))


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


def at_patches(several: Sequence[Embeddings], um_per_px: float | None) -> Slide:
    """A slide whose spots are the patches of embeddings, in pixels of level 0.

    Args:
      several: of one encoder, or of several at the same patches.
      um_per_px: micrometres per pixel of level 0, over what the files say.

    Raises:
      InputError: micrometres per pixel or the patches' side are not known; as `align_all`.
    """
    first = several[0]
    if not first.placed:
        raise InputError(
            f"{first.where}: of embeddings in HEST's layout it is not known whether `coords` are "
            "corners (x, y) or centres (y, x); give the slide by --config.predict.input=SLIDE.h5ad "
            "and this file by --config.predict.embeddings, which are matched by barcode."
        )
    scale = um_per_px if um_per_px is not None else first.um_per_px
    if scale is None:
        raise InputError(
            f"{first.where}: does not say how many micrometres a pixel of the slide's level 0 is; "
            "say it by --config.predict.um_per_px (the slide file has it; TRIDENT's magnification "
            "is no more than its class)."
        )
    corners = np.asarray(first.coords)
    barcodes = first.barcodes
    if barcodes is None:
        barcodes = np.array([f"{x:.0f}x{y:.0f}" for x, y in corners])
    slide = Slide(
        name=Path(first.source).stem,
        barcodes=barcodes,
        coords_um=first.centres * scale,
        coords_in=first.centres,
        spatial_unit="pixel",
        source=first.source,
    )
    return align_all(slide, several)


def _examples(barcodes: np.ndarray) -> str:
    return ", ".join(repr(str(b)) for b in barcodes[:2])
