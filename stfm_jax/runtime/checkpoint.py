"""Checkpoints by Orbax: the latest to go on from, and the best kept apart from it.

They have directories of their own, since Orbax with `best_fn` would delete the newest step.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from stfm_jax.errors import InputError
from stfm_jax.runtime.files import disk_full_message, is_disk_full

PyTree = Any
_OVERHEAD = 200_000  # bytes: the files around the arrays


class Checkpoint:
    """The newest saved pytree of arrays of one directory, with the step it was saved at."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory).absolute()
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=1,
                create=True,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,  # of saves that were killed
            ),
        )

    @property
    def step(self) -> int | None:
        """Step of the newest whole checkpoint; an interrupted save leaves none."""
        return self._manager.latest_step()

    def save(self, step: int, tree: PyTree) -> None:
        """Saves; a step already there is left as it is.

        Raises:
          InputError: the disk is full.
        """
        if self.step is not None and self.step >= step:
            return
        with self._saving():
            self._check_room(tree)
            saved = self._manager.save(step, args=ocp.args.StandardSave(tree))
        if not saved:
            raise RuntimeError(f"{self.directory}: Orbax did not save step {step}.")

    def replace(self, step: int, tree: PyTree) -> None:
        """Saves over whatever is there, an equal or later step included."""
        if self.step is not None and self.step >= step:
            self.clear()
        self.save(step, tree)

    def clear(self) -> None:
        """Deletes what is there."""
        for stored in self._manager.all_steps():
            self._manager.delete(stored)

    def restore(self, template: PyTree) -> PyTree:
        """Restores the newest checkpoint into the template's structure, shapes and dtypes.

        Raises:
          InputError: there is none, it is damaged, or it belongs to another model.
        """
        if self.step is None:
            raise InputError(f"{self.directory}: holds no checkpoint; train first.")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        with self._reading():
            stored = self._manager.item_metadata(self.step)
        self._check_shapes(stored, abstract)
        with self._reading():
            return self._manager.restore(self.step, args=ocp.args.StandardRestore(abstract))

    def restore_as_saved(self) -> PyTree:
        """Restores the newest checkpoint as it was saved, on the host.

        Raises:
          InputError: there is none, or it is damaged.
        """
        if self.step is None:
            raise InputError(f"{self.directory}: holds no checkpoint; train first.")
        with self._reading():
            restored = self._manager.restore(self.step, args=ocp.args.StandardRestore())
        return jax.tree.map(np.asarray, restored)

    def _check_shapes(self, stored: PyTree | None, abstract: PyTree) -> None:
        if stored is None:
            return
        found = {_name(p): (tuple(a.shape), a.dtype) for p, a in _leaves(stored)}
        expected = {_name(p): (tuple(a.shape), a.dtype) for p, a in _leaves(abstract)}
        if found != expected:
            differing = sorted(
                name
                for name in found.keys() | expected.keys()
                if found.get(name) != expected.get(name)
            )
            name = differing[0]
            raise InputError(
                f"{self.directory}: the checkpoint belongs to another model: {name} is "
                f"{found.get(name)} there and {expected.get(name)} here ({len(differing)} arrays "
                "differ). Use the config it was trained with, or another workdir."
            )

    def close(self) -> None:
        self._manager.close()

    def _check_room(self, tree: PyTree) -> None:
        """Before a save: when Orbax's threads find the disk full, they fill stderr as well."""
        needed = sum(a.nbytes for a in jax.tree.leaves(tree)) + _OVERHEAD
        if shutil.disk_usage(self.directory).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Turns a full disk into an InputError; TensorStore says it in a ValueError's text."""
        try:
            with _quiet():
                yield
            return
        except (OSError, ValueError) as error:
            if not _says_full(error):
                raise
        # Out of the handler, so that nothing holds the futures of the failed save: collected here,
        # they say it once more to a logger that does not listen.
        with _muted("asyncio"):
            gc.collect()
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise InputError(disk_full_message(self.directory, full))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turns what Orbax raises on damaged files, which is anything, into an InputError."""
        try:
            with _quiet():
                yield
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0][:160] or type(error).__name__
            raise InputError(
                f"{self.directory}: the checkpoint of step {self.step} is damaged or incomplete "
                f"({reason}); train again into another --workdir."
            ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's log: its threads print the traceback of what is raised here anyway."""
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.FATAL)
    try:
        yield
    finally:
        absl_logging.set_verbosity(before)


@contextlib.contextmanager
def _muted(name: str) -> Iterator[None]:
    """Without what a logger says."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _says_full(error: OSError | ValueError) -> bool:
    texts = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT)]
    told = any(text in str(error) for text in texts)
    return told or (isinstance(error, OSError) and is_disk_full(error))


def _leaves(tree: PyTree):
    return jax.tree_util.tree_leaves_with_path(tree)


def _name(path) -> str:
    return ".".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)
