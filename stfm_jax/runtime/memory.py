"""How much memory there is, and refusing what would not fit before it is read."""

from __future__ import annotations

import os
from pathlib import Path

from stfm_jax.errors import InputError

GIB = 1 << 30


def require_room(needed: int, path: str | os.PathLike) -> None:
    """Raises InputError where what a file unpacks to would not fit into the memory that is free.

    Args:
      needed: bytes.
      path: of the file, for the message.
    """
    there = available_memory()
    if needed > there:
        raise InputError(too_large(path, f"{needed / GIB:,.1f} GiB", there))


def too_large(path: str | os.PathLike, size: str, there: int) -> str:
    """What to tell the person whose file does not fit."""
    return (
        f"{path}: unpacks to {size}, but {there / GIB:,.1f} GiB of memory are free; it was made to "
        "be so, is damaged, or needs a machine with more memory or a smaller file."
    )


def available_memory() -> int:
    """Bytes that this process may still take: what is free here, and what its cgroup leaves."""
    free = [_meminfo(), *_cgroup()]
    return min(free)


def _meminfo() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):  # no Linux: all there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What limits of version 2 and 1 leave; pages of files that can be dropped count as free."""
    free = []
    for limit, usage, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        try:
            stats = dict(line.split() for line in (root / stat).read_text().splitlines())
            used = int((root / usage).read_text()) - int(stats.get(cached, 0))
            free.append(max(int((root / limit).read_text()) - used, 0))
        except (OSError, ValueError):  # no such version, or "max": no limit
            continue
    return free
