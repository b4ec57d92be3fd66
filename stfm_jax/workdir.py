"""A workdir's config: which experiment it belongs to, and reading it back.

`config.json` is the resolved config of the first command, with the settings of methods that came
later. What may differ from command to command is FREE_FIELDS, and the settings of methods that have
nothing in the workdir yet: a row is its method's settings, the data, the encoder and the seed.
Everything else makes another experiment, and another workdir.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from stfm_jax import builtin, experiment, layout
from stfm_jax.errors import InputError
from stfm_jax.models import table
from stfm_jax.problems.table import PROBLEMS
from stfm_jax.runtime import distributed
from stfm_jax.runtime.files import read_json, write_json
from stfm_jax.settings import paths

FREE_FIELDS = ("methods", "seed", "seeds", "predict", "compare", "fold", "devices")
LIMITS = ("data.max_image_gib", "data.strict")  # refuse or let pass, and change no result
SHARED = ("data", "encoder")  # sections that all methods' results depend on
WHERE_DATA_LIE = ("data.dir", "data.programmes", "encoder.dir", "encoder.weights")
# What reproduces the version that wrote a config.json without the field, a line each; fields that
# are not named here began with what was done before as their default.
LEGACY = {
    "methods": lambda stored: _ROWS[stored["method"]],  # to 0c00b60: one method and its baselines
}
_REGRESSIONS = ("mean", "ridge", "ridge_smooth", "ridge_context", "kernel_ridge", "anchor")
_OF_STACKS = ("neighbour_copy", "centred_sum", "stflow", "holotea_he", "holotea")
_ROWS = {
    "stflow": (*_REGRESSIONS, "stflow"),
    "holotea": (*_REGRESSIONS, *_OF_STACKS),
    "srast": ("uniform", "bilinear", "bicubic", "gaussian", "srast"),
}
_GONE = ("method",)  # fields of earlier versions
_ANY = ""  # no name of a field


def check(config: ConfigDict, workdir: Path, new: bool, reads_data: bool = True) -> None:
    """Refuses a workdir before anything is read; where no data are read they may have moved.

    Raises:
      InputError: it belongs to another config, or is not `new` and holds none; or it is no workdir
        yet, and holds something that a run would replace.
    """
    path = workdir / "config.json"
    if path.exists():
        free = (*FREE_FIELDS, *LIMITS) + (() if reads_data else WHERE_DATA_LIE)
        _check_same(_plain(config), _plain(read_config(workdir)), workdir, free)
    elif not new:
        raise InputError(f"{workdir}: holds no experiment; run --mode=train first.")
    elif foreign := layout.written_in(workdir):
        raise InputError(
            f"{foreign[0]}: a run would replace it, but {workdir} has no config.json, so that it "
            "is none of an earlier run; choose another --workdir, or take it away."
        )


@contextlib.contextmanager
def claimed(opened: experiment.Experiment) -> Iterator[None]:
    """Writes the resolved config into a workdir, which belongs to it from then on.

    One that has a config keeps what may differ, and gets the settings of methods that are new.
    After every check that needs no embedding, and undone where bad input ends the run before
    anything else is written: a corrected command must not be refused as another experiment. Before
    the embedding, whose files are known by the slides' names: another config must not take them
    for its own.

    Raises:
      InputError: what a fold's genes cannot be chosen for.
    """
    if not (opened.workdir / "config.json").exists():
        experiment.check_folds(opened)
    with held(opened.config, opened.workdir):
        yield


@contextlib.contextmanager
def held(config: ConfigDict, workdir: Path) -> Iterator[None]:
    """`claimed` without a look at folds."""
    path = workdir / "config.json"
    if path.exists():
        _keep_up(config, workdir)
        yield
        _note_methods(config.methods, workdir)
        return
    existed = workdir.exists()
    write_config(config, workdir)
    try:
        yield
    except (InputError, OSError):
        if distributed.is_main() and list(workdir.iterdir()) == [path]:
            path.unlink()
            if not existed:
                workdir.rmdir()
        raise


def _note_methods(methods: Iterable[str], workdir: Path) -> None:
    """Adds methods to a workdir's config: the last that came predicts where none is named."""
    config = read_config(workdir)
    new = tuple(name for name in methods if name not in config.methods)
    if new:
        config.methods += new
        write_config(config, workdir)


def _keep_up(config: ConfigDict, workdir: Path) -> None:
    """Takes over what `check` let differ, but for FREE_FIELDS."""
    stored = _plain(read_config(workdir))
    now = _plain(config) | {name: stored[name] for name in FREE_FIELDS}
    if now != stored:
        write_json(workdir / "config.json", now)


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Makes a folder a workdir of a config."""
    write_json(workdir / "config.json", _plain(config))


def read_config(workdir: Path) -> ConfigDict:
    """The config that a workdir was made with; fields it does not name are as in configs/base.py.

    Raises:
      InputError: there is no experiment, or its config is damaged.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(f"{workdir}: holds no experiment; expected a folder that was trained in.")
    stored = read_json(path)
    if not isinstance(stored, dict):
        raise InputError(f"{path}: expected a config, found {type(stored).__name__}.")
    config = builtin.get_config("base")
    with config.unlocked():
        _fill(config, _completed(stored, path))
    return config


def _completed(stored: dict, path: Path) -> dict:
    """A stored config with the fields that came since, and without those that went.

    Raises:
      InputError: it names what no version knows.
    """
    added = {}
    for name, value in LEGACY.items():
        if name not in stored:
            try:
                added[name] = value(stored)
            except KeyError as error:
                raise InputError(
                    f"{path}: lacks {name!r}, which this version cannot make up for ({error}); it "
                    "was not written by a version of this library, or is damaged."
                ) from error
    return {name: value for name, value in (stored | added).items() if name not in _GONE}


def _fill(config: ConfigDict, stored: dict) -> None:
    for name, value in stored.items():
        if isinstance(value, dict) and isinstance(config.get(name), ConfigDict):
            _fill(config[name], value)
        else:
            config[name] = _tuples(value)


def _tuples(value: Any) -> Any:
    """Sequences as a config has them; JSON knows lists alone."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _plain(config: ConfigDict) -> dict:
    return json.loads(config.to_json_best_effort())


def _check_same(mine: dict, theirs: dict, workdir: Path, free: tuple[str, ...]) -> None:
    changed = [
        (name, f"{name} is {there!r} there and {here!r} here")
        for name, here, there in _differences(mine, theirs)
        if name not in free and name.split(".")[0] not in free
    ]
    holders = _holders(workdir, theirs["methods"]) if changed else {}
    differing = []
    for name, said in changed:
        if name.split(".")[0] in SHARED:
            differing.append(said)
        elif fitted := holders.get(name, holders[_ANY]):
            differing.append(f"{said} (of {', '.join(fitted)})")
    if differing:
        raise InputError(
            f"{workdir}: belongs to another config: {'; '.join(differing[:3])}"
            + (f"; and {len(differing) - 3} more" if len(differing) > 3 else "")
            + ". Use another --workdir, or the config it was made with."
        )


def _holders(workdir: Path, methods: Sequence[str]) -> dict[str, list[str]]:
    """By field of the config the methods that depend on it and have something in the workdir.

    Under _ANY those of a field that no method and no problem names.
    """
    places = [*workdir.glob("fold_*"), layout.fold_folder(workdir, None)]
    first_form = any((place / "model").exists() for place in places)  # see store.load_first_form
    there = layout.methods_in(workdir) | set(methods if first_form else ())
    found = {name: table.method_class(name) for name in table.METHODS if name in there}
    holders = {_ANY: list(found)}
    for name in table.METHODS:
        for field in table.method_class(name).fields():
            holders.setdefault(field, []).extend([name] if name in found else [])
    for name, problem in PROBLEMS.items():
        of_problem = [n for n, method in found.items() if method.problem == name]
        for field in paths(problem.Settings):
            holders.setdefault(field, of_problem)
    return holders


def _differences(a: Any, b: Any, prefix: str = ""):
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from _differences(a.get(key), b.get(key), f"{prefix}{key}.")
    elif a != b:
        yield prefix[:-1], a, b
