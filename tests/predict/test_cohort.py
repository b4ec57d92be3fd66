"""Many slides: skipped where finished, told of where broken, each taken by one process."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pytest
import tiny

from stfm_jax.data.readers import h5ad
from stfm_jax.errors import InputError
from stfm_jax.predict import cohort
from stfm_jax.runtime.files import atomic_path, read_json


@pytest.fixture
def folder(tmp_path):
    """Five slides, the third broken, one in a folder of its own."""
    for i in range(5):
        place = tmp_path / "in" / ("deep" if i == 4 else "")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"s{i}.svs").write_text("broken" if i == 2 else "slide")
    (tmp_path / "in" / "notes.txt").touch()
    (tmp_path / "in" / ".hidden.svs").touch()
    return tmp_path / "in"


@pytest.fixture
def model(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    (made / "model.json").write_text("{}")
    return cohort.Source("ridge", made)


def configured(folder, **overrides):
    fields = {"input": str(folder), "output": str(folder.parent / "out")} | overrides
    return tiny.config(**{f"predict__{name}": value for name, value in fields.items()})


def one(config):
    """Stands for a prediction; notes who made it."""
    path = Path(config.predict.input)
    if path.read_text() == "broken":
        raise InputError(f"{path}: expected a slide.")
    time.sleep(0.05)
    made_here = anndata.AnnData(np.zeros((3, 2), np.float32), uns={"stfm": {"version": "0"}})
    with atomic_path(config.predict.output) as temporary:
        made_here.write_h5ad(temporary)
    with open(Path(config.predict.output).parent / "made.txt", "a") as file:
        file.write(f"{path.stem} {os.getpid()} {config.predict.um_per_px}\n")


def files_of(config):
    return {Path(config.predict.output): "prediction"}


def summary(folder):
    with open(folder.parent / "out" / "summary.csv", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def made(folder):
    return [line.split() for line in (folder.parent / "out" / "made.txt").read_text().splitlines()]


def test_a_broken_slide_stops_none_and_the_end_says_so(folder, model):
    config = configured(folder)
    assert cohort.is_cohort(config.predict)
    with pytest.raises(InputError, match=r"1 of 5 slides could not be predicted: s2; .*\.log"):
        cohort.run(config, model, one, files_of)
    out = folder.parent / "out"
    rows = summary(folder)
    assert {name: row["status"] for name, row in rows.items()} == {
        "deep__s4": "done", "s0": "done", "s1": "done", "s2": "failed", "s3": "done",
    }  # fmt: skip
    assert "expected a slide" in rows["s2"]["message"] and rows["s0"]["spots"] == "3"
    assert "Traceback" in (out / "s2.log").read_text()
    assert not list(out.glob(".*"))
    (folder / "s2.svs").write_text("mended")
    cohort.run(config, model, one, files_of)
    assert [name for name, *_ in made(folder)] == ["s4", "s0", "s1", "s3", "s2"]
    assert not (out / "s2.log").exists() and summary(folder)["s2"]["status"] == "done"


def test_what_is_finished_is_known_by_file_options_and_model(folder, model):
    (folder / "s2.svs").write_text("slide")
    config, out = configured(folder), folder.parent / "out"
    cohort.run(config, model, one, files_of)

    def again(config=config, model=model):
        before = len(made(folder))
        cohort.run(config, model, one, files_of)
        return [name for name, *_ in made(folder)[before:]]

    assert again() == []
    (out / "s0.h5ad").write_bytes((out / "s0.h5ad").read_bytes()[:100])  # half a file
    (out / "s1.h5ad").unlink()
    (folder / "s3.svs").write_text("another")
    assert again() == ["s0", "s1", "s3"]
    assert len(again(configured(folder, draws=4))) == 5
    assert len(again(model=model._replace(method="anchor"))) == 5
    (model.folder / "model.json").write_text('{"trained": "again"}')
    assert len(again()) == 5


def test_tables_name_slides_and_their_scales(folder, model):
    table = folder / "list.csv"
    table.write_text("wsi,mpp,name\ns0.svs,0.5,first\ndeep/s4.svs,,last\n")
    cohort.run(configured(table, output=str(folder.parent / "out")), model, one, files_of)
    assert [(name, scale) for name, _, scale in made(folder)] == [("s0", "0.5"), ("s4", "None")]
    assert set(summary(folder)) == {"first", "last"}
    for text, message in (
        ("slides\na.svs\n", "expected a column `input`"),
        ("input\n", "expected a column `input`"),
        ("input\na.svs\nb/a.svs\n", "found 'a' more than once"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=message):
            cohort.listed(str(table), folder.parent / "out")
    empty = folder / "none"
    empty.mkdir()
    with pytest.raises(InputError, match="expected slides in it or in folders below"):
        cohort.listed(str(empty), folder.parent / "out")


def test_names_of_two_kinds_are_told_apart(folder):
    (folder / "s0.tif").touch()
    names = {entry.name for entry in cohort.listed(str(folder), folder.parent / "out")}
    assert {"s0.svs", "s0.tif", "s1", "deep__s4"} <= names


def test_a_file_or_an_output_file_is_no_cohort(folder):
    assert not cohort.is_cohort(configured(folder, output="out.h5ad").predict)
    assert not cohort.is_cohort(configured(folder, input=str(folder / "s0.svs")).predict)


WORKER = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
import predict.test_cohort as t
from stfm_jax.predict import cohort
try:
    source = cohort.Source("ridge", Path({model!r}))
    cohort.run(t.configured(Path({folder!r})), source, t.one, t.files_of)
except t.InputError:
    sys.exit(2)
"""


@pytest.mark.slow
def test_two_processes_share_the_list_and_one_may_be_killed(folder, model):
    root = Path(__file__).parents[2]
    for i in range(5, 25):
        (folder / f"s{i}.svs").write_text("slide")
    code = WORKER.format(
        paths=[str(root), str(root / "tests")], folder=str(folder), model=str(model.folder)
    )

    def start():
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)

    first, second = start(), start()
    notes = folder.parent / "out" / "made.txt"
    while not notes.exists():
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    assert second.wait(120) == 2
    first.wait()
    assert start().wait(120) == 2
    names = [name for name, *_ in made(folder)]
    assert sorted(set(names)) == sorted(f"s{i}" for i in range(25) if i != 2)
    assert len(names) - len(set(names)) <= 1  # what was killed between its file and its note
    states = {row["status"] for row in summary(folder).values()}
    assert states == {"done", "failed"}
    assert not list((folder.parent / "out").glob(".*.lock"))


def test_a_folder_of_slides_by_the_command(trained, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for slide in tiny.slides(2):
        h5ad.write(slide, source / f"{slide.name}.h5ad")
    (source / "broken.h5ad").write_text("broken")
    fields = {"predict__input": str(source), "predict__output": str(out), "predict__draws": 2}
    assert tiny.run(trained.config(**fields), trained.workdir, "predict") == 2
    assert len(list(out.glob("*.h5ad"))) == 2 == len(list(out.glob("*.png")))
    assert read_json(out / "broken.json")["status"] == "failed"
    assert (out / "broken.log").exists() and (out / "summary.csv").exists()
    before = tiny.contents(out)
    assert tiny.run(trained.config(**fields), trained.workdir, "predict") == 2
    changed = {k for k, v in tiny.contents(out).items() if before.get(k) != v}
    assert changed == {"summary.csv", "broken.log", "broken.json"}
