"""Files of instruments: tables of text, gzipped or not, JSON, parquet."""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow.parquet

from stfm_jax.errors import InputError

DAMAGED = (OSError, EOFError, zlib.error, ValueError, OverflowError)  # what reading one may raise
_GZIP = b"\x1f\x8b"


def open_bytes(path: Path) -> BinaryIO:
    """A file, unpacked where it is gzipped, whatever its name says."""
    with open(path, "rb") as file:
        packed = file.read(2) == _GZIP
    return gzip.open(path) if packed else open(path, "rb")


def read_table(path: Path, sep: str, **options: Any) -> pd.DataFrame:
    """A table of text, without a header unless the options of pandas say so.

    Raises:
      InputError: it is empty or damaged.
    """
    options = {"header": None, "dtype": str, "keep_default_na": False, **options}
    try:
        with open_bytes(path) as file:
            return pd.read_csv(file, sep=sep, **options)
    except DAMAGED as error:
        raise damaged(path, "a table", error) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
      InputError: it is empty or damaged, or holds something else.
    """
    try:
        with open_bytes(path) as file:
            found = json.load(file)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
        return found
    except DAMAGED as error:
        raise damaged(path, "a JSON object", error) from error


@contextlib.contextmanager
def opened_parquet(path: Path, expected: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    """A parquet file; whatever reading it may raise in the block names it.

    Raises:
      InputError: it is damaged.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # arrow's, and pandas' about the metadata that it finds
        raise damaged(path, expected, error) from error


def damaged(path: Path, expected: str, error: Exception) -> InputError:
    """The error about a file that could not be read."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path}: expected {expected}, but it is empty or damaged ({reason}); get "
                      "the file again.")  # fmt: skip
