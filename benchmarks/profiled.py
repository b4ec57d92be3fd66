"""The kernels of a JAX profile that take longest, read by JAX itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness import Row
from jax.profiler import ProfileData

LONGEST = 12


def kernels(folder: Path) -> Row:
    """Of the newest profile in a folder: `ops`, the longest kernels; `busy_seconds` of all."""
    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    return longest(_events(ProfileData.from_file(str(newest))))


def longest(events: Iterable[tuple[str, float]]) -> Row:
    """Rows of kernels from (name, seconds) of each run, with the share of all."""
    totals: dict[str, list[float]] = {}
    for name, seconds in events:
        totals.setdefault(name, []).append(seconds)
    busy = sum(map(sum, totals.values()))
    ordered = sorted(totals.items(), key=lambda item: -sum(item[1]))
    ops = [
        {"kernel": name, "times": len(runs), "seconds": sum(runs), "share": sum(runs) / busy}
        for name, runs in ordered[:LONGEST]
    ]
    launched = sum(map(len, totals.values()))
    return {"ops": ops, "busy_seconds": busy, "kernels_run": launched}


def _events(profile: ProfileData) -> Iterable[tuple[str, float]]:
    """What streams of a device ran; on a CPU, which has none, the instructions of programs.

    Those of a CPU that hold others (loops, calls) count besides what they hold.
    """
    devices = [plane for plane in profile.planes if plane.name.startswith("/device:")]
    for plane in devices:
        for line in plane.lines:
            if line.name.startswith("Stream"):
                yield from ((event.name, event.duration_ns * 1e-9) for event in line.events)
    if devices:
        return
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                if any(key == "hlo_op" for key, _ in event.stats):
                    yield event.name, event.duration_ns * 1e-9
