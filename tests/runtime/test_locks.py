"""Locks between processes: one holder, dead ones are taken over, nothing is left behind."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time

import pytest

from stfm_jax.runtime import locks


def test_one_holds_it_and_nothing_is_left(tmp_path):
    path = tmp_path / "a.lock"
    with locks.held(path) as mine:
        assert mine and json.loads(path.read_text())["pid"] == os.getpid()
        with locks.held(path) as again:
            assert not again
        assert path.exists()
    assert not list(tmp_path.iterdir())


def test_it_is_let_go_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), locks.held(tmp_path / "a.lock"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def dead_pid():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.mark.parametrize(
    ("host", "age", "taken"),
    [("here", 0, True), ("there", 0, False), ("there", locks.DEAD + 60, True)],
)
def test_a_dead_one_is_taken_over(tmp_path, host, age, taken):
    path, host = tmp_path / "a.lock", socket.gethostname() if host == "here" else "there"
    path.write_text(json.dumps({"pid": dead_pid(), "host": host, "time": 0}))
    os.utime(path, (time.time() - age,) * 2)
    with locks.held(path) as mine:
        assert mine == taken
    assert path.exists() != taken


def test_what_is_no_lock_is_one_until_it_is_old(tmp_path):
    path = tmp_path / "a.lock"
    path.write_text("")
    with locks.held(path) as mine:
        assert not mine
    os.utime(path, (1, 1))
    with locks.held(path) as mine:
        assert mine


def test_a_holder_shows_that_it_is_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.05)
    path = tmp_path / "a.lock"
    with locks.held(path):
        os.utime(path, (1, 1))
        time.sleep(0.5)
        assert path.stat().st_mtime > 1


def test_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    with locks.held(tmp_path / "a.lock") as mine, locks.held(tmp_path / "a.lock") as again:
        assert mine and not again


def _try(path):
    with locks.held(path) as mine:
        time.sleep(0.5)
        return mine


def test_of_many_one_takes_a_dead_one_over(tmp_path):
    path = tmp_path / "a.lock"
    path.write_text(json.dumps({"pid": dead_pid(), "host": socket.gethostname(), "time": 0}))
    with multiprocessing.get_context("fork").Pool(6) as pool:
        got = pool.map(_try, [path] * 6, chunksize=1)
    assert sum(got) == 1
    assert not list(tmp_path.iterdir())
