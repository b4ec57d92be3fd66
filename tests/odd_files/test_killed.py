"""`kill -9` at 20 moments of training and 20 of predicting: the same command ends as it would have.

The moments are those at which something is written, moved or removed, and a little after.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anndata
import killed
import numpy as np
import pytest
import tiny
from PIL import Image

pytestmark = pytest.mark.slow
KILLS = 20
ROOT = Path(__file__).parents[2]
FIELDS = {
    "data__reader": "simulated",
    "data__unseen": 1,
    "data__num_genes": 6,
    "data__tissue__num_sections": 3,
    "data__tissue__spots": 36,
    "data__tissue__num_genes": 30,
    "encoder__name": "stain_texture",
    "methods": "ridge,stflow",
    "fold": 0,
    "train__epochs": 4,
    "train__checkpoint_every": 1,
    "model__components": 4,
    "sample__draws": 3,
    "predict__draws": 2,
}


@pytest.fixture(scope="module")
def server():
    """`killed.py`, with a record of what each command said."""
    process = subprocess.Popen(
        [sys.executable, str(Path(killed.__file__))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        },
    )
    yield process
    process.stdin.close()
    process.wait(60)


def attempted(server, argv: list[str], root: Path, log: Path, at: int = 0, delay: float = 0.0):
    """Exit code (negative: killed) and number of moments of a command."""
    task = {"argv": argv, "root": str(root), "log": str(log), "at": at, "delay": delay}
    server.stdin.write(json.dumps(task) + "\n")
    server.stdin.flush()
    found = json.loads(server.stdout.readline())
    code = os.waitstatus_to_exitcode(found["status"])
    said = log.read_text()
    assert "Traceback" not in said and "error:" not in said, said[-3000:]
    assert code in (0, -signal.SIGKILL)
    return code, found["moments"]


def visible(folder: Path) -> set[str]:
    """Names of all files that do not lie hidden; an older checkpoint may stay beside the last."""
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    left_out = ("latest", "best")
    return {str(p) for p in found if not any(s[0] == "." or s in left_out for s in p.parts)}


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """A workdir that was never disturbed, and the number of its moments."""
    work = tmp_path_factory.mktemp("whole") / "work"
    log = work.parent / "log"
    code, moments = attempted(server, tiny.arguments(work, **FIELDS), work, log)
    assert code == 0 and moments > 5 * KILLS
    return work, moments


def rows(work: Path) -> dict:
    return {k: json.loads((work / "metrics.json").read_text())[k] for k in ("methods", "folds")}


def test_training_that_is_killed_ends_the_same(server, whole, tmp_path):
    """Each workdir is killed again and again until it is finished."""
    expected, moments = whole
    rng, kills, round_ = random.Random(0), 0, 0
    while kills < KILLS:
        work, round_ = tmp_path / f"work{round_}", round_ + 1
        argv, code = tiny.arguments(work, **FIELDS), -1
        while code:
            at = rng.randrange(1, moments // 8) if kills < KILLS else 0
            delay = rng.choice([0.0, 0.0, 0.002, 0.02])
            code, _ = attempted(server, argv, work, tmp_path / "log", at, delay)
            kills += code != 0
        assert rows(work) == rows(expected)
        assert visible(work) == visible(expected)


def test_predicting_that_is_killed_ends_the_same(server, whole, tmp_path):
    """A cohort of two slides; what is there is whole at any time."""
    work, _ = whole
    for name in ("a", "b"):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(work / "slide.h5ad", tmp_path / "in" / f"{name}.h5ad")

    def argv(out: Path) -> list[str]:
        given = {"predict__input": tmp_path / "in", "predict__output": out}
        return [*tiny.arguments(work, **FIELDS, **given), "--mode=predict"]

    given, out, log = tmp_path / "whole", tmp_path / "out", tmp_path / "log"
    code, moments = attempted(server, argv(given), given, log)
    assert code == 0
    expected, rng, kills = anndata.read_h5ad(given / "a.h5ad"), random.Random(0), 0
    while kills < KILLS:
        at, delay = 1 + kills * (moments - 1) // KILLS, rng.choice([0.0, 0.002, 0.02])
        if kills % 4 == 0:
            shutil.rmtree(out, ignore_errors=True)
        code, _ = attempted(server, argv(out), out, log, at, delay)
        kills += 1
        for path in out.glob("[!.]*.h5ad"):
            np.testing.assert_array_equal(anndata.read_h5ad(path).X, expected.X)
        for path in out.glob("[!.]*.png"):
            Image.open(path).load()
        for path in out.glob("[!.]*.json"):
            assert json.loads(path.read_text())["status"] == "done"
    code, _ = attempted(server, argv(out), out, log)
    assert code == 0 and visible(out) == visible(given)
    found = anndata.read_h5ad(out / "b.h5ad")
    for name in (None, "std", "q10"):
        a, b = (each.X if name is None else each.layers[name] for each in (found, expected))
        np.testing.assert_array_equal(a, b)
