"""Bars of what takes long."""

import sys

import pytest

from stfm_jax.runtime import progress


@pytest.mark.parametrize(("terminal", "least", "most"), [(False, 1, 12), (True, 50, 250)])
def test_a_log_file_has_a_line_now_and_then_and_the_last_one(
    capsys, monkeypatch, terminal, least, most
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    clock = [0.0]
    with progress.bar("S0", 500, "patch", miniters=1) as bar:
        bar._time = lambda: clock[0]
        bar.start_t = bar.last_print_t = 0.0
        for _ in range(500):
            clock[0] += 0.2  # seconds
            bar.update()
    lines = capsys.readouterr().err.split("\r")
    assert "500/500" in lines[-1]
    assert least <= len(lines) <= most
