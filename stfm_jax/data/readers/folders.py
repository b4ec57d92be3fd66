"""Slides of instruments' folders: which platform wrote one, and a data set of several.

    <dir>/<slide>/...      as the platform wrote it: one folder for each slide
    <dir>/slides.csv       optional: slide, and any of folder, image, alignment, patient,
                           section, z_um, um_per_px

Without slides.csv every folder in <dir> that the platform wrote is a slide; where <dir> itself is
one, that alone.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stfm_jax.data.image import AS_USUAL, Rules
from stfm_jax.data.image import with_image as on_image
from stfm_jax.data.listing import visible
from stfm_jax.data.readers import plain, space_ranger, visium, visium_hd, xenium
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
SHEET = "slides.csv"
_COLUMNS = ("slide", "folder", "image", "alignment", "patient", "section", "z_um", "um_per_px")


@dataclasses.dataclass(frozen=True)
class Options:
    """How a folder is read."""

    counts: bool = True  # whether they are needed
    um_per_px: float | None = None  # over what the files say
    bin_um: float = 8.0  # of platforms that have bins
    cells_um: float = 0.0  # squares that cells are added up in; 0: cells are spots
    alignment: Path | None = None  # of the image, where it has a file
    rules: Rules = AS_USUAL  # how images are taken
    fields: str = "data"  # section of the config that these come from, for messages


@dataclasses.dataclass(frozen=True)
class Platform:
    """What is known of one."""

    looked_for: str  # by which a folder is known
    is_one: Callable[[Path], bool]
    read: Callable[[Path, str, Options], Slide]
    image: Callable[[Path], Path | None]  # that its pixels refer to


def _reads(read: Callable[..., Slide], *names: str) -> Callable[[Path, str, Options], Slide]:
    """A platform's `read` as all are called, given those of the options that it has."""

    def call(folder: Path, name: str, options: Options) -> Slide:
        common = ("counts", "um_per_px", "fields")
        return read(folder, name, **{key: getattr(options, key) for key in (*common, *names)})

    return call


PLATFORMS = {  # in the order in which a folder is asked
    "xenium": Platform(
        xenium.LOOKED_FOR,
        xenium.is_one,
        _reads(xenium.read, "cells_um", "alignment"),
        xenium.find_image,
    ),
    "visium_hd": Platform(
        visium_hd.LOOKED_FOR,
        visium_hd.is_one,
        _reads(visium_hd.read, "bin_um"),
        space_ranger.find_image,
    ),
    "visium": Platform(
        visium.LOOKED_FOR, visium.is_one, _reads(visium.read), space_ranger.find_image
    ),
}


def platform_of(folder: Path) -> Platform | None:
    """Who wrote a folder; None where it is none of PLATFORMS.

    Raises:
      InputError: it holds several slides in one.
    """
    return next((p for p in PLATFORMS.values() if p.is_one(folder)), None)


def with_image(slide: Slide, image: str | Path, rules: Rules) -> Slide:
    """The slide with patches of the image that its pixels refer to."""
    if slide.um_per_px is None:
        raise InputError(
            f"{slide.where}: its places are micrometres, and nothing says where in the image "
            f"{image} they are; add the alignment (Xenium: *_he_imagealignment.csv), or take the "
            "image out of the folder."
        )
    return on_image(slide, image, rules)


def read_all(root: Path, reader: str, options: Options) -> dict[str, Slide]:
    """The slides of a folder by name, with patches where there is an image.

    Args:
      root: `data.dir`.
      reader: of PLATFORMS.

    Raises:
      InputError, FileNotFoundError: no slide, or as its platform's reader.
    """
    platform = PLATFORMS[reader]
    rows = _sheet(root) if (root / SHEET).is_file() else _found(root, platform)
    slides = {}
    for row in rows:
        name, folder = row["slide"], root / row.get("folder", row["slide"])
        if not platform.is_one(folder):
            raise InputError(
                f"{folder}: expected {platform.looked_for} there, found none; mend {root / SHEET}, "
                f"or choose the reader by --config.data.reader, of {', '.join(PLATFORMS)}."
            )
        scale = _number(row, "um_per_px", root)
        own = {"um_per_px": scale} if scale is not None else {}
        if "alignment" in row:
            own["alignment"] = root / row["alignment"]
        slide = platform.read(folder, name, dataclasses.replace(options, **own))
        image = root / row["image"] if "image" in row else platform.image(folder)
        if image is None:
            _LOG.info("%s: no image of full resolution in %s or beside it", slide.where, folder)
        else:
            slide = with_image(slide, image, options.rules)
        slides[name] = dataclasses.replace(
            slide,
            patient=row.get("patient", ""),
            section=row.get("section", ""),
            z_um=_number(row, "z_um", root),
        )
    return slides


def name_of(folder: Path) -> str:
    """A slide's name by its folder; of a folder `outs` that of the run."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "outs" else folder.name


def _found(root: Path, platform: Platform) -> list[dict[str, Any]]:
    """A row for every folder that the platform wrote."""
    if platform.is_one(root):
        return [{"slide": name_of(root), "folder": "."}]
    folders = [p for p in visible(root) if p.is_dir()]
    found = [p.name for p in folders if platform.is_one(p)]
    if not found:
        there = ", ".join(p.name for p in folders[:6]) or "none"
        raise InputError(
            f"{root}: expected a folder for each slide with {platform.looked_for} (or below "
            f"outs/), found the folders {there}; name them in {SHEET}, or choose another reader by "
            "--config.data.reader."
        )
    skipped = [p.name for p in folders if p.name not in found]
    if skipped:
        _LOG.info("%s: folders that are no slide: %s", root, ", ".join(skipped))
    return [{"slide": name} for name in found]


def _sheet(root: Path) -> list[dict[str, Any]]:
    """The rows of slides.csv, without what is empty."""
    path = root / SHEET
    table = plain.read_table(path, ",", header=0, skipinitialspace=True)
    unknown = [name for name in table.columns if name not in _COLUMNS]
    if "slide" not in table or unknown:
        raise InputError(
            f"{path}: expected the columns slide and any of {', '.join(_COLUMNS[1:])}, found "
            f"{', '.join(map(str, table.columns))}."
        )
    rows = [
        {key: text for key, value in row.items() if (text := str(value).strip())}
        for row in table.to_dict("records")
    ]
    names = [row.get("slide", "") for row in rows]
    wrong = [n for n in names if not n or "/" in n or "\\" in n or n.startswith(".")]
    if wrong or len(set(names)) < len(names) or not names:
        raise InputError(
            f"{path}: expected a name for each slide, each once and without / or a leading dot, "
            f"found {', '.join(map(repr, wrong or names))}."
        )
    return rows


def _number(row: dict[str, Any], key: str, root: Path) -> float | None:
    try:
        value = float(row[key]) if key in row else None
    except ValueError:
        value = np.nan
    if value is not None and not np.isfinite(value):
        raise InputError(f"{root / SHEET}: {key} must be a number, found {row[key]!r}.")
    return value
