"""The command line behind run.py: modes, the workdir's identity, errors for people."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import logging as absl_logging
from ml_collections import ConfigDict

from stfm_jax import experiment
from stfm_jax.errors import InputError
from stfm_jax.eval import model_store, predict
from stfm_jax.runtime.files import disk_full_message, is_disk_full, read_json, write_json
from stfm_jax.runtime.interrupt import EXIT_CODE, Interrupted

MODES = ("train", "eval", "predict", "embed")
FREE_FIELDS = ("predict", "fold")  # may change without making another experiment
_LOG = logging.getLogger("stfm_jax")


def run(config: ConfigDict, workdir: str, mode: str) -> None:
    """Runs a mode of an experiment in its workdir."""
    config = config.copy_and_resolve_references()
    if config.data.dir:
        config.data.dir = os.path.abspath(os.path.expanduser(config.data.dir))
    claim_workdir(config, Path(workdir), create=mode in ("train", "embed"))
    if mode == "predict":
        _predict(config, Path(workdir))
        return
    opened = experiment.open_experiment(config, workdir)
    if mode == "train":
        experiment.train_folds(opened)
    elif mode == "eval":
        experiment.evaluate_folds(opened)
    else:
        _LOG.info("embeddings of %d slides are in place", len(opened.dataset.slides))


def _predict(config: ConfigDict, workdir: Path) -> None:
    name = "final" if config.fold is None else f"fold_{config.fold}"
    directory = workdir / name / "model"
    model = model_store.load(directory, config)
    slide = predict.read_input(config, experiment.builtin_encoder(config), model)
    predict.write(predict.predict(model, slide, config, directory), slide, config)


def claim_workdir(config: ConfigDict, workdir: Path, create: bool) -> None:
    """Writes the resolved config into a new workdir, or checks that it is the one there.

    Raises:
      InputError: the workdir belongs to another config, or holds none and is needed.
    """
    path = workdir / "config.json"
    mine = json.loads(config.to_json_best_effort())
    if not path.exists():
        if not create:
            raise InputError(f"{workdir}: holds no experiment; run --mode=train first.")
        write_json(path, mine)
        return
    theirs = read_json(path)
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


def guarded(main: Callable[[], None]) -> int:
    """Exit code of `main`: 0; 2 for bad input, with one message; 143 when SIGTERM stopped it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _LOG.handlers[:] = [handler]
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax tells every step of every save
    try:
        main()
    except (InputError, FileNotFoundError) as error:
        return _refuse(_message(error))
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return EXIT_CODE
    except OSError as error:
        if is_disk_full(error):
            return _refuse(disk_full_message(error.filename or "a file", error))
        raise
    return 0


def _message(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"{error.filename}: expected a file there, found none."
    return str(error)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
