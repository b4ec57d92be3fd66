"""Marks by which a file is known to be of this library, so that it may be written again.

| file | mark |
|---|---|
| `.h5ad` | `uns['stfm']` |
| `.png` | the text chunk `Software` |
| `.html` | the tag `generator` |
| `.json`, `.geojson` | `made_by`, before anything that is long |
| `.csv` | a column `made_by` |
| `.log` | the first line |
| `.zarr` | the attribute `made_by` of the store |

A file of any other kind, or one that cannot be read, is not known to be ours.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import h5py
from PIL import Image

import stfm_jax

KEY = "made_by"
_LIBRARY = "stfm_jax"
_HEAD = 4096  # characters in which a mark is looked for


def made_by() -> str:
    """What the marks say: library and version."""
    return f"{_LIBRARY} {stfm_jax.__version__}"


def html_tag() -> str:
    """The mark of a page, for its head."""
    return f'<meta name="generator" content="{escape(made_by())}">'


def marked(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table, with the mark as their last column."""
    return [{**row, KEY: made_by()} for row in rows]


def is_ours(path: Path) -> bool:
    """Whether a file or store, which is there, was written by this library."""
    reads = _READS.get(path.suffix.lower())
    try:
        return reads is not None and reads(path)
    except Exception:  # whatever a foreign or damaged file makes its reader raise
        return False


def _says_ours(text: object) -> bool:
    return str(text).startswith(_LIBRARY)


def _anndata(path: Path) -> bool:
    with h5py.File(path, "r") as file:
        return "stfm" in file.get("uns", ())


def _picture(path: Path) -> bool:
    with Image.open(path) as image:
        return _says_ours(image.info.get("Software", ""))


def _head(path: Path) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read(_HEAD)


def _page(path: Path) -> bool:
    return f'<meta name="generator" content="{_LIBRARY}' in _head(path)


def _object(path: Path) -> bool:
    return f'"{KEY}": "{_LIBRARY}' in _head(path)


def _table(path: Path) -> bool:
    with open(path, newline="", encoding="utf-8") as file:
        return _says_ours(next(csv.DictReader(file), {}).get(KEY, ""))


def _log(path: Path) -> bool:
    return _says_ours(_head(path))


def _store(path: Path) -> bool:
    return _says_ours(json.loads((path / ".zattrs").read_text(encoding="utf-8")).get(KEY, ""))


_READS: dict[str, Callable[[Path], bool]] = {
    ".h5ad": _anndata,
    ".png": _picture,
    ".html": _page,
    ".json": _object,
    ".geojson": _object,
    ".csv": _table,
    ".log": _log,
    ".zarr": _store,
}
