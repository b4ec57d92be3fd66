"""`--mode=export` and `data.reader=tfds`: a run from the export gives the run from the source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
from bad_input import World, assert_message, assert_refused, without_features

from stfm_jax.data import tfds_builder

REGRESSIONS = ("mean", "ridge", "ridge_context")
EXPORTED = Path("dataset", "stfm_slides", "1.0.0")


def anndata_folder(world: World) -> dict:
    """Sections that know their places in their stack, which `neighbour_copy` looks at."""
    tiny.write(world.data, tiny.slides(3, registered=True))
    return {"data__dir": str(world.data), "methods": (*REGRESSIONS, "neighbour_copy")}


def simulated(_: World) -> dict:
    """With an image, and sections that are kept out of everything."""
    return {
        "data__reader": "simulated",
        "data__tissue__num_sections": 4,
        "data__tissue__spots": 40,
        "data__tissue__num_genes": 60,
        "data__unseen": 1,
        "encoder__name": "stain_texture",
        "encoder__patch_um": 100.0,
    }


def report(workdir: Path) -> dict:
    """metrics.json but for the config, which differs in where the data lie."""
    found = json.loads((workdir / "metrics.json").read_text())
    return {name: value for name, value in found.items() if name != "config"}


@pytest.mark.parametrize("make", [anndata_folder, World.hest, simulated])
def test_a_run_from_the_export_is_the_run_from_the_source(make, trained, tmp_path):
    fields = {"methods": REGRESSIONS} | make(World(tmp_path, trained))
    source, again = tmp_path / "source", tmp_path / "again"
    for mode in ("export", "train"):
        assert tiny.run(tiny.config(**fields), source, mode) == 0
    if make is not simulated:
        shutil.rmtree(tmp_path / "data")
    moved = shutil.move(source / EXPORTED, tmp_path / "moved")
    fields |= {
        "data__reader": "tfds",
        "data__dir": str(moved),
        "encoder__name": "precomputed",
        "encoder__dir": "",
    }
    assert tiny.run(tiny.config(**fields), again) == 0
    assert report(again) == report(source)
    assert not (again / "slide.h5ad").exists()  # of simulated tissue alone


def test_the_log_says_how_to_read_it(trained, tmp_path, capfd):
    assert tiny.run(trained.config(), tmp_path, "export") == 0
    told = capfd.readouterr()
    assert f"3 slides are in {tmp_path / EXPORTED}" in told.err
    assert "--config.data.reader=tfds" in told.err and "encoder.name=precomputed" in told.err
    assert not told.out


def test_a_full_disk(trained, tmp_path, capfd, monkeypatch):
    """As array_record tells of it; the workdir stays free for another config."""

    def full(*_):
        raise RuntimeError("write() failed: No space left on device; writing P1_S1")
        yield

    monkeypatch.setattr(tfds_builder.Slides, "_generate_examples", full)
    assert tiny.run(trained.config(), tmp_path / "work", "export") == 2
    assert_message(capfd.readouterr().err, ["1.0.0: could not be written, the disk is full"])
    assert not (tmp_path / "work").exists()


def there_already(world: World) -> dict:
    fields = world.copied()
    assert tiny.run(tiny.config(**fields), world.work, "export") == 0
    return fields


def same_split(world: World) -> dict:
    fields = world.copied()
    (world.data / "P1_S2.h5ad").rename(world.data / "P1-S1.h5ad")
    return fields


def without(world: World) -> dict:
    """An export of slides one of which has no features, which `mean` does not miss."""
    fields = world.edited(without_features) | {"methods": ("mean",)}
    source = world.root / "source"
    assert tiny.run(tiny.config(**fields), source, "export") == 0
    return {"data__reader": "tfds", "data__dir": str(source / EXPORTED), "methods": REGRESSIONS}


def to_embed(world: World) -> dict:
    there_already(world)
    folder = shutil.move(world.work / EXPORTED, world.root / "moved")
    shutil.rmtree(world.work)
    return {"data__reader": "tfds", "data__dir": str(folder), "encoder__name": "stain_texture"}


CASES = [
    # name, mode, what is made, words of the message
    ("an export that is there", "export", there_already, ["1.0.0: is already there", "delete it"]),
    ("names of one split", "export", same_split, ["'P1-S1' and 'P1_S1'", "rename one"]),
    ("no folder", "train", lambda w: {"data__reader": "tfds"}, ["data.dir is not set", "export"]),
    (
        "another folder",
        "train",
        lambda w: w.copied() | {"data__reader": "tfds"},
        ["data: expected a data set of tensorflow-datasets", "--mode=export"],
    ),
    ("features missing", "train", without, ["P1_S2", "has no features", "exported with features"]),
    ("features, not images", "train", to_embed, ["P1_S1", "no image", "encoder.name=precomputed"]),
]


@pytest.mark.parametrize(
    ("mode", "make", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_bad_input(mode, make, words, trained, tmp_path, capfd):
    assert_refused(mode, make, words, trained, tmp_path, capfd)
