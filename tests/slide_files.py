"""Images of slides in the kinds of files that scanners and converters write, of given pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
import zarr

from stfm_jax.data.images.image import Level, SlideImage

TILE = (64, 64)


def halved(pixels: np.ndarray) -> np.ndarray:
    """[h // 2, w // 2, 3], means of 2 x 2 pixels."""
    h, w = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    blocks = pixels[:h, :w].reshape(h // 2, 2, w // 2, 2, -1).astype(np.float32)
    return np.round(blocks.mean(axis=(1, 3))).astype(np.uint8)


def pyramid(pixels: np.ndarray, levels: int = 3) -> list[np.ndarray]:
    out = [pixels]
    for _ in range(levels - 1):
        out.append(halved(out[-1]))
    return out


def write_zarr_image(path: Path, pixels: np.ndarray, steps=(), version=3, **scale) -> Path:
    """A pyramid of OME-Zarr 0.4 (zarr 2) or 0.5 (zarr 3), whose axes are c, y, x.

    Args:
      steps: coordinateTransformations of the image, as SpatialData has them.
      scale: `unit` of the axes y and x, and `um`, level 0's pixels in it.
    """
    group = zarr.open_group(path, mode="w", zarr_format=version)
    space = {"type": "space"} | ({"unit": scale["unit"]} if scale else {})
    axes = [{"name": "c", "type": "channel"}, {"name": "y", **space}, {"name": "x", **space}]
    datasets = []
    for i, level in enumerate(pyramid(pixels)):
        channels = np.ascontiguousarray(level.transpose(2, 0, 1))
        group.create_array(f"s{i}", data=channels, chunks=(len(channels), *TILE))
        step = scale.get("um", 1.0) * 2**i
        of_level = [{"type": "scale", "scale": [1.0, step, step]}]
        datasets.append({"path": f"s{i}", "coordinateTransformations": of_level})
    said = {"axes": axes, "datasets": datasets, "coordinateTransformations": list(steps)}
    said = {"multiscales": [said], "omero": {"channels": [{"label": label} for label in "rgba"]}}
    group.attrs.update(said if version == 2 else {"ome": {"version": "0.5", **said}})
    return path


def write_tiff(path: Path, pixels: np.ndarray, um_per_px: float = 0.5, levels=3, **options) -> Path:
    """A pyramid whose levels are pages of their own, with tiles, and its scale in the tags."""
    options = {"tile": TILE, "compression": "zlib", "photometric": "rgb", **options}
    scale = {"resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, bigtiff=options.pop("bigtiff", False)) as tiff:
        for i, level in enumerate(pyramid(pixels, levels)):
            per_cm = 1e4 / (um_per_px * 2**i)
            tiff.write(
                level,
                resolution=(per_cm, per_cm),
                subfiletype=int(i > 0),
                metadata=None,
                **scale,
                **options,
            )
    return path


def write_ome(path: Path, pixels: np.ndarray, um_per_px: float = 0.5, levels=3, **options) -> Path:
    """OME-TIFF, its levels in SubIFDs; `planes`: three grey pages in place of one of colours."""
    planes, deep = options.pop("planes", False), options.pop("deep", False)
    layers = pyramid(pixels, levels)
    if deep:
        layers = [layer.astype(np.uint16) * 257 for layer in layers]
    if planes:
        layers = [np.moveaxis(layer, -1, 0) for layer in layers]
    options = {"tile": TILE, "compression": "zlib", **options}
    options["photometric"] = "minisblack" if planes else "rgb"
    about = {
        "axes": "CYX" if planes else "YXS",
        "PhysicalSizeX": um_per_px * 1000,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": um_per_px,
        "PhysicalSizeYUnit": "µm",
    }
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as tiff:
        tiff.write(layers[0], subifds=levels - 1, metadata=about, **options)
        for layer in layers[1:]:
            tiff.write(layer, subfiletype=1, **options)
    return path


class ArrayImage(SlideImage):
    """An image in memory of any levels, which counts what is read of it."""

    def __init__(self, levels, um_per_px: float | None = None):
        self.path, self.um_per_px, self.arrays = Path("array"), um_per_px, levels
        self.levels = tuple(Level(a.shape[1], a.shape[0]) for a in levels)
        self.largest = 0  # pixels of one read

    def _opens(self):
        return self.arrays

    def _closes(self, opened) -> None:
        pass

    def _read(self, opened, level, x, y, width, height):
        self.largest = max(self.largest, width * height)
        return opened[level][y : y + height, x : x + width]
