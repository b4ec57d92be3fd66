"""Regions drawn on a slide, and spots with values, as GeoJSON as QuPath reads and writes it.

Coordinates are pixels of level 0. Reference: RFC 7946; QuPath's `objectType`, `classification` and
`measurements` among the properties of a feature.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from skimage.measure import points_in_poly

from stfm_jax.data import foreign
from stfm_jax.errors import InputError
from stfm_jax.runtime import marks
from stfm_jax.runtime.files import atomic_path

AT_ONCE = 4096  # spots whose values are written together
_DRAW = "draw regions in QuPath and export them by File > Export objects as GeoJSON"


class Region(NamedTuple):
    """A named area: what an odd number of its rings encloses."""

    name: str
    rings: tuple[np.ndarray, ...]  # each [m, 2] (x, y), pixels of level 0

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which of the points [n, 2] lie in it, [n] bool."""
        found = np.zeros(len(points), bool)
        for ring in self.rings:
            near = ((points >= ring.min(axis=0)) & (points <= ring.max(axis=0))).all(axis=1)
            found[near] ^= points_in_poly(points[near], ring)
        return found


def read_regions(path: str | Path) -> list[Region]:
    """The areas of a file; of one name, or without any, they are numbered.

    Raises:
      InputError: there is no such file, it is no GeoJSON, or it has no area.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected regions as GeoJSON, found no such file; {_DRAW}.")
    with foreign.reading(path, "regions as GeoJSON with polygons", f"{_DRAW}."):
        content = json.loads(path.read_text(encoding="utf-8"))
        shapes = [(_name(feature), tuple(_rings(feature))) for feature in _features(content)]
    shapes = [(name, rings) for name, rings in shapes if rings]
    if not shapes:
        raise InputError(f"{path}: expected at least one polygon, found none; {_DRAW}.")
    names = [name for name, _ in shapes]
    seen: dict[str, int] = {}
    regions = []
    for name, rings in shapes:
        seen[name] = seen.get(name, 0) + 1
        numbered = f"{name} {seen[name]}" if names.count(name) > 1 else name
        regions.append(Region(numbered, rings))
    return regions


def labels(regions: Sequence[Region], points: np.ndarray) -> np.ndarray:
    """Name of the first region that each point [n, 2] lies in, "" of none; [n] str."""
    out = np.full(len(points), "", dtype=object)
    for region in reversed(regions):
        out[region.contains(points)] = region.name
    return out


def write_spots(
    path: str | Path,
    coords_px: np.ndarray,
    side_px: float,
    names: Sequence[str],
    values: Any,
    genes: Sequence[str],
) -> None:
    """Writes spots as squares with values, to be dropped onto the slide in QuPath.

    Args:
      coords_px: [n, 2] centres, pixels of level 0.
      side_px: of the squares.
      names: [n].
      values: [n, g], or what gives [m, g] for a slice, as a matrix in a file.
      genes: [g].
    """
    corners = 0.5 * side_px * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        head = {"type": "FeatureCollection", marks.KEY: marks.made_by()}
        file.write(json.dumps(head)[:-1] + ', "features": [')
        for first in range(0, len(names), AT_ONCE):
            rows = np.asarray(values[first : first + AT_ONCE])
            for i, row in enumerate(rows, start=first):
                ring = np.round(coords_px[i] + corners, 2).tolist()
                measured = {g: float(f"{v:.4g}") for g, v in zip(genes, row, strict=True)}
                file.write(",\n" if i else "\n")
                json.dump(_spot(str(names[i]), ring, measured), file, allow_nan=False)
        file.write("\n]}\n")


def _spot(name: str, ring: list, measurements: Mapping[str, float]) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "tile", "name": name, "measurements": measurements},
    }


def _features(content: Any) -> Iterator[Mapping[str, Any]]:
    """Features of a collection, of a list of them, of one, or of a bare geometry."""
    if isinstance(content, list):
        for each in content:
            yield from _features(each)
    elif content["type"] == "FeatureCollection":
        yield from content["features"]
    elif content["type"] == "Feature":
        yield content
    else:
        yield {"geometry": content}


def _name(feature: Mapping[str, Any]) -> str:
    about = feature.get("properties") or {}
    kind = about.get("classification") or {}
    return str(about.get("name") or kind.get("name") or "region")


def _rings(feature: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """Rings of polygons; points and lines have none."""
    geometry = feature.get("geometry") or {"type": ""}
    polygons = {
        "Polygon": lambda: [geometry["coordinates"]],
        "MultiPolygon": lambda: geometry["coordinates"],
    }.get(geometry["type"], list)()
    for ring in (ring for polygon in polygons for ring in polygon):
        points = np.asarray(ring, dtype=np.float64)[:, :2]
        if len(points) < 3 or not np.isfinite(points).all():
            raise ValueError(f"a ring of {len(points)} points")
        yield points
    for part in geometry.get("geometries", ()):
        yield from _rings({"geometry": part})
