"""The files that a prediction writes: which they are, and whether each may be written.

Nothing that is an input of the command is ever replaced, and what is there and not of this library
(`runtime.marks`) only where `predict.overwrite` says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from stfm_jax.data.readers import zarr_store
from stfm_jax.errors import InputError
from stfm_jax.models.method import SPLIT, STACK
from stfm_jax.runtime import marks
from stfm_jax.runtime.files import NAME_BYTES, file_name
from stfm_jax.store import Model

_BESIDE = {  # ends of names beside OUT.h5ad
    "map": ".png",
    "report": "_report.html",
    "table of regions": "_regions.csv",
    "GeoJSON": ".geojson",
    "SpatialData": ".zarr",
    "3D view": ".html",
    "table of why": "_why.csv",
    "picture of why": "_why.png",
}
INPUTS = ("input", "image", "embeddings", "regions", "children")  # of `predict`


def beside(output: Path, what: str) -> Path:
    """Where one of _BESIDE lies."""
    return output.with_name(output.stem + _BESIDE[what])


def gene_map(output: Path, gene: str) -> Path:
    """Where the picture of a gene of a stack lies."""
    return output.with_name(f"{output.stem}_{file_name(gene)}.png")


def of(options: Any, model: Model) -> dict[Path, str]:
    """All files of a prediction, each with what it is.

    Args:
      options: the section `predict` of a config.
      model: that predicts.
    """
    output, stack = Path(options.output), STACK in model.method.needs
    wanted = {"map": options.maps}
    if stack:
        wanted |= {"3D view": options.html and options.maps}
        wanted |= dict.fromkeys(("table of why", "picture of why"), bool(options.why))
    elif model.method.problem != SPLIT:
        wanted |= {
            "report": options.report,
            "table of regions": bool(options.regions),
            "GeoJSON": options.geojson,
            "SpatialData": options.spatialdata,
        }
    found = {output: "prediction"}
    found |= {beside(output, what): what for what, is_wanted in wanted.items() if is_wanted}
    if stack and options.maps:
        found |= {gene_map(output, str(gene)): f"map of {gene}" for gene in model.genes.scored}
    return found


def inputs(options: Any) -> dict[Path, str]:
    """Files and folders that a section `predict` names, each with the option that does."""
    found = {}
    for option in INPUTS:
        given = str(options[option])
        for part in {given, *given.split(",")} - {""}:
            found[zarr_store.root_of(part.strip())] = f"--config.predict.{option}"
    return found


def check(
    outputs: Mapping[Path, str],
    given: Mapping[Path, str],
    overwrite: bool,
    is_ours: Callable[[Path], bool] = marks.is_ours,
) -> None:
    """Refuses a prediction that would replace what is not its own, before it begins.

    Args:
      outputs: what will be written, and what each is.
      given: what will be read, and which option named each.
      overwrite: whether files of others may be replaced that are no inputs.
      is_ours: whether a file that is there may be replaced in any case.

    Raises:
      InputError: an output is an input, lies in a store that is one, or in the place of something
        that may not be replaced; or its name is too long.
    """
    taken, stores = _known(given), _folders(given)
    for path, what in outputs.items():
        if len(os.fsencode(path.name)) > NAME_BYTES:
            raise InputError(
                f"--config.predict.output: the {what} would be called {path.name[:60]!r}..., of "
                f"{len(os.fsencode(path.name))} bytes, expected at most {NAME_BYTES}; choose a "
                "shorter name."
            )
        for known in _known([path]):
            if known in taken:
                _refuse_input(path, what, taken[known], given[taken[known]])
        there, real = path.exists() or path.is_symlink(), path.resolve()
        within = next((s for s in stores if s in real.parents), None)
        if within is not None and (zarr_store.is_store(within) or (there and not is_ours(path))):
            _refuse_input(path, what, within, stores[within])
        if there and not overwrite and not is_ours(path):
            kind = "a folder" if path.is_dir() else "a file"
            raise InputError(
                f"{path}: the {what} would be written there, expected nothing or a file of an "
                f"earlier prediction, found {kind} that was not written by this version of "
                "stfm_jax, or is damaged; choose another --config.predict.output, or have it "
                "replaced by --config.predict.overwrite=True."
            )
        if there and (path.is_dir() or path.suffix == ".zarr") and not is_ours(path):
            raise InputError(
                f"{path}: the {what} would be written there, found a store or folder of others, "
                "which is never replaced; take it away, or choose another --config.predict.output."
            )


def _refuse_input(path: Path, what: str, read: Path, option: str) -> None:
    raise InputError(
        f"--config.predict.output: the {what} would be written to {path}, which is read as "
        f"{option} ({read}); choose another name or folder for the output."
    )


def _known(paths: Iterable[Path]) -> dict[Any, Path]:
    """By what each path is known again: its real place in small letters and, if there, its file.

    In small letters, because names that differ in case alone are one to some file systems.
    """
    found: dict[Any, Path] = {}
    for path in paths:
        found[str(path.resolve()).casefold()] = path
        try:
            status = path.stat()
        except OSError:  # not there: whoever reads it says so
            continue
        found[status.st_dev, status.st_ino] = path
    return found


def _folders(given: Mapping[Path, str]) -> dict[Path, str]:
    """The real folders among what is read."""
    return {path.resolve(): option for path, option in given.items() if path.is_dir()}
