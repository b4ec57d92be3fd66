"""Writing files whole or not at all: JSON, CSV, and arrays without pickle."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import math
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stfm_jax.errors import InputError
from stfm_jax.runtime.memory import require_room

_DAMAGED_ARRAYS = (
    *(OSError, ValueError, EOFError, KeyError, MemoryError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
NAME_BYTES = 255  # of a file's name, on the usual file systems
_SHORT = 180  # bytes of a name of which longer ones are made
_NAME = re.compile(r"[^./\\\x00-\x1f\x7f\ud800-\udfff][^/\\\x00-\x1f\x7f\ud800-\udfff]*")


def is_file_name(text: str) -> bool:
    """Whether files can be called by a text: one step of a path, not hidden, not too long."""
    return bool(_NAME.fullmatch(text)) and len(text.encode()) <= _SHORT


def file_name(text: str) -> str:
    """A text that comes from a file (a gene, a slide, a patient), as part of a file's name.

    One that is no name (`is_file_name`) loses what is not plain, and gets a digest by which it is
    still told from others.
    """
    if is_file_name(text):
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    kept = re.sub(r"[^\w+=@-]+", "_", text).encode(errors="ignore")[: _SHORT - 9]
    return f"{kept.decode(errors='ignore').strip('_') or 'name'}-{digest}"


def require_inside(path: str, where: str | os.PathLike) -> str:
    """A path that a file names, if it is a relative one that leads nowhere up.

    Raises:
      InputError: it does.
    """
    parts = path.split("/")
    if not all(is_file_name(part) for part in parts):
        raise InputError(
            f"{where}: expected a name, or a path in the folder of the data, found {path[:80]!r}; "
            "names in files are not followed to other places."
        )
    return path


def expanded(paths: str) -> str:
    """A path, or several with commas between, in which ~ stands for a home."""
    return ",".join(os.path.expanduser(part) for part in paths.split(","))


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file beside `path`; moved onto it at the end, removed after any failure.

    Of several processes that write the same, the main one's is kept.

    The folder is made where it is missing. The temporary name keeps the suffix of `path`, which
    writers such as matplotlib choose the format by.

    Raises:
      InputError: the disk (or quota) is full; other errors pass through.
    """
    from stfm_jax.runtime import distributed  # imports JAX, which whoever only reads can do without

    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=temporary_prefix(path), suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _make_public(temporary, 0o666)
        if distributed.is_main():
            os.replace(temporary, path)
        else:
            temporary.unlink()
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and is_disk_full(error):
            raise InputError(disk_full_message(path, error)) from error
        raise


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, replaced: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path`; moved there at the end, removed after any failure.

    Of one process. What is at `path` must be nothing, or an empty folder; or it is `replaced`.

    Raises:
      InputError: there is something else; the disk (or quota) is full.
    """
    path = Path(path)
    full = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if full and not replaced:
        raise InputError(f"{path}: expected no folder there, or an empty one; choose another.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, before = (
        Path(tempfile.mkdtemp(prefix=temporary_prefix(path), dir=path.parent)) for _ in range(2)
    )
    try:
        yield temporary
        _make_public(temporary, 0o777)
        if full:
            os.replace(path, before)
        try:
            os.replace(temporary, path)
        except OSError:
            if full:
                os.replace(before, path)
            raise
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and is_disk_full(error):
            raise InputError(disk_full_message(path, error)) from error
        raise
    finally:
        shutil.rmtree(before, ignore_errors=True)


def temporary_prefix(path: Path) -> str:
    """Of the name of what is not finished: hidden, and so never read as an input."""
    return f".{path.stem.encode()[:_SHORT].decode(errors='ignore')}-"


def _make_public(path: Path, mode: int) -> None:
    """Gives what `tempfile` made private the mode that it would have had otherwise."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(mode & ~mask)


def is_disk_full(error: OSError) -> bool:
    """Whether the disk or the quota was exhausted."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_full_message(path: str | os.PathLike, error: OSError) -> str:
    """What to tell the person whose disk is full."""
    return (
        f"{path}: could not be written, the disk is full ({error.strerror}); free some space or "
        "choose another --workdir, then run the same command again."
    )


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes text atomically, as UTF-8.

    Raises:
      InputError: the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Writes strict JSON atomically: NaN and infinities as null, NumPy values as plain ones.

    Raises:
      InputError: the disk is full.
      TypeError: a value that JSON has no form for.
    """
    write_text(path, json.dumps(plain(obj), indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file of this project.

    Raises:
      InputError: missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected a JSON file written by an earlier run, found {error}; train again "
            "into another --workdir."
        ) from error


def write_csv(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV atomically; the columns are the keys in order of first appearance.

    NaN, None and missing values become empty fields. No rows make an empty file.

    Raises:
      InputError: the disk is full.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as f:
        if columns:
            writer = csv.DictWriter(f, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(plain(dict(row)) for row in rows)


def read_csv(path: str | os.PathLike) -> list[dict[str, str]]:
    """Rows of a CSV file, none if there is no file."""
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def plain(value: Any) -> Any:
    """The value in JSON's own types; None for NaN, infinities and NumPy's missing values."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in (sorted(value) if isinstance(value, set) else value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def save_arrays(path: str | os.PathLike, tree: Mapping[str, Any]) -> None:
    """Writes a nested dict (or NamedTuples) of arrays as .npz; keys are joined by '/'.

    What is None is left out.
    """
    with atomic_path(path) as temporary:
        np.savez(temporary, **dict(_flatten(tree)))


def load_arrays(path: str | os.PathLike) -> dict[str, Any]:
    """Reads what `save_arrays` wrote, as nested dicts.

    Raises:
      InputError: the file is missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            require_room(sum(each.file_size for each in packed.infolist()), path)
        with np.load(path, allow_pickle=False) as stored:
            flat = {key: stored[key] for key in stored.files}
    except InputError:
        raise
    except _DAMAGED_ARRAYS as error:
        raise InputError(f"{path}: not a readable .npz file ({error}); train again.") from error
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        value = value._asdict() if hasattr(value, "_asdict") else value
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        elif value is not None:
            yield f"{prefix}{key}", np.asarray(value)
