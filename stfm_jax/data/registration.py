"""Registration of serial sections into one frame, from outlines and descriptors.

Sections come shifted, turned, turned over and torn. Neighbours are registered pairwise
(`registration_fields.py` says how two sections are compared), chained over the most trusted pairs
into the frame of one section, and then refined together. What describes a spot (image features,
or expression where that may be used) is the caller's choice. The method is [ours].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA

from stfm_jax.data import registration_fields as fields
from stfm_jax.data.registration_fields import IDENTITY, Affine, Shape
from stfm_jax.errors import InputError
from stfm_jax.ops.neighbors import knn_graph, neighbor_mean

KINDS = ("rigid", "affine", "none")
MIN_OVERLAP = 0.3  # share of the smaller section that must lie on the other's tissue
MIN_SPOTS = 10
_COMPONENTS = 8  # principal components of the descriptors that are compared
_CLIP = 6.0  # standard deviations of a descriptor
_WINDOW = 8  # neighbours averaged with a spot before the principal axes are found
_REACH = 2  # sections up to this many apart are compared
_SWEEPS = 2


@dataclasses.dataclass(frozen=True)
class Section:
    """What registration sees of a section."""

    name: str
    coords_um: np.ndarray  # [n, 2] float64
    # [n, p], p the same for all sections that have them. Never the expression of a held-out section
    descriptors: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class PairFit:
    """How well two registered sections fit."""

    fixed: str  # name
    moving: str  # name
    # Median distance from a point of one section's outline to the nearest of the other's, over the
    # points of both. Tissue that differs counts too: it bounds, but is not, the registration error.
    residual_um: float
    overlap: float  # share of the smaller section's spots that lie on the other's tissue
    outline: float  # cosine of the blurred outlines, 1 when equal
    descriptors: float  # cosine of the blurred descriptors, NaN without
    score: float  # what registration maximised: the mean of the two cosines
    # Root mean square distance, over the moving section's spots, between where the stack puts them
    # relative to the fixed section and where registering this pair alone does. NaN: not compared
    closure_um: float = np.nan


@dataclasses.dataclass(frozen=True)
class Alignment:
    """A section in the common frame."""

    name: str
    motion: Affine  # section -> common frame
    coords_um: np.ndarray  # [n, 2] the spots in the common frame


@dataclasses.dataclass(frozen=True)
class Stack:
    """Sections in the frame of one of them."""

    reference: str  # name of the section that stayed
    alignments: list[Alignment]  # in the order the sections came in
    pairs: list[PairFit]  # neighbours: section i (fixed) and i + 1 (moving)


def align_pair(
    fixed: Section, moving: Section, kind: str = "rigid", flips: bool = True
) -> tuple[Affine, PairFit]:
    """Registers one section to another.

    All rotations, both sides up and all shifts are searched on coarsely blurred fields, the best
    few refined, then on finely blurred ones. "affine" adds stretch and shear, mildly penalised.

    Args:
      fixed: stays.
      moving: is mapped.
      kind: one of KINDS; "none" leaves the section where it is and only measures the fit.
      flips: whether a section may lie upside down.

    Returns:
      The map from `moving` to `fixed` (identity for "none"), and the fit.

    Raises:
      InputError: as `align_stack`.
    """
    shapes = _shapes([fixed, moving], kind)
    motion = IDENTITY if kind == "none" else fields.align(*shapes, kind, flips)
    fit = _fit((fixed, moving), shapes, motion)
    _require_overlap(fit, kind)
    return motion, fit


def align_stack(
    sections: Sequence[Section],
    kind: str = "rigid",
    flips: bool = True,
    reference: int | None = None,
) -> Stack:
    """Registers serial sections into the frame of one of them.

    Sections one and two apart are registered pairwise; the chain to the reference follows the pairs
    of highest score, so one torn section does not part the stack. Then each section in turn is
    refined against all its neighbours, two on either side.

    Args:
      sections: in the order of the stack, two or more.
      kind: one of KINDS; "none" takes coordinates as aligned already and only measures the fit.
      flips: whether sections may lie upside down.
      reference: index of the section that stays; the middle one when None.

    Returns:
      The alignments, and the fit of each section with the next.

    Raises:
      InputError: fewer than two sections, two of one name, a section of fewer than MIN_SPOTS spots,
        descriptors of other lengths or widths or not finite, sections whose units differ, or
        neighbours of which less than MIN_OVERLAP overlaps after registration.
    """
    shapes = _shapes(sections, kind)
    reference = (len(sections) - 1) // 2 if reference is None else reference
    if not 0 <= reference < len(sections):
        raise InputError(
            f"registration: expected the reference to be one of the {len(sections)} sections "
            f"(0 to {len(sections) - 1}), found {reference}."
        )
    between: dict[tuple[int, int], Affine] = {}
    if kind == "none":
        motions = [IDENTITY] * len(sections)
    else:
        between = _pairwise(shapes, kind, flips)
        motions = _chain(shapes, between, reference)
        motions = _refine_together(shapes, motions, reference, kind)
    fits = []
    for i in range(len(sections) - 1):
        motion = motions[i].inverse().after(motions[i + 1])
        fit = _fit(sections[i : i + 2], shapes[i : i + 2], motion)
        if (i, i + 1) in between:
            gap = between[i, i + 1].apply(sections[i + 1].coords_um)
            gap = gap - motion.apply(sections[i + 1].coords_um)
            closure = float(np.sqrt((gap**2).sum(axis=1).mean()))
            fit = dataclasses.replace(fit, closure_um=closure)
        _require_overlap(fit, kind)
        fits.append(fit)
    alignments = [
        Alignment(s.name, motion, motion.apply(s.coords_um))
        for s, motion in zip(sections, motions, strict=True)
    ]
    return Stack(sections[reference].name, alignments, fits)


def _pairwise(shapes: list[Shape], kind: str, flips: bool) -> dict[tuple[int, int], Affine]:
    """Maps from section j to section i < j, for all up to _REACH apart."""
    return {
        (i, j): fields.align(shapes[i], shapes[j], kind, flips)
        for i in range(len(shapes))
        for j in range(i + 1, min(i + 1 + _REACH, len(shapes)))
    }


def _chain(
    shapes: list[Shape], between: dict[tuple[int, int], Affine], reference: int
) -> list[Affine]:
    """Maps into the reference's frame along the spanning tree of highest scores."""
    cost = [
        2.0 - fields.score((shapes[i].fine, shapes[j].fine), motion)  # positive: 0 is no edge
        for (i, j), motion in between.items()
    ]
    n = len(shapes)
    graph = coo_array((cost, np.array(list(between)).T), shape=(n, n)).tocsr()
    order, before = breadth_first_order(minimum_spanning_tree(graph), reference, directed=False)
    motions = [IDENTITY] * n
    for k in order[1:]:
        i = before[k]
        step = between[i, k] if i < k else between[k, i].inverse()
        motions[k] = motions[i].after(step)
    return motions


def _refine_together(
    shapes: list[Shape], motions: list[Affine], reference: int, kind: str
) -> list[Affine]:
    """Each section against its neighbours in turn, outwards from the reference."""
    motions = list(motions)
    others = sorted(set(range(len(shapes))) - {reference}, key=lambda k: abs(k - reference))
    for k in others * _SWEEPS:
        near = range(max(k - _REACH, 0), min(k + _REACH + 1, len(shapes)))
        targets = [(shapes[j].fine, motions[j]) for j in near if j != k]
        motions[k] = fields.refine(shapes[k], targets, motions[k], kind, shapes[k].fine)
    return motions


def _fit(sections: Sequence[Section], shapes: Sequence[Shape], motion: Affine) -> PairFit:
    """The fit of two sections under a map from the second to the first."""
    fixed, moving = shapes
    pair = (fixed.fine, moving.fine)
    outline, descriptors = fields.agreement(pair, motion)
    borders = fields.outline_um(fixed.fine), motion.apply(fields.outline_um(moving.fine))
    gaps = [cKDTree(a).query(b)[0] for a, b in (borders, borders[::-1])]
    on_tissue = (
        fixed.fine.at(motion.apply(moving.coords_um), 1) > 0.5,
        moving.fine.at(motion.inverse().apply(fixed.coords_um), 1) > 0.5,
    )
    return PairFit(
        fixed=sections[0].name,
        moving=sections[1].name,
        residual_um=float(np.median(np.concatenate(gaps))),
        overlap=float(max(on.mean() for on in on_tissue)),
        outline=float(outline),
        descriptors=np.nan if fields.outline_weight(*pair) == 1 else float(descriptors),
        score=float(fields.score(pair, motion)),
    )


def _shapes(sections: Sequence[Section], kind: str) -> list[Shape]:
    """The sections ready to be compared; see `align_stack` for what is refused."""
    _check(sections, kind)
    values = _reduced(sections)
    blur = fields.stack_blur_um([s.coords_um for s in sections])
    return [
        Shape(np.asarray(s.coords_um, np.float64), v, blur)
        for s, v in zip(sections, values, strict=True)
    ]


def _reduced(sections: Sequence[Section]) -> list[np.ndarray]:
    """Descriptors [n, c] along the principal axes of what is smooth in them; c = 0 without.

    Each section is standardised by itself, which takes out its staining or depth.
    """
    standard = [None if s.descriptors is None else _standardised(s.descriptors) for s in sections]
    smooth = [
        neighbor_mean(x, knn_graph(s.coords_um, _WINDOW, include_self=True))
        for s, x in zip(sections, standard, strict=True)
        if x is not None
    ]
    if not smooth:
        return [np.zeros((len(s.coords_um), 0)) for s in sections]
    pooled = np.concatenate(smooth)
    num = min(_COMPONENTS, *pooled.shape)
    # Of one seed whatever the config's: a stack has one frame, as its sections have one place.
    axes = PCA(num, random_state=0).fit(pooled).components_.T
    return [
        np.zeros((len(s.coords_um), num)) if x is None else x @ axes
        for s, x in zip(sections, standard, strict=True)
    ]


def _standardised(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    std = values.std(axis=0)
    return np.clip((values - values.mean(axis=0)) / np.where(std > 1e-8, std, 1), -_CLIP, _CLIP)


def _check(sections: Sequence[Section], kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"registration: expected one of {', '.join(KINDS)}, found {kind!r}.")
    if len(sections) < 2:
        raise InputError(
            f"registration: expected a stack of two sections or more, found {len(sections)}; give "
            "more sections, or predict a single one with STFlow."
        )
    names = [s.name for s in sections]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(
            f"registration: sections must have names of their own, but {names.count(twice)} are "
            f"called {twice!r}; rename them."
        )
    widths = {}
    for s in sections:
        n = len(s.coords_um)
        if np.shape(s.coords_um) != (n, 2) or not np.isfinite(s.coords_um).all():
            raise InputError(
                f"section {s.name!r}: expected finite coordinates [{n}, 2] in micrometres, found "
                f"{np.shape(s.coords_um)}; drop spots without a place."
            )
        if n < MIN_SPOTS:
            raise InputError(
                f"section {s.name!r}: expected at least {MIN_SPOTS} spots to register it by, found "
                f"{n}; leave the section out of the stack."
            )
        if s.descriptors is None:
            continue
        found = np.shape(s.descriptors)
        if len(found) != 2 or found[0] != n or not np.isfinite(s.descriptors).all():
            raise InputError(
                f"section {s.name!r}: expected finite descriptors [{n}, p], one row per spot, "
                f"found {found}; embed the section again."
            )
        widths.setdefault(found[1], s.name)
    if len(widths) > 1:
        found = " and ".join(f"{width} ({name!r})" for width, name in widths.items())
        raise InputError(
            f"registration: expected descriptors of one kind in all sections, found widths {found};"
            " embed all sections with one encoder."
        )
    _require_one_unit(sections)


def _require_one_unit(sections: Sequence[Section]) -> None:
    """Refuses sections that look alike at different scales: pixels among micrometres."""
    first, sizes = sections[0], [np.sqrt(len(s.coords_um)) for s in sections]
    pitches = [fields.spot_pitch_um(s.coords_um) for s in sections]
    for s, pitch, size in zip(sections, pitches, sizes, strict=True):
        ratio = pitch / pitches[0]
        extent = ratio * size / sizes[0]
        if abs(np.log(ratio)) > np.log(1.25) and np.log(extent) / np.log(ratio) > 0.5:
            raise InputError(
                f"section {s.name!r}: its spots lie {pitch:.4g} apart and those of {first.name!r} "
                f"{pitches[0]:.4g}, and its extent differs alike; coordinates of all sections must "
                "be in micrometres. Check spatial_unit and um_per_px."
            )


def _require_overlap(fit: PairFit, kind: str) -> None:
    if fit.overlap < MIN_OVERLAP:
        advice = (
            "they are not in one frame: register them (rigid or affine)."
            if kind == "none"
            else "are they of the same tissue, and next to one another in the stack?"
        )
        raise InputError(
            f"sections {fit.fixed!r} and {fit.moving!r}: expected at least {MIN_OVERLAP:.0%} of "
            f"the smaller to lie on the other after registration, found {fit.overlap:.0%} and a "
            f"residual of {fit.residual_um:.0f} um between their outlines; {advice}"
        )
