"""A workdir's config: which experiment it belongs to, and reading it back.

`config.json` is the resolved config of the first command. What may differ from command to command
is FREE_FIELDS; everything else makes another experiment, and another workdir.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from stfm_jax import builtin, experiment
from stfm_jax.errors import InputError
from stfm_jax.runtime import distributed
from stfm_jax.runtime.files import read_json, write_json

FREE_FIELDS = ("methods", "predict", "fold", "devices")


def check(config: ConfigDict, workdir: Path, new: bool) -> None:
    """Refuses a workdir before anything is read.

    Raises:
      InputError: it belongs to another config, or is not `new` and holds none.
    """
    path = workdir / "config.json"
    if path.exists():
        _check_same(_plain(config), read_json(path), workdir)
    elif not new:
        raise InputError(f"{workdir}: holds no experiment; run --mode=train first.")


@contextlib.contextmanager
def claimed(opened: experiment.Experiment) -> Iterator[None]:
    """Writes the resolved config into a workdir that has none, which belongs to it from then on.

    After every check that needs no embedding, and undone where bad input ends the run before
    anything else is written: a corrected command must not be refused as another experiment. Before
    the embedding, whose files are known by the slides' names: another config must not take them
    for its own.

    Raises:
      InputError: what a fold's genes cannot be chosen for.
    """
    workdir, path = opened.workdir, opened.workdir / "config.json"
    if path.exists():
        yield
        return
    experiment.check_folds(opened)
    existed = workdir.exists()
    write_json(path, _plain(opened.config))
    try:
        yield
    except (InputError, OSError):
        if distributed.is_main() and list(workdir.iterdir()) == [path]:
            path.unlink()
            if not existed:
                workdir.rmdir()
        raise


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
        _fill(config, stored)
    return config


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


def _check_same(mine: dict, theirs: dict, workdir: Path) -> None:
    differing = [
        f"{name} is {there!r} there and {here!r} here"
        for name, here, there in _differences(mine, theirs)
        if name.split(".")[0] not in FREE_FIELDS
    ]
    if differing:
        raise InputError(
            f"{workdir}: belongs to another config: {'; '.join(differing[:3])}"
            + (f"; and {len(differing) - 3} more" if len(differing) > 3 else "")
            + ". Use another --workdir, or the config it was made with."
        )


def _differences(a: Any, b: Any, prefix: str = ""):
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from _differences(a.get(key), b.get(key), f"{prefix}{key}.")
    elif a != b:
        yield prefix[:-1], a, b
