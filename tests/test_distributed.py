"""Several processes on this machine: the same run as one process, and what ends one ends all."""

from __future__ import annotations

import signal
import time

import launch
import pytest
import tiny
from launch import ended, free_port

from stfm_jax.runtime.files import read_csv, read_json

pytestmark = pytest.mark.slow
CONFIG = {"fold": 0, "devices": 0, "train__slides_per_step": 2}


def start(work, data, *flags: str, xla: str = launch.TWO_DEVICES, **config):
    arguments = tiny.arguments(work, data__dir=data, **(CONFIG | config))
    return launch.start(*arguments, *flags, xla=xla)


def start_two(work, data, **config):
    return launch.start_two(*tiny.arguments(work, data__dir=data, **(CONFIG | config)))


def losses(work) -> list[float]:
    return [float(row["train_loss"]) for row in read_csv(work / "history.csv")]


@pytest.fixture(scope="module")
def alone(trained, tmp_path_factory):
    """One process, one device."""
    work = tmp_path_factory.mktemp("alone") / "work"
    code, err = ended(start(work, trained.data, xla=""))
    assert code == 0, err[-2000:]
    return work


def assert_same(work, alone):
    assert losses(work) == pytest.approx(losses(alone), rel=1e-4)
    mine, theirs = (read_json(path / "metrics.json")["methods"] for path in (work, alone))
    for method, scores in theirs.items():
        for name, value in scores.items():
            assert mine[method][name]["mean"] == pytest.approx(value["mean"], abs=2e-3), (
                method,
                name,
            )


def test_two_processes_of_two_devices(trained, alone, tmp_path):
    """Training, checkpoints, scores and report; one of them writes and speaks."""
    work = tmp_path / "work"
    results = [ended(process) for process in start_two(work, trained.data)]
    assert [code for code, _ in results] == [0, 0], results
    assert "process 0 of 2, 2 of 4 devices" in results[0][1]
    assert "stflow_draw" in results[0][1] and "stflow_draw" not in results[1][1]
    assert_same(work, alone)


@pytest.mark.parametrize("victim", [1, 0])
def test_one_is_killed_and_one_process_goes_on(trained, alone, tmp_path, victim):
    """The other stops and says why; then a single device takes up their checkpoint."""
    work = tmp_path / "work"
    often = {"train__checkpoint_every": 1}
    processes = start_two(work, trained.data, **often)
    moment = tiny.place(work, 0) / "select" / "history.csv"
    while not moment.exists() and all(p.poll() is None for p in processes):
        time.sleep(0.01)
    processes[victim].send_signal(signal.SIGKILL)
    code, err = ended(processes[1 - victim])
    # JAX itself may end the process (SIGABRT), before or after our message: where the coordinator
    # is gone, or where the other waited for the victim in JAX's own barrier. Either says why.
    assert code in (2, -signal.SIGABRT), err
    assert "another process stopped" in err or "another task died" in err, err
    assert "Traceback" not in err
    code, err = ended(start(work, trained.data, xla="", **often))
    assert code == 0, err
    assert_same(work, alone)


def test_a_coordinator_that_does_not_answer(trained, tmp_path):
    process = start(
        tmp_path / "work",
        trained.data,
        "--distributed",
        f"--coordinator=localhost:{free_port()}",
        "--num_processes=2",
        "--process_id=1",
        "--start_timeout=3",
    )
    code, err = ended(process, 60)
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: process 1 of 2 waited 3 s"), err
    assert not (tmp_path / "work").exists()


def test_processes_must_be_started_alike(trained, tmp_path):
    """Another seed in one of them; and settings that are not whole."""
    port = free_port()
    flags = ("--distributed", f"--coordinator=localhost:{port}", "--num_processes=2")
    processes = [
        start(tmp_path / "work", trained.data, *flags, f"--process_id={i}", seed=i)
        for i in range(2)
    ]
    for code, err in map(ended, processes):
        assert code == 2 and "of process 1 differ from those of process 0" in err, err
    code, err = ended(start(tmp_path / "work", trained.data, *flags))
    assert code == 2 and "--process_id belong together" in err, err


def test_unequal_numbers_of_devices(trained, tmp_path):
    port = free_port()
    flags = ("--distributed", f"--coordinator=localhost:{port}", "--num_processes=2")
    processes = [
        start(tmp_path / "work", trained.data, *flags, f"--process_id={i}", xla=xla)
        for i, xla in enumerate((launch.TWO_DEVICES, ""))
    ]
    for code, err in map(ended, processes):
        assert code == 2 and "2 on process 0, 1 on process 1" in err, err
