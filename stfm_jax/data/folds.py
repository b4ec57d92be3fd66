"""Folds: which slides are trained on, and which tested, made from what slides say of themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Fold:
    """Names of the training and test slides."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def leave_one_out(slides: dict[str, Slide]) -> tuple[tuple[Fold, ...], str]:
    """Folds by patient; by section where there is one patient, which the report says.

    Slides without a patient are patients of their own. None of one slide.
    """
    patients = {name: slide.patient or name for name, slide in slides.items()}
    groups = sorted(set(patients.values()))
    note = f"folds leave one of {len(groups)} patients out"
    if len(groups) == 1:
        patients = {name: name for name in slides}
        groups = list(slides)
        note = (
            f"folds leave one of {len(groups)} sections of one patient out: this is not "
            "generalisation to patients"
        )
    if len(groups) < 2:
        return (), "one slide"
    tests = [tuple(n for n in slides if patients[n] == group) for group in groups]
    return _folds(slides, tests), note


def leave_patients_out(slides: dict[str, Slide]) -> tuple[tuple[Fold, ...], str]:
    """Folds that leave a patient out each (`data.folds=patient`).

    Raises:
      InputError: a slide's patient is not known, or there is one patient.
    """
    nameless = [name for name, slide in slides.items() if not slide.patient]
    if nameless:
        raise InputError(
            f"config.data.folds=patient: expected every slide to say its patient, found "
            f"{len(nameless)} of {len(slides)} that do not ({', '.join(nameless[:3])}); set "
            "obs['patient'], or choose --config.data.folds=section."
        )
    patients = {slide.patient for slide in slides.values()}
    if len(patients) < 2:
        raise InputError(
            f"config.data.folds=patient: expected slides of two patients or more, found "
            f"{len(slides)} of {', '.join(map(repr, patients))}; choose "
            "--config.data.folds=section, or give slides of another patient."
        )
    return leave_one_out(slides)


def leave_sections_out(slides: dict[str, Slide]) -> tuple[tuple[Fold, ...], str]:
    """Folds that leave a section out of every stack (`data.folds=section`).

    Fold i tests the i-th section of every patient that has so many, in the data set's order; the
    other sections of that patient are trained on. The only section of a patient is never tested.
    Slides without a patient make one stack, as in `data.stack`.

    Raises:
      InputError: no patient has two sections.
    """
    groups: dict[str, list[str]] = {}
    for name, slide in slides.items():
        groups.setdefault(slide.patient, []).append(name)
    stacks = [group for group in groups.values() if len(group) > 1]
    alone = [group[0] for group in groups.values() if len(group) == 1]
    if not stacks:
        raise InputError(
            f"config.data.folds=section: expected a patient with two sections or more, found "
            f"{len(slides)} slides of {len(groups)} patients; choose --config.data.folds=patient."
        )
    longest = max(map(len, stacks))
    tests = [tuple(stack[i] for stack in stacks if i < len(stack)) for i in range(longest)]
    note = f"folds leave one section out of each of {len(stacks)} stacks"
    if alone:
        note += f" ({', '.join(alone)}, alone of a patient, always trained on)"
    return _folds(slides, tests), f"{note}: this is not generalisation to patients"


def _folds(slides: dict[str, Slide], tests: Sequence[Sequence[str]]) -> tuple[Fold, ...]:
    """Folds that train on all slides that they do not test, both in the order of the slides."""
    return tuple(
        Fold(tuple(n for n in slides if n not in test), tuple(n for n in slides if n in test))
        for test in tests
    )
