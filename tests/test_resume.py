"""`kill -9` and SIGTERM at run.py in mid-training: the same command ends with the same metrics."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
import tiny

EPOCHS = {"train__epochs": 40, "train__checkpoint_every": 5, "fold": 0}


def moments(work: Path) -> dict[str, Path]:
    """Files whose appearance says how far a run has come."""
    return {
        "selection": tiny.place(work, 0) / "select" / "history.csv",
        "refit": tiny.place(work, 0) / "refit" / "history.csv",
        "scoring": tiny.place(work, 0) / "model" / "model.json",
        "final": tiny.place(work, None) / "refit" / "history.csv",
    }


def stopped(argv: list[str], moment: Path, sent: signal.Signals, delay: float) -> tuple[int, str]:
    """Exit code and stderr of a run that is sent a signal a little after a file has appeared."""
    process = tiny.start(*argv)
    try:
        while not moment.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(sent)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, err


def finished(argv: list[str], work: Path) -> dict:
    process = tiny.start(*argv)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    return json.loads((work / "metrics.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(trained, tmp_path_factory) -> dict:
    work = tmp_path_factory.mktemp("whole") / "work"
    return finished(tiny.arguments(work, data__dir=trained.data, **EPOCHS), work)


@pytest.mark.slow
def test_killed_anywhere_and_run_again(trained, uninterrupted, tmp_path):
    """Killed once or more in each part of the same run."""
    work, rng = tmp_path / "work", random.Random(0)
    argv = tiny.arguments(work, data__dir=trained.data, **EPOCHS)
    codes = []
    for name, moment in moments(work).items():
        code, err = stopped(argv, moment, signal.SIGKILL, 0.4 * rng.random())
        assert "Traceback" not in err, (name, err)
        codes.append(code)
    assert codes.count(-signal.SIGKILL) >= 2, "the runs ended before they could be killed"
    again = finished(argv, work)
    assert again["methods"] == uninterrupted["methods"]
    assert again["folds"] == uninterrupted["folds"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["selection", "refit"])
def test_sigterm_saves_and_exits_with_143(trained, uninterrupted, tmp_path, name):
    work = tmp_path / "work"
    argv = tiny.arguments(work, data__dir=trained.data, **EPOCHS)
    code, err = stopped(argv, moments(work)[name], signal.SIGTERM, 0.05)
    assert code == 143 and "the same command goes on" in err, err
    assert "Traceback" not in err and "error:" not in err
    stage = moments(work)[name].parent
    steps = [int(p.name) for p in (stage / "latest").iterdir() if p.name.isdigit()]
    assert len(steps) == 1 and f"stopped at step {steps[0]} of" in err
    assert not (work / "metrics.json").exists()
    assert finished(argv, work)["methods"] == uninterrupted["methods"]


@pytest.mark.slow
def test_sigterm_outside_training_leaves_nothing_half_written(tmp_path):
    """While patches are embedded."""
    fields = {"data__reader": "simulated", "encoder__name": "stain_texture"}
    argv = tiny.arguments(tmp_path / "work", **fields, data__tissue__num_sections=3)
    process = tiny.start(*argv, "--config.data.tissue.spots=900")
    while not (tmp_path / "work" / "config.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in err, err
    files = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert not [name for name in files if name.startswith(".")]


@pytest.mark.slow
def test_infinite_loss_ends_with_2_and_names_step_and_slide(trained, tmp_path, capfd):
    made = trained.config(fold=0, train__learning_rate=1e30)
    for _ in range(2):  # the second time it goes on from the last good checkpoint, to the same end
        assert tiny.run(made, tmp_path) == 2
        err = capfd.readouterr().err
        assert "Traceback" not in err
        *_, last = err.strip().splitlines()
        assert last.startswith("error: fold 0 stflow select: the loss is NaN or infinite at step ")
        assert "P1_S" in last and "--config.train.learning_rate" in last
    assert not (tmp_path / "metrics.json").exists()
