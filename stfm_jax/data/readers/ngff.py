"""Where elements of a SpatialData store lie: transformations into named systems, as NGFF has them.

Matrices are [3, 3], of (x, y, 1); other axes, as channels, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stfm_jax.errors import InputError

_AXES = ("x", "y")


def systems(
    steps: Sequence[Mapping[str, Any]], axes: Sequence[str], where: str
) -> dict[str, np.ndarray]:
    """By name of each system the matrix that takes an element's own places there.

    Args:
      steps: `coordinateTransformations` of the element.
      axes: names of its own axes, for steps that do not say them.
      where: the element is, for messages.

    Raises:
      InputError: of a kind that is not known.
    """
    found = {}
    for step in steps:
        output = step.get("output")
        if isinstance(output, Mapping) and "name" in output:
            found[str(output["name"])] = _matrix(step, list(axes), where)
    return found


def _matrix(step: Mapping[str, Any], axes: list[str], where: str) -> np.ndarray:
    kind = step.get("type")
    inner, outer = _axes(step.get("input"), axes), _axes(step.get("output"), axes)
    matrix = np.eye(3)
    if kind == "identity":
        return matrix
    if kind == "scale":
        return np.diag([*_of(step["scale"], inner), 1.0])
    if kind == "translation":
        matrix[:2, 2] = _of(step["translation"], inner)
        return matrix
    if kind == "affine":
        values = np.asarray(step["affine"], np.float64)
        rows = [outer.index(axis) for axis in _AXES]
        columns = [*(inner.index(axis) for axis in _AXES), len(inner)]
        matrix[:2] = values[np.ix_(rows, columns)]
        return matrix
    if kind == "sequence":
        for each in step["transformations"]:
            matrix = _matrix(each, axes, where) @ matrix
        return matrix
    raise InputError(
        f"{where}: expected transformations of the kinds identity, scale, translation, affine and "
        f"sequence, found {kind!r}; transform the element to the image's pixels and write it again."
    )


def _axes(side: Any, default: list[str]) -> list[str]:
    said = side.get("axes") if isinstance(side, Mapping) else None
    return [str(axis["name"]) for axis in said] if said else default


def _of(values: Sequence[float], axes: list[str]) -> list[float]:
    return [float(values[axes.index(axis)]) for axis in _AXES]
