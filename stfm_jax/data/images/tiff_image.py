"""TIFF kinds by tifffile: OME with levels in SubIFDs, BigTIFF, strips, 16 bits, channels in pages.

Tiles and strips are decoded one by one and kept in a cache of fixed size. JPEG, LZW and the like
need imagecodecs, of the extra `slides`.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from stfm_jax.data.images.image import (
    DEEP,
    MAX_GIB,
    Level,
    SlideImage,
    Unreadable,
    check_decoded,
    eight_bits,
    on_background,
    reading,
    say_turned,
)
from stfm_jax.data.images.scale import of_both
from stfm_jax.errors import InputError

CACHE_BYTES = 1 << 28  # of decoded tiles
_UM = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "micron": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
_UM |= {"μm": 1.0, "in": 25_400.0, "inch": 25_400.0}  # the Greek letter beside the micro sign
_RESOLUTION_UNITS = {2: 25_400.0, 3: 10_000.0}  # inch, centimetre
_ASSOCIATED = 1  # of a fourth sample: colours are those on black
_LABELS = ("label", "macro", "thumbnail", "overview")  # never read: they may name the patient
_PHOTOMETRIC = ("RGB", "MINISBLACK", "YCBCR")
_PROPORTION = 0.02  # by which width and height of a level may differ in their ratio to level 0


class TiffImage(SlideImage):
    """A TIFF with its levels; each a page of colours, or three pages of one channel."""

    def __init__(self, path: Path, max_gib: float = MAX_GIB):
        """Reads the headers.

        Raises:
          Unreadable: not by tifffile as it is installed, or of a kind that is left to Pillow.
          InputError: it is damaged, or no image of H&E.
        """
        self.path = path
        self._lock = threading.Lock()
        with reading(path), tifffile.TiffFile(path) as tiff:
            self.is_ome = bool(tiff.is_ome)
            pages = _levels(tiff, path)
            _check_decodable(pages[0][0])
            for level in pages:
                check_decoded(path, _piece(level[0]), max_gib)
            tag = pages[0][0].tags.get("Orientation")
            say_turned(path, None if tag is None else int(tag.value))
            # What a handle is found by again: every level's pages by their place in the file.
            self._offsets = tuple(tuple(page.offset for page in level) for level in pages)
            self.levels = tuple(Level(p[0].imagewidth, p[0].imagelength) for p in pages)
            self.um_per_px = _scale(tiff, pages[0][0], path)
            self.grey = len(pages[0]) == 1 and pages[0][0].samplesperpixel < 3
            self._mixed = _ASSOCIATED in tuple(pages[0][0].extrasamples or ())

    def _opens(self) -> _Pages:
        return _Pages(self.path, self._offsets)

    def _closes(self, opened) -> None:
        opened.close()

    def _read(self, opened, level, x, y, width, height) -> np.ndarray:
        with self._lock:  # tifffile's handles are of one thread
            pages = opened.levels[level]
            planes = [opened.region(page, x, y, width, height) for page in pages]
        pixels = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1)
        if pixels.shape[-1] in (1, 2):  # grey, alone or with how opaque it is
            pixels = np.concatenate([pixels[..., :1].repeat(3, -1), pixels[..., 1:]], axis=-1)
        if pixels.shape[-1] == 3:
            return pixels
        return on_background(pixels, self.background, self._mixed)

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class _Pages:
    """An open file, its levels' pages, and the tiles decoded last."""

    def __init__(self, path: Path, offsets: Sequence[Sequence[int]]):
        self._tiff = tifffile.TiffFile(path)
        self.levels = [[self._page(at) for at in level] for level in offsets]
        self._tiles: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._bytes = 0

    def _page(self, offset: int) -> tifffile.TiffPage:
        self._tiff.filehandle.seek(offset)
        return tifffile.TiffPage(self._tiff, index=0)

    def close(self) -> None:
        self._tiff.close()
        self._tiles.clear()

    def region(self, page, x: int, y: int, width: int, height: int) -> np.ndarray:
        """[height, width, samples] uint8."""
        tall = page.tilelength if page.is_tiled else page.rowsperstrip
        wide = page.tilewidth if page.is_tiled else page.imagewidth
        tall = min(tall, page.imagelength)
        across, down = -(-page.imagewidth // wide), -(-page.imagelength // tall)
        separate = page.planarconfig == 2 and page.samplesperpixel > 1
        out = np.empty((height, width, page.samplesperpixel), np.uint8)
        for plane in range(page.samplesperpixel if separate else 1):
            for row in range(y // tall, (y + height - 1) // tall + 1):
                for column in range(x // wide, (x + width - 1) // wide + 1):
                    tile = self._tile(page, (plane * down + row) * across + column)
                    top, left = row * tall, column * wide
                    y0, x0 = max(y, top), max(x, left)
                    y1 = min(y + height, top + tile.shape[0])
                    x1 = min(x + width, left + tile.shape[1])
                    target = out[y0 - y : y1 - y, x0 - x : x1 - x]
                    target = target[..., plane : plane + 1] if separate else target
                    target[:] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def _tile(self, page, index: int) -> np.ndarray:
        """A decoded tile or strip [h, w, samples] uint8."""
        key = page.offset, index
        if key in self._tiles:
            self._tiles.move_to_end(key)
            return self._tiles[key]
        handle = page.parent.filehandle
        handle.seek(page.dataoffsets[index])
        data = handle.read(page.databytecounts[index]) or None
        tile, _, shape = page.decode(data, index, jpegtables=page.jpegtables)
        if tile is None:  # a tile that was never written: what it is filled with is said nowhere
            samples = 1 if page.planarconfig == 2 else page.samplesperpixel
            tile = np.full((*shape[1:3], samples), 255, np.uint8)
        else:
            tile = eight_bits(tile[0])
        self._tiles[key] = tile
        self._bytes += tile.nbytes
        while self._bytes > CACHE_BYTES and len(self._tiles) > 1:
            self._bytes -= self._tiles.popitem(last=False)[1].nbytes
        return tile


def of_several_pages(path: Path) -> bool:
    """Whether the largest image of a TIFF is one of several pages, such as a channel each."""
    with reading(path), tifffile.TiffFile(path) as tiff:
        whole = max(tiff.series, key=lambda s: s.keyframe.imagewidth * s.keyframe.imagelength)
        return len(whole.levels[0].pages) > 1


def _piece(page: tifffile.TiffPage) -> Level:
    """What is decoded together: a tile, or a strip."""
    if page.is_tiled:
        return Level(page.tilewidth, page.tilelength)
    return Level(page.imagewidth, min(page.rowsperstrip, page.imagelength))


def _levels(tiff: tifffile.TiffFile, path: Path) -> list[list[tifffile.TiffPage]]:
    """Pages of each level, finest first: one of colours, or one for each of three channels."""
    series = [s for s in tiff.series if not any(w in (s.name or "").lower() for w in _LABELS)]
    if not series:
        raise InputError(f"{path}: expected the image of a slide, found no page of one.")
    whole = max(series, key=lambda s: s.keyframe.imagewidth * s.keyframe.imagelength)
    levels = [_channels(level, path) for level in whole.levels]
    if len(levels) == 1 and not tiff.is_ome:
        levels += _smaller(series, levels[0], path)
    first = levels[0][0]
    return [
        level
        for level in levels
        if level[0].imagewidth <= first.imagewidth and _kind(level) == _kind(levels[0])
    ]


def _smaller(series, finest, path: Path) -> list[list[tifffile.TiffPage]]:
    """Levels that lie in the file as images of their own, as in most pyramids without SubIFDs."""
    found, first = [], finest[0]
    for each in series:
        page = each.keyframe
        across, down = first.imagewidth / page.imagewidth, first.imagelength / page.imagelength
        rounding = (1 / page.imagewidth + 1 / page.imagelength) + _PROPORTION
        if across > 1.1 and abs(across / down - 1) < rounding and page.is_tiled == first.is_tiled:
            found.append(_channels(each, path))
    return sorted(found, key=lambda level: -level[0].imagewidth)


def _kind(level: list[tifffile.TiffPage]) -> tuple:
    return len(level), level[0].samplesperpixel, level[0].dtype


def _channels(level: Any, path: Path) -> list[tifffile.TiffPage]:
    pages = [page.aspage() for page in level.pages if page is not None]
    if any(Path(page.parent.filehandle.path) != path.absolute() for page in pages):
        raise InputError(
            f"{path}: expected all pixels in this file, found OME-TIFF of several files; write it "
            "as one, as by `bfconvert`."
        )
    if len(pages) in (1, 3) and len(pages) * pages[0].samplesperpixel in (1, 2, 3, 4):
        return pages
    raise InputError(
        f"{path}: expected an H&E image, of one page of colours or three of a channel each, found "
        f"{len(pages)} pages of {pages[0].samplesperpixel} samples (axes {level.axes}); export the "
        "H&E image alone, one plane of it, as RGB."
    )


def _check_decodable(page: tifffile.TiffPage) -> None:
    """Raises Unreadable where tifffile as it is installed cannot decode a page."""
    name = page.photometric.name if page.photometric is not None else "none"
    if name not in _PHOTOMETRIC or page.dtype not in (np.uint8, DEEP):
        raise Unreadable(f"{page.dtype} pixels of kind {name}")
    if page.planarconfig == 1 and page.samplesperpixel in (3, 4) and name == "MINISBLACK":
        raise Unreadable(f"{page.samplesperpixel} samples of kind {name}")
    try:
        for codecs, code in (
            (tifffile.TIFF.DECOMPRESSORS, page.compression),
            (tifffile.TIFF.UNPREDICTORS, page.predictor),
        ):
            _ = codecs[code]
    except KeyError as error:
        raise Unreadable(f"compression {page.compression.name}") from error


def _scale(tiff: tifffile.TiffFile, page: tifffile.TiffPage, path: Path) -> float | None:
    """Micrometres per pixel as OME-XML, ImageJ's or Aperio's text, or the tags of TIFF say."""
    if tiff.is_ome:
        return of_both(*_ome_sizes(tiff.ome_metadata), path)
    per_unit = [_rational(page.tags.get(name)) for name in ("XResolution", "YResolution")]
    if tiff.is_imagej:
        unit = _UM.get(str((tiff.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ"))
    elif tiff.is_svs:
        return _aperio(page.description)
    else:
        tag = page.tags.get("ResolutionUnit")
        unit = _RESOLUTION_UNITS.get(2 if tag is None else int(tag.value))  # none said: inch
    return of_both(*(unit / each if unit and each else None for each in per_unit), path)


def _rational(tag: Any) -> float | None:
    value = None if tag is None else tag.value
    if isinstance(value, tuple) and len(value) == 2 and value[1]:
        return value[0] / value[1]
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _aperio(description: str) -> float | None:
    for part in description.split("|"):
        name, _, value = part.partition("=")
        if name.strip() == "MPP":
            try:
                return float(value)
            except ValueError:
                return None
    return None


def _ome_sizes(xml: str) -> tuple[float | None, float | None]:
    """PhysicalSizeX and Y of the first image, micrometres."""
    for element in ElementTree.fromstring(xml).iter():
        if element.tag.rpartition("}")[2] == "Pixels":
            return tuple(_ome_size(element, axis) for axis in "XY")
    return None, None


def _ome_size(pixels: ElementTree.Element, axis: str) -> float | None:
    size = pixels.get(f"PhysicalSize{axis}")
    unit = _UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    try:
        return float(size) * unit if size and unit else None
    except ValueError:
        return None
