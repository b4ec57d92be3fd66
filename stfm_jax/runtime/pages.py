"""Memory in large pages, where the system gives them to who asks.

On a CPU, XLA takes the working memory of every call anew and gives it back after: 170 MB of a
training step on 350 spots, which Linux maps in 43,000 pages of 4 KiB, a fault each. In pages of
2 MiB they are 560 (2026-11-28, `configs/her2st_stflow.py`: .10 s of the system's time a step became
.04). glibc asks for them if it is told before the program starts.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_again() -> None:
    """Starts this program again with large pages; returns where that is not needed or of no use.

    A tunable that the user has set stays as it is.
    """
    tunables = os.environ.get(_VARIABLE, "")
    if _TUNABLE in tunables or not _given_to_who_asks():
        return
    os.environ[_VARIABLE] = ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _given_to_who_asks() -> bool:
    if platform.libc_ver()[0] != "glibc" or not _PAGES.exists():
        return False
    return "[madvise]" in _PAGES.read_text()
