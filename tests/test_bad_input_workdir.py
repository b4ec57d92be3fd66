"""Bad input: a workdir of something else, with damaged files, or on a full disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tiny
from bad_input import World, assert_message, assert_refused, edit, half, narrower, rewrite

from stfm_jax.data import datasets


def model(work: Path) -> Path:
    """What predicts."""
    return tiny.place(work, None) / "model"


def cut_arrays(folder: Path) -> None:
    """Halves all of Orbax's data files: a single one may hold only what a later one replaced."""
    for path in [p for p in folder.rglob("d/*") if p.is_file()]:
        rewrite(path, half)


def cut(name: str):
    return lambda work: rewrite(model(work) / name, half)


def of_another_version(work):
    """Parameters that this version does not know."""
    path = model(work) / "state.npz"
    with np.load(path) as stored:
        arrays = {name.replace("params/", "weights/"): stored[name] for name in stored.files}
    np.savez(path, **arrays)


def no_model(work):
    shutil.rmtree(model(work))


def narrower_since(world: World) -> dict:
    """The same files, as the config says, embedded anew by something else after training."""
    shutil.copytree(world.trained.workdir, world.work)
    fields = world.copied()
    for path in sorted(world.data.glob("*.h5ad")):
        edit(path, narrower)
    config = json.loads((world.work / "config.json").read_text())
    config["data"]["dir"] = fields["data__dir"]
    (world.work / "config.json").write_text(json.dumps(config))
    return fields


def bad_config(world: World) -> dict:
    shutil.copytree(world.trained.workdir, world.work)
    rewrite(world.work / "config.json", half)
    return {"data__dir": str(world.trained.data)}


def workdir_is_a_file(world: World) -> dict:
    world.work.write_text("not a folder")
    return world.copied()


def other_config(world: World) -> dict:
    shutil.copytree(world.trained.workdir, world.work)
    return {"data__dir": str(world.trained.data), "model__width": 32, "train__epochs": 9}


CASES = [
    # name, mode, what is made (and which fields point to it), words of the message
    (
        "workdir of another config",
        "train",
        other_config,
        ["belongs to another config", "model.width is 16 there and 32 here", "--workdir"],
    ),
    ("damaged config.json", "train", bad_config, ["config.json", "--workdir"]),
    ("workdir is a file", "train", workdir_is_a_file, ["work", "another path"]),
    ("eval before train", "eval", lambda w: w.copied(), ["holds no experiment", "--mode=train"]),
    (
        "a fold that was not trained",
        "predict",
        lambda w: w.retrained(lambda work: shutil.rmtree(work / "fold_1"), fold=1),
        ["fold_1", "no trained model"],
    ),
    ("no model", "predict", lambda w: w.retrained(no_model), ["final", "no trained model"]),
    (
        "truncated model.json",
        "predict",
        lambda w: w.retrained(cut("model.json")),
        ["model.json", "JSON"],
    ),
    (
        "model.json of another kind",
        "predict",
        lambda w: w.retrained(lambda work: (model(work) / "model.json").write_text("{}")),
        ["model.json", "train again"],
    ),
    (
        "features embedded anew since training",
        "eval",
        narrower_since,
        ["P1_S2.h5ad", "features are 5 wide", "trained on 12"],
    ),
    (
        "truncated state.npz",
        "predict",
        lambda w: w.retrained(cut("state.npz")),
        ["state.npz", "train again"],
    ),
    (
        "state of another version",
        "predict",
        lambda w: w.retrained(of_another_version),
        ["state.npz", "another version", "weights", "train again"],
    ),
    (
        "truncated training checkpoint",
        "train",
        lambda w: w.retrained(
            lambda work: [
                shutil.rmtree(model(work)),
                cut_arrays(tiny.place(work, None) / "refit" / "latest"),
            ]
        ),
        ["latest", "damaged", "train again"],
    ),
]


@pytest.mark.parametrize(
    ("mode", "make", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input(trained, tmp_path, capfd, mode, make, words):
    assert_refused(mode, make, words, trained, tmp_path, capfd)


def test_a_corrected_command_may_use_the_same_workdir(trained, tmp_path):
    """A slip of the hand in a data folder's name, or in a number, does not claim the workdir."""
    work = tmp_path / "work"
    assert tiny.run(tiny.config(data__dir="/none"), work) == 2
    assert tiny.run(trained.config(fold=0, data__num_genes=1000), work) == 2
    assert tiny.run(trained.config(fold=3), work) == 2
    fields = World(tmp_path, trained).her2st()
    assert tiny.run(tiny.config(**fields, data__num_genes=1000), work) == 2
    assert not work.exists()
    assert tiny.run(tiny.config(**fields), work, "embed") == 0


def test_a_damaged_image_is_mended_under_the_same_config(trained, tmp_path, capfd):
    """What can only be found by embedding: slides embedded before it are kept."""
    made = tiny.config(**World(tmp_path, trained).her2st())
    image, work = tmp_path / "data" / "ST-imgs" / "A2.jpg", tmp_path / "work"
    whole = image.read_bytes()
    rewrite(image, half)
    assert tiny.run(made, work, "embed") == 2
    assert_message(capfd.readouterr().err, ["A2.jpg", "readable image"])
    first = tiny.contents(work / "embeddings")
    assert [Path(name).stem for name in first] == ["A1"]
    image.write_bytes(whole)
    assert tiny.run(made, work, "embed") == 0
    assert first.items() <= tiny.contents(work / "embeddings").items()


def test_another_config_is_refused_before_the_data_are_read(trained, tmp_path):
    work = shutil.copytree(trained.workdir, tmp_path / "work")
    with mock.patch.object(datasets, "load", side_effect=AssertionError("read")):
        assert tiny.run(trained.config(model__width=32), work) == 2


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


WRITERS = {
    "config.json": ("pathlib.Path.write_text", "train"),
    "a checkpoint": ("orbax.checkpoint.CheckpointManager.save", "train"),
    "history.csv": ("csv.DictWriter.writerows", "train"),
    "a prediction": ("anndata.AnnData.write_h5ad", "predict"),
    "a picture": ("matplotlib.figure.Figure.savefig", "predict"),
}


@pytest.mark.parametrize(("writer", "mode"), WRITERS.values(), ids=list(WRITERS))
def test_full_disk(trained, tmp_path, capfd, writer, mode):
    """Also no temporary file is left."""
    work = trained.workdir if mode == "predict" else tmp_path / "work"
    made = trained.config(
        fold=0,
        predict__input=str(trained.unseen),
        predict__output=str(tmp_path / "out.h5ad"),
    )
    with mock.patch(writer, full_disk):
        assert tiny.run(made, work, mode) == 2
    assert_message(capfd.readouterr().err, ["disk is full", "free some space"])
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.name.startswith((".", "out.png"))]
    assert not left


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 KiB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_and_the_same_command_with_room(trained, small_disk, capfd):
    """Orbax fails in its own way. With more room the command goes on to the same scores."""
    made = trained.config(fold=0)
    assert tiny.run(made, small_disk / "work") == 2
    assert_message(capfd.readouterr().err, ["disk is full", "run the same command again"])
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert tiny.run(made, small_disk / "work") == 0
    metrics = json.loads((small_disk / "work" / "metrics.json").read_text())
    expected = trained.metrics["methods"]["stflow"]["pearson"]["folds"][0]
    assert metrics["methods"]["stflow"]["pearson"]["folds"] == [expected]
