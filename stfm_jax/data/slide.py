"""`Slide`: one tissue section as arrays, validated in one place.

Readers build Slides; everything downstream takes them. Nothing here reads files.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from stfm_jax.data import feature_store, labels
from stfm_jax.data.counts import is_count
from stfm_jax.data.patches import PatchSource, WholeImage, at_scale, whole_image
from stfm_jax.data.sparse import LIMIT, canonical
from stfm_jax.errors import InputError

JOINED_BY = "+"  # between the names of several encoders


@dataclasses.dataclass(frozen=True)
class Slide:
    """One tissue section: n spots, G genes, f features.

    Construction validates (see `validate`); `dataclasses.replace` makes changed copies and
    validates them again. Features may lie in a file, and are then validated as they are read.
    """

    name: str
    barcodes: np.ndarray  # [n] str, unique
    coords_um: np.ndarray  # [n, 2] float64, spot centres in micrometres
    coords_in: np.ndarray | None = None  # [n, 2] coordinates exactly as they came in
    spatial_unit: str = "um"  # unit of coords_in: "um" or "pixel"
    counts: sp.csr_matrix | None = None  # [n, G] raw UMI counts, made `sparse.canonical`
    genes: np.ndarray | None = None  # [G] str, unique
    features: feature_store.Features | None = None  # [n, f] float32, embedding of each spot's patch
    encoder: str | None = None  # name (with patch size) of the encoder that made the features
    widths: tuple[int, ...] = ()  # columns of each encoder, of several; see `feature_blocks`
    patches: PatchSource | None = None  # the H&E patches, where there is an image
    patient: str = ""
    section: str = ""
    z_um: float | None = None  # position of the section in its stack, micrometres
    registered_um: np.ndarray | None = None  # [n, 2] float64, places in its stack's common frame
    parent: np.ndarray | None = None  # [n] str, each spot's coarser spot, where the file names it
    domains: np.ndarray | None = None  # [n] str, a pathologist's labels; "" where undecided
    source: str = ""  # the file it came from, for messages

    def __post_init__(self):
        if self.coords_in is None:
            object.__setattr__(self, "coords_in", self.coords_um)
        if self.counts is not None:
            object.__setattr__(self, "counts", canonical(self.counts, self.where))
        validate(self)

    @property
    def num_spots(self) -> int:
        return len(self.barcodes)

    @functools.cached_property
    def columns(self) -> dict[str, int]:
        """Column of each gene in the counts; none without genes."""
        return {gene: i for i, gene in enumerate(() if self.genes is None else self.genes.tolist())}

    def columns_of(self, genes: Iterable[str]) -> list[int]:
        """Columns of some genes, all of which it must have."""
        return [self.columns[gene] for gene in genes]

    @property
    def where(self) -> str:
        """How messages name this slide."""
        return f"slide {self.name!r}" + (f" ({self.source})" if self.source else "")

    @property
    def um_per_px(self) -> float | None:
        """Micrometres per pixel of coordinates in pixels; None of others."""
        if self.spatial_unit != "pixel":
            return None
        farthest = np.argmax(np.abs(self.coords_in))
        return float(self.coords_um.flat[farthest] / self.coords_in.flat[farthest])

    def is_of(self, patients: Collection[str]) -> bool:
        """Whether it is of one of these patients; one that names none is of no known one."""
        own = labels.key(self.patient)
        return own != "" and own in map(labels.key, patients)

    def subset(self, index: np.ndarray) -> Slide:
        """The slide with only the spots of `index` ([m] integers or [n] booleans)."""
        index = np.flatnonzero(index) if np.asarray(index).dtype == bool else np.asarray(index)
        pick = {
            field: None if getattr(self, field) is None else getattr(self, field)[index]
            for field in (
                "barcodes",
                "coords_um",
                "coords_in",
                "counts",
                "registered_um",
                "parent",
                "domains",
            )
        }
        features = None if self.features is None else feature_store.take(self.features, index)
        patches = None if self.patches is None else SubsetPatches(self.patches, index)
        return dataclasses.replace(self, features=features, patches=patches, **pick)


@dataclasses.dataclass(frozen=True)
class SubsetPatches:
    """Patches of some spots of another source."""

    base: PatchSource
    index: np.ndarray  # [m] spot indices in base

    @property
    def um_per_px(self) -> float:
        return self.base.um_per_px

    def at(self, um_per_px: float) -> SubsetPatches:
        return dataclasses.replace(self, base=at_scale(self.base, um_per_px))

    def whole(self) -> WholeImage:
        image = whole_image(self.base)
        return image._replace(coords_um=image.coords_um[self.index])

    def read(self, indices: np.ndarray, size_um: float) -> np.ndarray:
        return self.base.read(self.index[indices], size_um)


def feature_width(slides: Sequence[Slide]) -> int | None:
    """The width of all features that slides have; None where none has any.

    Raises:
      InputError: features of different widths.
    """
    widths: dict[int, Slide] = {}
    for slide in slides:
        if slide.features is not None:
            widths.setdefault(slide.features.shape[1], slide)
    if len(widths) > 1:
        found = ", ".join(f"{width} in {s.name}" for width, s in widths.items())
        raise InputError(f"features must be equally wide in all slides, found {found}.")
    return next(iter(widths), None)


def validate(slide: Slide) -> None:
    """Checks shapes, finiteness, uniqueness and counts of a slide.

    Raises:
      InputError: naming the slide, what was expected and what was found.
    """
    n, where = len(slide.barcodes), slide.where
    if n == 0:
        raise InputError(f"{where}: has no spots; check the tissue mask and the barcodes.")
    if len(np.unique(slide.barcodes)) != n:
        values, times = np.unique(slide.barcodes, return_counts=True)
        raise InputError(
            f"{where}: barcodes must be unique, but '{values[times > 1][0]}' occurs "
            f"{times[times > 1][0]} times; make them unique (anndata: obs_names_make_unique)."
        )
    if slide.spatial_unit not in ("um", "pixel"):
        raise InputError(
            f"{where}: spatial unit must be 'um' or 'pixel', found {slide.spatial_unit!r}."
        )
    _validate_coords(slide.coords_um, n, where)
    if slide.domains is not None and len(slide.domains) != n:
        raise InputError(f"{where}: expected labels of {n} spots, found {len(slide.domains)}.")
    if slide.registered_um is not None:
        _validate_registered(slide.registered_um, n, where)
    if slide.features is not None:
        _validate_features(slide.features, n, where)
        _validate_widths(slide, where)
    if slide.counts is not None:
        _validate_counts(slide.counts, slide.genes, n, where)


def _validate_coords(coords_um: np.ndarray, n: int, where: str) -> None:
    if coords_um.shape != (n, 2):
        raise InputError(f"{where}: expected coordinates (x, y) [{n}, 2], found {coords_um.shape}.")
    if not np.isfinite(coords_um).all():
        bad = int((~np.isfinite(coords_um).all(axis=1)).sum())
        raise InputError(f"{where}: {bad} spots have NaN or infinite coordinates; drop them.")
    if n > 1:
        distance = cKDTree(coords_um).query(coords_um, k=2)[0][:, 1]
        if distance.min() <= 1e-6 * max(np.median(distance), 1e-12):
            raise InputError(
                f"{where}: {int((distance == distance.min()).sum())} spots lie on top of another "
                "spot; every spot needs coordinates of its own. Merge or drop the duplicates."
            )


def _validate_registered(registered_um: np.ndarray, n: int, where: str) -> None:
    if np.shape(registered_um) != (n, 2) or not np.isfinite(registered_um).all():
        raise InputError(
            f"{where}: expected finite registered coordinates [{n}, 2] in micrometres, found "
            f"{np.shape(registered_um)} with {int((~np.isfinite(registered_um)).sum())} values not "
            "finite; register the stack again."
        )


def _validate_features(features: feature_store.Features, n: int, where: str) -> None:
    if features.ndim != 2 or len(features) != n:
        raise InputError(f"{where}: expected features [{n}, f], found {features.shape}.")
    if isinstance(features, np.ndarray):
        feature_store.check_finite(features, where)


def _validate_widths(slide: Slide, where: str) -> None:
    names, widths = (slide.encoder or "").split(JOINED_BY), slide.widths
    if widths and not (sum(widths) == slide.features.shape[1] and len(widths) == len(names) > 1):
        raise InputError(
            f"{where}: expected {slide.features.shape[1]} features of the encoders "
            f"{slide.encoder!r}, found columns {widths}; embed the slide again."
        )


def _validate_counts(counts: sp.csr_matrix, genes: np.ndarray | None, n: int, where: str) -> None:
    if genes is None or counts.shape != (n, len(genes)):
        expected = (n, 0 if genes is None else len(genes))
        raise InputError(f"{where}: expected counts {expected}, found {counts.shape}.")
    if len(np.unique(genes)) != len(genes):
        raise InputError(f"{where}: gene names must be unique; the readers sum duplicates.")
    wrong = counts.data[~is_count(counts.data)]
    if len(wrong):
        raise InputError(
            f"{where}: counts must be non-negative integers (raw UMI counts), found "
            f"{wrong[0]:.9g}; if X is normalised, put the raw counts into layers['counts']."
        )
    if counts.nnz and counts.data.max() >= LIMIT:
        raise InputError(
            f"{where}: expected counts below {LIMIT:,}, up to which single precision holds every "
            f"one exactly, found about {counts.data.max():,.0f}; no spot has so many of a gene: "
            "check that these are raw counts."
        )
