"""Centres and sizes of shapes that SpatialData keeps: circles and polygons, of its zarr stores.

    shapes/<element>/shapes.parquet        geometry (WKB), an index, columns of its own
    shapes/<element>/{coords,Index}        of the first versions, circles alone

Read without geopandas: a point and a ring of points are all that is needed of WKB.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pandas as pd
import zarr

from stfm_jax.data.readers import plain
from stfm_jax.errors import InputError
from stfm_jax.runtime.files import require_inside

_POINT, _POLYGON, _MULTI = 1, 3, 6  # kinds of WKB


def read(root: Path, group: zarr.Group, element: str) -> pd.DataFrame:
    """Shapes of an element: their centres x, y, left and upper corner, and width; by their index.

    Args:
      root: of the store, a folder.
      group: the same, open.
      element: its name in `shapes`.

    Returns:
      Columns x, y (of polygons the centroid), left, top, width; indexed by text.

    Raises:
      InputError: there is no such element, it is damaged, or holds other shapes.
    """
    require_inside(element, root)
    there = group[f"shapes/{element}"] if f"shapes/{element}" in group else None
    where = root / "shapes" / element
    if not isinstance(there, zarr.Group):
        known = ", ".join(sorted(group["shapes"])) if "shapes" in group else "none"
        raise InputError(f"{root}: expected the shapes {element!r}, found {known or 'none'}.")
    if (where / "shapes.parquet").is_file():
        return _of_parquet(where / "shapes.parquet")
    if {"coords", "Index"} <= set(there) and "offset0" not in there:
        centres = np.asarray(there["coords"][:], np.float64)[:, :2]
        radius = np.asarray(there["radius"][:], np.float64) if "radius" in there else 0.0
        return _table(centres, centres - np.reshape(radius, (-1, 1)), 2 * radius, there["Index"][:])
    raise InputError(
        f"{where}: expected shapes.parquet, or the circles of an early version, found "
        f"{', '.join(sorted(there)) or 'nothing'}; write the store again with spatialdata >= 0.1."
    )


def _of_parquet(path: Path) -> pd.DataFrame:
    with plain.opened_parquet(path, "a parquet table of shapes") as file:
        table = file.read().to_pandas()
    if "geometry" not in table or not all(isinstance(each, bytes) for each in table["geometry"]):
        raise InputError(
            f"{path}: expected the column geometry in WKB, found {', '.join(map(str, table))}; "
            "write the store again with spatialdata."
        )
    try:
        found = [_shape(each) for each in table["geometry"]]
    except (struct.error, ValueError) as error:
        raise InputError(
            f"{path}: expected points or polygons of the plane, found others ({error})."
        ) from error
    values = np.array(found, np.float64).reshape(-1, 5)
    return _table(values[:, :2], values[:, 2:4], values[:, 4], table.index.to_numpy())


def _table(
    centres: np.ndarray, corners: np.ndarray, width: np.ndarray | float, index: np.ndarray
) -> pd.DataFrame:
    columns = np.column_stack([centres, corners, np.broadcast_to(width, len(centres))])
    names = ["x", "y", "left", "top", "width"]
    return pd.DataFrame(columns, columns=names, index=pd.Index([str(each) for each in index]))


def _shape(wkb: bytes) -> tuple[float, float, float, float, float]:
    """Centre, corner and width of one shape."""
    order = "<" if wkb[0] == 1 else ">"
    kind = struct.unpack_from(f"{order}I", wkb, 1)[0]
    if kind == _POINT:
        x, y = struct.unpack_from(f"{order}2d", wkb, 5)
        return x, y, x, y, 0.0
    if kind == _POLYGON:
        rings = [_ring(wkb, order, 5)[0]]
    elif kind == _MULTI:
        rings, at = [], 9
        for _ in range(struct.unpack_from(f"{order}I", wkb, 5)[0]):
            ring, at = _ring(wkb, order, at + 5)
            rings.append(ring)
    else:
        raise ValueError(f"kind {kind}")
    sums = np.sum([_moments(ring) for ring in rings], axis=0)
    points = np.concatenate(rings)
    low, high = points.min(axis=0), points.max(axis=0)
    centre = sums[1:] / sums[0] if sums[0] > 0 else points.mean(axis=0)
    return *centre, *low, high[0] - low[0]


def _ring(wkb: bytes, order: str, at: int) -> tuple[np.ndarray, int]:
    """The outer ring [m, 2] of the polygon whose rings are counted at a byte, and where it ends."""
    (rings,) = struct.unpack_from(f"{order}I", wkb, at)
    at, outer = at + 4, None
    for _ in range(rings):
        (m,) = struct.unpack_from(f"{order}I", wkb, at)
        points = np.frombuffer(wkb, f"{order}f8", 2 * m, at + 4).reshape(m, 2)
        outer = points if outer is None else outer
        at += 4 + 16 * m
    if outer is None or not len(outer):
        raise ValueError("a polygon without a ring")
    return outer, at


def _moments(ring: np.ndarray) -> np.ndarray:
    """Area of a ring, and the area times its centroid."""
    start = ring[0]
    a, b = ring[:-1] - start, ring[1:] - start
    cross = a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]
    area = cross.sum() / 2
    first = ((a + b) * cross[:, None]).sum(axis=0) / 6 + area * start
    return np.sign(area) * np.array([area, *first])
