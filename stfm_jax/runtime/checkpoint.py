"""Checkpoints by Orbax: the latest to go on from, and the best kept apart from it.

They have directories of their own, since Orbax with `best_fn` would delete the newest step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from stfm_jax.errors import InputError

PyTree = Any


class Checkpoint:
    """The newest saved pytree of arrays of one directory, with the step it was saved at."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory).absolute()
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=1, create=True, enable_async_checkpointing=False
            ),
        )

    @property
    def step(self) -> int | None:
        """Step of the newest whole checkpoint; an interrupted save leaves none."""
        return self._manager.latest_step()

    def save(self, step: int, tree: PyTree) -> None:
        """Saves; a step already there is left as it is."""
        if self.step is not None and self.step >= step:
            return
        if not self._manager.save(step, args=ocp.args.StandardSave(tree)):
            raise RuntimeError(f"{self.directory}: Orbax did not save step {step}.")

    def replace(self, step: int, tree: PyTree) -> None:
        """Saves over whatever is there, an equal or later step included."""
        if self.step is not None and self.step >= step:
            for stored in self._manager.all_steps():
                self._manager.delete(stored)
        self.save(step, tree)

    def restore(self, template: PyTree) -> PyTree:
        """Restores the newest checkpoint into the template's structure, shapes and dtypes.

        Raises:
          InputError: there is none, or it belongs to another model.
        """
        if self.step is None:
            raise InputError(f"{self.directory}: holds no checkpoint; train first.")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        self._check_shapes(abstract)
        return self._manager.restore(self.step, args=ocp.args.StandardRestore(abstract))

    def _check_shapes(self, abstract: PyTree) -> None:
        stored = self._manager.item_metadata(self.step)
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


def _leaves(tree: PyTree):
    return jax.tree_util.tree_leaves_with_path(tree)


def _name(path) -> str:
    return ".".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)
