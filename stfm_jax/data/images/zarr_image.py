"""Images of OME-Zarr 0.4 and 0.5, as SpatialData keeps them: a folder with an array a level."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from stfm_jax.data.images.image import (
    DEEP,
    Level,
    SlideImage,
    eight_bits,
    on_background,
    reading,
)
from stfm_jax.data.images.scale import of_both
from stfm_jax.errors import InputError

_DEPTHS = (np.dtype(np.uint8), DEEP)


def multiscale(group: zarr.Group) -> dict[str, Any] | None:
    """What an image's group says of its levels and places; None of other groups."""
    said = group.attrs.get("ome", group.attrs)
    scales = said.get("multiscales") if hasattr(said, "get") else None
    return scales[0] if isinstance(scales, list) and scales else None


def is_one(path: Path) -> bool:
    """Whether a folder is an image; not whether it can be read."""
    if not path.is_dir():
        return False
    with contextlib.suppress(Exception):  # zarr raises its own classes and what stores raise
        return multiscale(zarr.open_group(path, mode="r")) is not None
    return False


class ZarrImage(SlideImage):
    """Arrays of axes c, y, x in any order, of three channels; or of four, named r, g, b, a."""

    def __init__(self, path: Path):
        """Reads what the group says.

        Raises:
          InputError: it is damaged, or no image of colours.
        """
        self.path = path
        with reading(path):
            group = zarr.open_group(path, mode="r")
            about, labels = multiscale(group), _labels(group)
            self._axes = "".join(_name(axis) for axis in about["axes"])
            self._names = [str(level["path"]) for level in about["datasets"]]
            arrays = [group[name] for name in self._names]
        if sorted(self._axes) != ["c", "x", "y"] or any(
            array.ndim != 3 or array.dtype not in _DEPTHS for array in arrays
        ):
            raise InputError(
                f"{path}: expected an H&E image, arrays of axes c, y, x with 8 or 16 bits, found "
                f"axes {', '.join(self._axes)} of {arrays[0].dtype}; export the H&E image as RGB."
            )
        channels = arrays[0].shape[self._axes.index("c")]
        if channels != 3 and not (channels == 4 and labels[:3] == list("rgb")):
            raise InputError(
                f"{path}: expected an H&E image of 3 channels, found {channels} "
                f"({', '.join(labels) or 'not named'}); name the H&E image of the store, or export "
                "it as RGB."
            )
        sizes = [[array.shape[self._axes.index(axis)] for axis in "xy"] for array in arrays]
        self.um_per_px = of_both(*_scale(about), path)
        self.levels = tuple(Level(*size) for size in sizes)

    def _opens(self) -> list[zarr.Array]:
        group = zarr.open_group(self.path, mode="r")
        return [group[name] for name in self._names]

    def _closes(self, opened) -> None:
        pass  # files are open while they are read

    def _read(self, opened, level, x, y, width, height) -> np.ndarray:
        where = {"c": slice(None), "y": slice(y, y + height), "x": slice(x, x + width)}
        pixels = opened[level][tuple(where[axis] for axis in self._axes)]
        pixels = eight_bits(pixels.transpose([self._axes.index(axis) for axis in "yxc"]))
        if pixels.shape[-1] == 4:
            return on_background(pixels, self.background)
        return np.ascontiguousarray(pixels)


def _labels(group: zarr.Group) -> list[str]:
    """First letters of the channels' names."""
    said = group.attrs.get("ome", group.attrs).get("omero", group.attrs.get("omero", {}))
    return [str(each.get("label", ""))[:1].lower() for each in said.get("channels", [])]


def _scale(about: dict[str, Any]) -> list[float | None]:
    """Micrometres per pixel along x and y, where the axes are in micrometres."""
    units = {_name(axis): axis.get("unit") for axis in about["axes"] if isinstance(axis, dict)}
    steps = about["datasets"][0].get("coordinateTransformations", [])
    scales = [step["scale"] for step in steps if step.get("type") == "scale"]
    if not scales or any(units.get(axis) != "micrometer" for axis in "xy"):
        return [None, None]
    at = [_name(axis) for axis in about["axes"]]
    return [float(scales[0][at.index(axis)]) for axis in "xy"]


def _name(axis: Any) -> str:
    return str(axis["name"] if isinstance(axis, dict) else axis)
