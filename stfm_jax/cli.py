"""What the command line does: modes, and errors for people."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from absl import logging as absl_logging
from ml_collections import ConfigDict

from stfm_jax import comparison, experiment, seeds, trained
from stfm_jax import workdir as workdirs
from stfm_jax.errors import InputError
from stfm_jax.predict import outputs
from stfm_jax.predict.file import predict_file
from stfm_jax.runtime import distributed
from stfm_jax.runtime.files import disk_full_message, expanded, is_disk_full
from stfm_jax.runtime.interrupt import EXIT_CODE, Interrupted

_LOG = logging.getLogger("stfm_jax")
_STARTS = ("train", "embed", "export")  # modes that make a workdir an experiment's
_PATH_ERRORS = (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)
_PATH_NUMBERS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS)  # that have no class of their own


def run(config: ConfigDict, workdir: str, mode: str) -> None:
    """Runs a mode of an experiment in its workdir."""
    config = config.copy_and_resolve_references()
    _split_at_commas(config)
    config = seeds.with_first(config)
    for section, name in (
        (config.data, "dir"),
        (config.data, "programmes"),
        (config.encoder, "dir"),
    ):
        if section[name]:
            section[name] = os.path.abspath(os.path.expanduser(section[name]))
    for section in (config.encoder, config.stnet, config.longnet):
        section.weights = _absolute(section.weights)
    for name in (*outputs.INPUTS, "output"):
        config.predict[name] = expanded(config.predict[name])
    workdir = Path(os.path.expanduser(workdir))
    versions = {name: version(name) for name in ("jax", "jaxlib", "flax", "stfm_jax")}
    distributed.check_alike(
        "config or versions", f"{mode} {config.to_json_best_effort()} {versions}"
    )
    workdirs.check(config, workdir, mode in _STARTS, reads_data=mode != "predict")
    if comparison.asked(config):
        comparison.check(config, workdir, mode)
        with workdirs.held(config, workdir):
            comparison.run(config, workdir, mode, _compared)
    elif mode == "predict":
        _predict(config, workdir)
    else:
        _experiment(config, workdir, mode)


def _compared(config: ConfigDict, workdir: Path, mode: str) -> experiment.Experiment:
    """An experiment that is part of a comparison."""
    workdirs.check(config, workdir, mode in _STARTS)
    return _experiment(config, workdir, mode, comparison.require_folds)


def _experiment(
    config: ConfigDict, workdir: Path, mode: str, check: Callable[[Any, Path], None] | None = None
) -> experiment.Experiment:
    """Does what a mode asks for; `check` sees the data set and the workdir first."""
    opened = experiment.open_experiment(config, workdir)
    if check is not None:
        check(opened.dataset, workdir)
    if mode == "export":
        from stfm_jax import export_data  # imports tensorflow-datasets, which takes a second

        export_data.check(opened)
    with workdirs.claimed(opened):
        opened = experiment.embed_slides(opened)
        if mode == "embed":
            _tell_of_embeddings(opened)
        elif mode == "export":
            export_data.write(opened)
        else:
            opened = experiment.place_slides(opened)
            (experiment.train if mode == "train" else experiment.evaluate)(opened)
    return opened


def _absolute(weights: str) -> str:
    """FOLDER, or NAME=FOLDER with commas between, with the whole paths."""

    def whole(part: str) -> str:
        name, equals, path = part.partition("=")
        name, path = (f"{name}=", path) if equals and os.sep not in name else ("", part)
        return name + os.path.abspath(os.path.expanduser(path))

    return ",".join(whole(part.strip()) for part in weights.split(",") if part.strip())


def _split_at_commas(config: ConfigDict) -> None:
    """Makes `C1,D1` two members of a tuple; a flag's value arrives as one."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            _split_at_commas(value)
        elif isinstance(value, tuple) and len(value) == 1 and "," in str(value[0]):
            with config.unlocked():
                config[name] = tuple(part.strip() for part in value[0].split(",") if part.strip())


def _tell_of_embeddings(opened: experiment.Experiment) -> None:
    encoders, number = opened.problem.encoders, len(opened.dataset.all)
    for encoder in encoders:
        identity, cache = encoder.identity, opened.cache
        _LOG.info("embeddings of %d slides by %s are in %s", number, identity, cache)
    if not encoders and opened.problem.sees_images:
        _LOG.info("nothing to embed: the files of %d slides hold their features", number)
    else:
        _LOG.info("nothing to embed: the methods look at no image")


def _predict(config: ConfigDict, workdir: Path) -> None:
    model, folder = trained.load_model(config, workdir)
    predict_file(config, model, folder)


def guarded(main: Callable[[], None]) -> int:
    """Exit code of `main`: 0; 2 for bad input, with one message; 143 when SIGTERM stopped it.

    Training saves before it stops (`train.loop`); elsewhere SIGTERM stops at once, and what is
    half-written is removed on the way out.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _LOG.handlers[:] = [handler]
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax tells every step of every save
    try:
        with _sigterm_raises():
            main()
        return 0
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return EXIT_CODE
    except (InputError, OSError) as error:
        print(f"error: {' '.join(_message(error).splitlines())}", file=sys.stderr)
        return 2
    except jax.errors.JaxRuntimeError as error:
        if not distributed.several():
            raise
        reason = str(error).splitlines()[0][:200]
        print(
            f"error: process {jax.process_index()}: another process stopped or cannot be reached "
            f"({reason}); see what it says. The same command goes on from the last checkpoint.",
            file=sys.stderr,
        )
        return 2


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(*_):
        raise Interrupted("stopped; the same command goes on.")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _message(error: InputError | OSError) -> str:
    """What to tell a person; raises errors of the system that no person caused."""
    if not isinstance(error, OSError):
        return str(error)
    if is_disk_full(error):
        return disk_full_message(error.filename or "a file", error)
    if isinstance(error, FileNotFoundError):
        missing = error.filename
        return f"{missing}: expected a file there, found none." if missing else str(error)
    of_path = isinstance(error, _PATH_ERRORS) or error.errno in _PATH_NUMBERS
    if of_path and error.filename:
        return (
            f"{error.filename}: cannot be opened or written there ({error.strerror}); choose "
            "another path, or see to its permissions."
        )
    raise error
