"""What a piece of work costs: seconds, and memory at its peak."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def measured(what: str) -> Iterator[dict[str, Any]]:
    """Yields a dict that holds, after the block, `WHAT_seconds` and `WHAT_peak_gib`.

    The peak is that of the whole process while the block ran, JAX and the data set with it. Where
    the system does not let it be set back (not Linux) it is None unless the block raised it.
    """
    found: dict[str, Any] = {}
    back, before = _set_back(), _peak()
    started = time.perf_counter()
    yield found
    found[f"{what}_seconds"] = time.perf_counter() - started
    peak = _peak()
    found[f"{what}_peak_gib"] = peak / 2**30 if back or peak > before else None


def _set_back() -> bool:
    """Sets the process's recorded peak back to what it holds; whether that could be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> int:
    """Bytes of the process's recorded peak."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(x.split()[1]) for x in lines if x.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
