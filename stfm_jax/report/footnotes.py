"""Footnotes of the printed table: rows whose test slides had nothing of what they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stfm_jax.models.method import Method


def marked(
    rows: Mapping[str, Any],
    lacks: Mapping[int, Mapping[str, Mapping[str, str]]],
    methods: Sequence[Method],
) -> tuple[dict[str, Any], list[str]]:
    """Rows of the table with marks at their names, and the lines that the marks stand for.

    Args:
      rows: by name, a method's own and that of its draws.
      lacks: by fold, method and slide, what it lacks in words (`Method.lacks`).
      methods: that were asked for.

    Returns:
      The rows, and an empty one of each method that lacks something and was scored in no fold.
    """
    folds: dict[str, dict[str, list[int]]] = {}  # by words and method
    for fold, found in lacks.items():
        for name, slides in found.items():
            for said in dict.fromkeys(slides.values()):
                folds.setdefault(said, {}).setdefault(name, []).append(fold)
    marks: dict[str, str] = {}
    for number, by_method in enumerate(folds.values(), 1):
        for name in by_method:
            marks[name] = f"{marks.get(name, '')} [{number}]"
    there = {**rows, **{name: {} for name in marks if name not in rows}}
    named = {row: method.name for method in methods for row in (method.draws_as, method.name)}
    out = {row + marks.get(named.get(row, row), ""): found for row, found in there.items()}
    return out, [_line(number, *each) for number, each in enumerate(folds.items(), 1)]


def _line(number: int, said: str, by_method: Mapping[str, Sequence[int]]) -> str:
    where = "; ".join(f"{name} in fold {', '.join(map(str, f))}" for name, f in by_method.items())
    return f"[{number}] {said}: {where}. Such a row is predicted without, or left out."
