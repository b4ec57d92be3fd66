"""Predicts many slides, one after the other: those of a folder, or of a table.

    <output>/<name>.h5ad, .png, ...    as of one slide
    <output>/<name>.json               what was made of what, by which it is known to be finished
    <output>/<name>.log                traceback of a slide that failed; the others go on
    <output>/.<name>.lock              a process is at work on it
    <output>/summary.csv               a line for every slide

Any number of processes may run the same command on one file system: each takes the next slide that
none is at work on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import jax

from stfm_jax.data.hdf5 import require_file
from stfm_jax.data.images.opening import SUFFIXES, is_image
from stfm_jax.data.listing import visible
from stfm_jax.data.readers import plain
from stfm_jax.errors import InputError
from stfm_jax.predict import outputs
from stfm_jax.runtime import distributed, locks, marks
from stfm_jax.runtime.files import atomic_path, file_name, is_file_name, write_csv, write_json

_LOG = logging.getLogger("stfm_jax")
_TABLES = (".csv", ".tsv")
_SLIDE, _SCALE = ("input", "wsi", "slide"), ("um_per_px", "mpp")  # columns; TRIDENT's names too
# Of `predict`: said beside, by slide.
_FREE = ("input", "output", "overwrite", "um_per_px", "method")
_NOTES = ("log", "json")  # beside a prediction
DONE, FAILED, ELSEWHERE = "done", "failed", "another process is at it"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A slide of the list."""

    path: Path
    name: str  # of its files
    um_per_px: float | None = None


class Source(NamedTuple):
    """What predicts."""

    method: str
    folder: Path  # of the model


def is_cohort(options: Any) -> bool:
    """Whether the section `predict` of a config names many slides: its output is a folder."""
    path = Path(options.input)
    listed = path.is_dir() or path.suffix.lower() in _TABLES
    return bool(options.input and options.output) and listed and Path(options.output).suffix == ""


def run(
    config: Any,
    source: Source,
    predict_one: Callable[[Any], None],
    outputs_of: Callable[[Any], Mapping[Path, str]],
) -> None:
    """Predicts every slide of `config.predict.input` that is not finished.

    Args:
      config: with the section `predict`.
      source: slides that another one predicted are predicted again.
      predict_one: predicts the slide that a config names.
      outputs_of: the files that this writes.

    Raises:
      InputError: no slides, or something that is there would be replaced; or, at the end, some
        failed.
    """
    output = Path(config.predict.output)
    entries = listed(config.predict.input, output)
    _check_outputs(entries, config, output, outputs_of)
    _LOG.info("%s: %d slides", config.predict.input, len(entries))
    with distributed.alone():
        first = jax.process_index() * len(entries) // jax.process_count()
        for entry in (*entries[first:], *entries[:first]):
            _predict(entry, config, source, output, predict_one)
        states = [_state(entry, config, source, output) for entry in entries]
        # Of every process: the last one's is whole.
        write_csv(output / "summary.csv", marks.marked(states))
    failed = [state["name"] for state in states if state["status"] == FAILED]
    _LOG.info(
        "%d of %d slides are predicted -> %s",
        sum(state["status"] == DONE for state in states),
        len(entries),
        output / "summary.csv",
    )
    if failed:
        raise InputError(
            f"{output}: {len(failed)} of {len(entries)} slides could not be predicted: "
            f"{', '.join(failed[:5])}{', ...' if len(failed) > 5 else ''}; what went wrong is in "
            "their .log, and in short in summary.csv. The same command tries them again."
        )


def listed(given: str, output: Path) -> list[Entry]:
    """The slides of a folder and those below it, or of a table.

    What was predicted into an `output` folder that lies there is none of them.

    Raises:
      InputError: there are none, or a table without the column, with a name twice, or with one
        that files cannot be called by.
    """
    path = Path(given)
    entries = _in_folder(path, output) if path.is_dir() else _in_table(path)
    # In small letters: such that differ in case alone are one to some file systems.
    names = [entry.name.casefold() for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"{path}: expected a name of its own for every slide, found {twice[0]!r} more than "
            "once; give the table a column `name`."
        )
    return entries


def _check_outputs(entries: list[Entry], config: Any, output: Path, outputs_of) -> None:
    """Raises InputError where a file would be replaced that is an input, or none of ours."""
    given = {path: option for path, option in outputs.inputs(config.predict).items()
             if not path.is_dir()}  # fmt: skip
    given |= {entry.path: "a slide of --config.predict.input" for entry in entries}
    written = {output / "summary.csv": "summary"}
    for entry in entries:
        written |= outputs_of(_config_of(entry, config, output))
        written |= {output / f"{entry.name}.{end}": f"{end} of {entry.name}" for end in _NOTES}
    outputs.check(written, given, config.predict.overwrite, _is_ours)


def _is_ours(path: Path) -> bool:
    """Whether a file was written here; half of one is known by what lies beside it."""
    if marks.is_ours(path):
        return True
    about = path.with_suffix(".json")
    return path.suffix == ".h5ad" and marks.is_ours(about) and not _opens(path)


def _opens(path: Path) -> bool:
    try:
        _spots(path)
    except (OSError, KeyError):
        return False
    return True


def _in_folder(folder: Path, output: Path) -> list[Entry]:
    predicted = output.resolve()
    paths = sorted(
        path
        for path in visible(folder, "**/*")
        if path.is_file()
        and (is_image(path) or path.suffix == ".h5ad")
        and not (predicted in path.resolve().parents and marks.is_ours(path))
    )
    if not paths:
        raise InputError(
            f"{folder}: expected slides in it or in folders below ({', '.join(SUFFIXES[:8])}, ... "
            f"or .h5ad), found none among {len(visible(folder, '**/*'))} files and folders."
        )
    stems = ["__".join(path.relative_to(folder).with_suffix("").parts) for path in paths]
    whole = ["__".join(path.relative_to(folder).parts) for path in paths]
    names = [s if stems.count(s) == 1 else w for s, w in zip(stems, whole, strict=True)]
    return [Entry(path, file_name(name)) for path, name in zip(paths, names, strict=True)]


def _in_table(path: Path) -> list[Entry]:
    require_file(path, "Give a folder of slides, or a table that lists them.")
    table = plain.read_table(path, "\t" if path.suffix.lower() == ".tsv" else ",", header=0)
    column = next((name for name in _SLIDE if name in table), None)
    if column is None or table.empty:
        raise InputError(
            f"{path}: expected a column `input` with a slide in each line, found "
            f"{', '.join(map(str, table)) or 'nothing'}; `um_per_px` and `name` may stand beside."
        )
    scale = next((name for name in _SCALE if name in table), None)
    return [_of_row(row, path, column, scale) for row in table.to_dict("records")]


def _of_row(row: dict[str, str], path: Path, column: str, scale: str | None) -> Entry:
    row = {key: str(value).strip() for key, value in row.items()}
    slide = path.parent / os.path.expanduser(row[column])
    name, um_per_px = row.get("name") or file_name(slide.stem), row.get(scale, "")
    if not row[column] or "\0" in row[column]:
        raise InputError(f"{path}: expected a slide in each line, found {row[column]!r}.")
    if not is_file_name(name):
        raise InputError(
            f"{path}: the name of a slide becomes that of its files, found {name[:80]!r}; give one "
            "without / and a dot in front, of at most 180 bytes."
        )
    return Entry(slide, name, _number(um_per_px, path) if um_per_px else None)


def _number(text: str, path: Path) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{path}: expected micrometres per pixel, found {text!r}.") from error


def _predict(entry: Entry, config, source: Source, output: Path, predict_one) -> None:
    """One slide, unless it is finished or another process is at it."""
    about = _about(entry, config, source)
    if _finished(entry, output, about):
        _LOG.info("%s: is predicted already", entry.name)
        return
    with locks.held(output / f".{entry.name}.lock") as mine:
        if not mine or _finished(entry, output, about):
            return
        log, state = (output / f"{entry.name}.{suffix}" for suffix in _NOTES)
        state.unlink(missing_ok=True)
        started = time.monotonic()
        try:
            predict_one(_config_of(entry, config, output))
            found = _spots(output / f"{entry.name}.h5ad")
        except Exception as error:  # whatever it is, the other slides go on
            _LOG.error("%s: failed: %s", entry.name, error)
            with atomic_path(log) as temporary:
                text = f"{marks.made_by()}\n{traceback.format_exc()}"
                temporary.write_text(text, encoding="utf-8", errors="replace")
            said = {"status": FAILED, "message": " ".join(str(error).split())[:500]}
        else:
            log.unlink(missing_ok=True)
            said = {"status": DONE, "spots": found, "message": ""}
        said["seconds"] = round(time.monotonic() - started, 1)
        write_json(state, {marks.KEY: marks.made_by()} | about | said)


def _config_of(entry: Entry, config: Any, output: Path) -> Any:
    made = config.copy_and_resolve_references()
    with made.unlocked():
        made.predict.input = str(entry.path)
        made.predict.output = str(output / f"{entry.name}.h5ad")
        if entry.um_per_px is not None:
            made.predict.um_per_px = entry.um_per_px
    return made


def _about(entry: Entry, config: Any, source: Source) -> dict[str, Any]:
    """What a prediction is of: a finished one of the same is not made again."""
    options = {k: v for k, v in config.predict.to_dict().items() if k not in _FREE}
    model, said = source.folder / "model.json", [source.method, options]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    digest.update(model.read_bytes() if model.exists() else b"")
    try:
        found = entry.path.stat()
        file = [found.st_size, found.st_mtime_ns]
    except OSError:  # whoever reads it says so
        file = []
    return {
        "input": str(entry.path),
        "file": file,
        "um_per_px": entry.um_per_px or config.predict.um_per_px,
        "seed": config.seed,
        "digest": digest.hexdigest()[:16],
    }


def _finished(entry: Entry, output: Path, about: dict[str, Any]) -> bool:
    state = _read(output / f"{entry.name}.json")
    if state.get("status") != DONE or any(state.get(k) != v for k, v in about.items()):
        return False
    try:
        return _spots(output / f"{entry.name}.h5ad") == state.get("spots")
    except (OSError, KeyError):
        return False


def _spots(path: Path) -> int:
    with h5py.File(path) as file:
        return int(file["X"].shape[0])


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _state(entry: Entry, config: Any, source: Source, output: Path) -> dict[str, Any]:
    """A line of the summary."""
    state, about = _read(output / f"{entry.name}.json"), _about(entry, config, source)
    status = state.get("status", ELSEWHERE)
    if status == DONE and not _finished(entry, output, about):
        status = ELSEWHERE
    found = {k: state.get(k, "") for k in ("spots", "seconds", "message")}
    return {"name": entry.name, "input": str(entry.path), "status": status, **found}
