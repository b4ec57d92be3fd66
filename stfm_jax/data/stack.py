"""Stacks of serial sections: which slides make one, how high they lie, and their common frame.

How sections are registered is in `registration.py`, and who corresponds to whom in `retrieval.py`.
Nothing here looks at expression, so it makes no difference which sections are held out.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
from collections.abc import Sequence

import numpy as np

from stfm_jax.data import feature_store
from stfm_jax.data.registration import Section, Stack, align_stack
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
MOST_SPOTS = 20_000  # of a section that registration sees; more do not make it better
_MOST_NUMBERS = 1 << 26  # of all descriptors that registration sees; it takes 2 GiB for these
_FEWEST_SPOTS = 2_000  # of a large section, whatever the width of its descriptors
_SAME_UM = 1e-3  # heights this close are equal
# Scores below which two sections hardly are neighbours, with descriptors and by outlines alone.
# Measured: neighbours .94 (her2st C2 to C6) and .9 (simulated), in heavy noise .65, torn by two
# fifths .63 to .79; of other tissue at most .53 (her2st, by genes) and .62. By outlines: .985 and
# more against .845 (her2st) and .95 (simulated) at most. [ours]
_POOR, _POOR_OUTLINE = 0.65, 0.9
# Gain in score when two sections change places. Measured: in the right order -.05 (her2st) and less
# than .02 (simulated, noisy or torn); with two out of order .05 to .09 (her2st), .01 to .23. [ours]
_GAIN = 0.03
_SHOWN = 12  # sections that a message lists


def stacks(slides: Sequence[Slide]) -> dict[str, list[Slide]]:
    """The stacks that slides make: those of each patient, in order of ascending height.

    Slides without a patient make one stack, under the key "".

    Raises:
      InputError: a stack of one section; a section without `z_um`; two at one height; or sections
        whose labels (`section`, else `name`) count up, but not along z.
    """
    groups: dict[str, list[Slide]] = {}
    for slide in slides:
        groups.setdefault(slide.patient, []).append(slide)
    return {patient: _ordered(group) for patient, group in groups.items()}


def _ordered(group: list[Slide]) -> list[Slide]:
    where = f"stack of patient {group[0].patient!r}" if group[0].patient else "stack of sections"
    if len(group) == 1:
        raise InputError(
            f"{where}: expected two sections or more, found {group[0].name!r} alone; give its "
            "neighbours with it (the same obs['patient']), or predict a single one with STFlow."
        )
    for slide in group:
        if slide.z_um is None:
            raise InputError(
                f"{slide.where}: its height in the stack is not known; set obs['z_um'] "
                "(micrometres, the same for all spots of a section) or, in a file of one section, "
                "uns['z_um'], or the distance of sections, --config.data.section_spacing_um."
            )
    ordered = sorted(group, key=lambda slide: slide.z_um)
    for below, above in itertools.pairwise(ordered):
        if above.z_um - below.z_um < _SAME_UM:
            raise InputError(
                f"{where}: expected every section at a height of its own, found {below.name!r} and "
                f"{above.name!r} both at {below.z_um:g} um; correct z_um in obs or uns."
            )
    _require_one_direction(ordered, where)
    return ordered


def _require_one_direction(ordered: list[Slide], where: str) -> None:
    """Refuses heights that contradict labels such as S1, S2, ...; other labels say nothing."""
    found = [re.fullmatch(r"(.*?)(\d+)", label(slide)) for slide in ordered]
    if not all(found) or len({match.group(1) for match in found}) > 1:
        return
    numbers = [int(match.group(2)) for match in found]
    steps = np.sign(np.diff(numbers))
    turns = np.flatnonzero(steps != steps[0])
    if not len(turns) or len(set(numbers)) < len(numbers):
        return
    first = max(0, turns[0] + 2 - _SHOWN)
    shown = [f"{label(s)} ({s.z_um:g})" for s in ordered[first : first + _SHOWN]]
    before = "..., " if first else ""
    after = ", ..." if first + _SHOWN < len(ordered) else ""
    raise InputError(
        f"{where}: expected the numbers of the sections to go up or down along z, found, in order "
        f"of z_um, {before}{', '.join(shown)}{after}; correct z_um, or the sections' labels."
    )


def label(slide: Slide) -> str:
    """What its section is called."""
    return slide.section or slide.name


def spaced(slides: Sequence[Slide], spacing_um: float) -> list[Slide]:
    """Slides with heights: a multiple of the spacing where a stack has none.

    Sections are counted in the order of their labels, S2 before S10. Heights that are there stay.

    Args:
      slides: of one or several patients, in any order.
      spacing_um: distance between neighbouring sections.

    Returns:
      The slides, in the order in which they came.

    Raises:
      InputError: the spacing is no length, or some sections of a stack have heights and some none.
    """
    if not (np.isfinite(spacing_um) and spacing_um > 0):
        raise InputError(
            "config.data.section_spacing_um must be a number of micrometres above 0, found "
            f"{spacing_um}."
        )
    heights: dict[int, float] = {}
    for patient in dict.fromkeys(slide.patient for slide in slides):
        group = [i for i, slide in enumerate(slides) if slide.patient == patient]
        without = [i for i in group if slides[i].z_um is None]
        if without and len(without) < len(group):
            known = next(slides[i] for i in group if slides[i].z_um is not None)
            raise InputError(
                f"{slides[without[0]].where}: has no z_um, but {known.name!r} of the same stack "
                f"has ({known.z_um:g}); give it for all sections, or for none to have them "
                "config.data.section_spacing_um apart."
            )
        without.sort(key=lambda i: (_natural(label(slides[i])), _natural(slides[i].name)))
        heights |= {i: place * float(spacing_um) for place, i in enumerate(without)}
    return [
        dataclasses.replace(slide, z_um=heights[i]) if i in heights else slide
        for i, slide in enumerate(slides)
    ]


def _natural(text: str) -> list[str | int]:
    """A key that sorts numbers in texts by value."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def registered(
    sections: Sequence[Slide], kind: str, flips: bool = True
) -> tuple[list[Slide], Stack]:
    """One stack in one frame.

    Sections are compared by outlines and, where all have features, by these. Where all have places
    in the frame already, they stay there, and the fit is measured. What fits so badly that the
    tissue or the order may be wrong is logged.

    Args:
      sections: in the order of the stack.
      kind: "rigid", "affine", or "none" for `coords_um` that are in one frame as they are.
      flips: whether sections may lie upside down.

    Returns:
      The sections with `registered_um`, and how they were moved and fit.

    Raises:
      InputError: as `registration.align_stack`; only some sections have places in the frame; or
        their features are of several encoders.
    """
    there = [slide.name for slide in sections if slide.registered_um is not None]
    missing = [slide.name for slide in sections if slide.registered_um is None]
    if there and missing:
        raise InputError(
            "stack of sections: expected places in the common frame (obsm['spatial3d']) for all "
            f"sections or for none, found them for {there[0]!r} but not for {missing[0]!r}; give "
            "the rest too, or take them out to have all sections registered."
        )
    coords = [s.coords_um if s.registered_um is None else s.registered_um for s in sections]
    seen = _seen(sections, coords)
    try:
        stack = align_stack(seen, "none" if there else kind, flips)
    except InputError as error:
        if not there:
            raise
        raise InputError(
            f"{error} Places in the common frame came with the sections (obsm['spatial3d']): "
            "correct them, or take them out to have the sections registered here."
        ) from error
    _warn(stack, seen)
    alignments = [
        dataclasses.replace(alignment, coords_um=alignment.motion.apply(places))
        for alignment, places in zip(stack.alignments, coords, strict=True)
    ]
    slides = [
        dataclasses.replace(slide, registered_um=alignment.coords_um)
        for slide, alignment in zip(sections, alignments, strict=True)
    ]
    return slides, dataclasses.replace(stack, alignments=alignments)


def _seen(sections: Sequence[Slide], coords: Sequence[np.ndarray]) -> list[Section]:
    """What registration sees: of a large section, some spots, always the same."""
    bare = [slide.name for slide in sections if slide.features is None]
    if bare:
        _LOG.info("sections are registered by outlines alone: %r has no features", bare[0])
    encoders = {slide.encoder: slide.name for slide in sections if slide.encoder}
    if not bare and len(encoders) > 1:
        found = " and ".join(f"{encoder} ({name!r})" for encoder, name in encoders.items())
        raise InputError(
            f"stack of sections: expected features of one encoder in all sections, found {found}; "
            "embed all sections with one."
        )
    width = 0 if bare else max(slide.features.shape[1] for slide in sections)
    affordable = _MOST_NUMBERS // max(1, width * len(sections))
    most = min(MOST_SPOTS, max(_FEWEST_SPOTS, affordable))
    seen = []
    for slide, places in zip(sections, coords, strict=True):
        features, n = slide.features, slide.num_spots
        if n > most:
            # Of one seed whatever the config's: a stack has one frame for all fits.
            index = np.sort(np.random.default_rng(0).choice(n, most, replace=False))
            places = places[index]
            features = None if bare else feature_store.take(features, index)
        seen.append(Section(slide.name, places, None if bare else np.asarray(features)))
    return seen


def _warn(stack: Stack, seen: Sequence[Section]) -> None:
    """Logs neighbours that do not fit, and those that would fit better the other way round."""
    for pair in stack.pairs:
        least = _POOR_OUTLINE if np.isnan(pair.descriptors) else _POOR
        if pair.score < least:
            _LOG.warning(
                "sections %r and %r fit badly (score %.2f, neighbours have %.2f and more): are "
                "they of one tissue, next to one another, and whole?",
                *(pair.fixed, pair.moving, pair.score, least),
            )
    for i, gain in _gains(stack, seen).items():
        if gain > _GAIN:
            _LOG.warning(
                "sections %r and %r would fit those around them better if they changed places (by "
                "%.2f): is the order of z_um right?",
                *(seen[i].name, seen[i + 1].name, gain),
            )


def _gains(stack: Stack, seen: Sequence[Section]) -> dict[int, float]:
    """What two scores gain, together, when sections i and i + 1 change places.

    Those two each have a new neighbour then, which are two apart now. The outermost sections have
    a neighbour on one side alone, which does not tell a wrong order from a torn section.
    """
    if len(seen) < 4:
        return {}
    placed = [
        Section(s.name, alignment.motion.apply(s.coords_um), s.descriptors)
        for s, alignment in zip(seen, stack.alignments, strict=True)
    ]
    apart = {}
    for first in (0, 1):
        try:
            pairs = align_stack(placed[first::2], "none").pairs
        except InputError:  # sections two apart need not overlap
            return {}
        apart |= {first + 2 * k: pair.score for k, pair in enumerate(pairs)}
    near = [pair.score for pair in stack.pairs]
    return {i: apart[i - 1] + apart[i] - near[i - 1] - near[i + 1] for i in range(1, len(seen) - 2)}


def report(stack: Stack, sections: Sequence[Slide]) -> list[dict]:
    """Rows of a table: the fit of each section with the next, and their distance along z.

    Args:
      stack: of `registered`.
      sections: those it was made of.
    """
    z_um = {slide.name: np.nan if slide.z_um is None else slide.z_um for slide in sections}
    return [
        dataclasses.asdict(pair) | {"dz_um": float(z_um[pair.moving] - z_um[pair.fixed])}
        for pair in stack.pairs
    ]
