"""Checkpoints: what is restored, what is refused, and that a failed save costs nothing."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from stfm_jax.errors import InputError
from stfm_jax.runtime.checkpoint import Checkpoint


def tree(value: float) -> dict:
    return {"a": jnp.full((3, 2), float(value)), "b": {"step": jnp.int32(value)}}


def saved(directory, *steps) -> Checkpoint:
    checkpoint = Checkpoint(directory)
    for step in steps:
        checkpoint.save(step, tree(step))
    return checkpoint


def test_the_newest_comes_back_exactly(tmp_path):
    assert saved(tmp_path / "new" / "latest", 3, 7).step == 7
    again = Checkpoint(tmp_path / "new" / "latest")
    got = again.restore(tree(0))
    assert again.step == 7 and got["a"].dtype == jnp.float32 and got["b"]["step"].dtype == jnp.int32
    np.testing.assert_array_equal(got["a"], tree(7)["a"])
    assert int(got["b"]["step"]) == 7
    kept = [p.name for p in (tmp_path / "new" / "latest").iterdir() if p.is_dir()]
    assert kept == ["7"]


def test_save_leaves_an_equal_or_later_step_and_replace_does_not(tmp_path):
    checkpoint = saved(tmp_path, 5)
    checkpoint.save(5, tree(99))
    checkpoint.save(4, tree(99))
    assert float(checkpoint.restore(tree(0))["a"][0, 0]) == 5.0
    checkpoint.replace(4, tree(4))
    assert checkpoint.step == 4 and float(checkpoint.restore(tree(0))["a"][0, 0]) == 4.0
    checkpoint.replace(9, tree(9))
    assert checkpoint.step == 9
    checkpoint.clear()
    assert checkpoint.step is None


def test_nothing_there(tmp_path):
    assert Checkpoint(tmp_path / "none").step is None
    with pytest.raises(InputError, match=r"none: holds no checkpoint; train first"):
        Checkpoint(tmp_path / "none").restore(tree(0))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"a": jnp.zeros((3, 5)), "b": {"step": jnp.int32(0)}}, r"a is \(\(3, 2\).*\(\(3, 5\)"),
        ({"a": jnp.zeros((3, 2))}, "b.step is .* there and None here"),
        ({"a": jnp.zeros((3, 2)), "b": {"step": jnp.float32(0)}}, "b.step .*int32.*float32"),
    ],
    ids=["shape", "structure", "type"],
)
def test_another_models_checkpoint_is_refused(tmp_path, other, words):
    checkpoint = saved(tmp_path, 1)
    with pytest.raises(InputError, match="another model: " + words):
        checkpoint.restore(other)


def truncate_all(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_arrays(folder):
    for path in folder.rglob("d"):
        shutil.rmtree(path)


def empty_manifest(folder):
    for path in folder.rglob("manifest.ocdbt"):
        path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate_all, lose_arrays, empty_manifest])
def test_damage_is_told_with_the_folder(tmp_path, damage):
    saved(tmp_path / "latest", 3).close()
    damage(tmp_path / "latest" / "3")
    with pytest.raises(InputError, match=r"latest: the checkpoint of step 3 is damaged"):
        Checkpoint(tmp_path / "latest").restore(tree(0))


def test_a_save_that_was_killed_is_not_seen_and_is_cleared(tmp_path):
    saved(tmp_path, 3).close()
    half = tmp_path / "8.orbax-checkpoint-tmp" / "default.orbax-checkpoint-tmp"
    half.mkdir(parents=True)
    (half / "_METADATA").write_text("{")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.step == 3 and int(checkpoint.restore(tree(0))["b"]["step"]) == 3
    checkpoint.save(8, tree(8))
    checkpoint.close()
    assert Checkpoint(tmp_path).step == 8 and not half.exists()


FULL = [
    ("shutil.disk_usage", mock.Mock(return_value=mock.Mock(free=1000))),
    (
        "orbax.checkpoint.CheckpointManager.save",
        mock.Mock(side_effect=ValueError(f"RESOURCE_EXHAUSTED: {os.strerror(errno.ENOSPC)}")),
    ),
    (
        "orbax.checkpoint.CheckpointManager.save",
        mock.Mock(side_effect=OSError(errno.EDQUOT, "x")),
    ),
]


@pytest.mark.parametrize(("target", "effect"), FULL, ids=["no room", "TensorStore", "quota"])
def test_full_disk(tmp_path, target, effect):
    """What was there stays, and the next save works."""
    checkpoint = saved(tmp_path, 1)
    with mock.patch(target, effect), pytest.raises(InputError, match="the disk is full"):
        checkpoint.save(2, tree(2))
    assert checkpoint.step == 1 and int(checkpoint.restore(tree(0))["b"]["step"]) == 1
    checkpoint.save(2, tree(2))
    assert checkpoint.step == 2
    assert logging.getLogger("asyncio").isEnabledFor(logging.ERROR), "silenced for others too"


def test_other_failures_keep_their_traceback(tmp_path):
    checkpoint = saved(tmp_path, 1)
    broken = mock.Mock(side_effect=ValueError("a bug"))
    with (
        mock.patch("orbax.checkpoint.CheckpointManager.save", broken),
        pytest.raises(ValueError, match=r"^a bug$"),
    ):
        checkpoint.save(2, tree(2))
