"""Files of instruments: tables of text, gzipped or not, JSON, parquet.

Tables are taken as the common tools write them, R's among these: quoted, with a header that is one
short (of row names), a separator at the end of every line, or `;` between cells and commas in
numbers.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pandas as pd
import pyarrow.parquet

from stfm_jax.data import foreign
from stfm_jax.errors import InputError
from stfm_jax.runtime.memory import GIB, available_memory, require_room, too_large

_AGAIN = "get the file again."
_GZIP = b"\x1f\x8b"
_LOOKED_AT = 20  # lines by which the form of a table is told
_WITH_COMMAS = r"[+-]?\d+(?:,\d+)?(?:[eE][+-]?\d+)?"


class Form(NamedTuple):
    """How a table of text is written."""

    sep: str
    header: list[str]  # cells of the first line, one for each column of the others
    commas: bool  # in numbers, in place of points
    trailing: bool  # lines end with a separator


def open_bytes(path: Path) -> BinaryIO:
    """A file, unpacked where it is gzipped, whatever its name says."""
    with open(path, "rb") as file:
        packed = file.read(2) == _GZIP
    return io.BufferedReader(_Unpacked(path)) if packed else open(path, "rb")


class _Unpacked(io.RawIOBase):
    """A gzipped file, unpacked up to what memory is free when it is opened."""

    def __init__(self, path: Path):
        self._path, self._file = path, gzip.open(path)
        self._left = self._room = available_memory()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        size = self._file.readinto(buffer)
        self._left -= size
        if self._left < 0:
            size = f"more than {self._room / GIB:,.1f} GiB"
            raise InputError(too_large(self._path, size, self._room))
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def reading(
    path: Path, expected: str, advice: str = _AGAIN
) -> contextlib.AbstractContextManager[None]:
    """Whatever reading a file may raise becomes an InputError; see `foreign.reading`."""
    return foreign.reading(path, expected, advice)


def form_of(lines: Sequence[str], sep: str) -> Form:
    """How a table is written, by its first lines; without a header the first is like the others.

    Args:
      lines: some, the first with names where there is a header.
      sep: expected between cells; `;` or a tab is taken where the first line has none of it.
    """
    first = lines[0]
    found = next((s for s in (sep, ";", "\t", ",") if s in first), sep)
    rows = list(csv.reader(lines, delimiter=found))
    header, body = [cell.strip() for cell in rows[0]], rows[1:]
    trailing = bool(body) and all(len(row) > 1 and not row[-1].strip() for row in body)
    trailing &= len({len(row) for row in body}) == 1
    wide = (len(body[0]) - trailing) if body else len(header)
    if len(header) == wide + 1 and not header[-1]:
        header = header[:-1]
    elif len(header) == wide - 1:  # row names have none
        header = ["", *header]
    return Form(found, header, found == ";", trailing and len(header) == wide)


def read_table(
    path: Path, sep: str, *, expected: str = "a table", advice: str = _AGAIN, **options: Any
) -> pd.DataFrame:
    """A table of text as strings, without a header unless the options of pandas say so.

    Args:
      path: of the table, gzipped or not.
      sep: expected between cells.
      expected, advice: for the message, as of `foreign.reading`.
      options: of `pandas.read_csv`.

    Raises:
      InputError: it is empty or damaged.
    """
    with reading(path, expected, advice):
        with open_bytes(path) as file:
            text = file.read().decode(options.pop("encoding", "utf-8-sig"))
        lines = [line for line in text.splitlines() if line.strip()][:_LOOKED_AT]
        if not lines:
            raise ValueError("no lines")
        form = form_of(lines, sep)
        options = {"header": None, "dtype": str, "keep_default_na": False, **options}
        if options["header"] == 0:
            columns = [name or f"Unnamed: {i}" for i, name in enumerate(form.header)]
            options |= {"names": [*columns, *([None] if form.trailing else [])], "skiprows": 0}
            options |= {"header": 0, "index_col": options.get("index_col", False)}
        table = pd.read_csv(io.StringIO(text), sep=form.sep, **options)
        if form.trailing:
            table = table.iloc[:, :-1]
        return table.apply(_with_points) if form.commas else table


def _with_points(column: pd.Series) -> pd.Series:
    """Numbers with points for commas; other columns as they are."""
    there = column[column != ""]
    return column.str.replace(",", ".") if there.str.fullmatch(_WITH_COMMAS).all() else column


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
      InputError: it is empty or damaged, or holds something else.
    """
    with reading(path, "a JSON object"):
        with open_bytes(path) as file:
            found = json.load(file)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
        return found


@contextlib.contextmanager
def opened_parquet(path: Path, expected: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    """A parquet file; whatever reading it may raise in the block names it.

    Raises:
      InputError: it is damaged.
    """
    with reading(path, expected), pyarrow.parquet.ParquetFile(path) as file:
        groups = range(file.metadata.num_row_groups)
        require_room(sum(file.metadata.row_group(i).total_byte_size for i in groups), path)
        yield file
