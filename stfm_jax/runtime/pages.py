"""Memory in large pages, where the system gives them to who asks.

On a CPU, XLA takes the working memory of every call anew and gives it back after, which Linux maps
page by page. glibc asks for large pages if it is told before the program starts. One fold of
configs/her2st_stflow.py (2026-11-28, 2 quiet cores, two runs each in turns):

    GLIBC_TUNABLES=glibc.malloc.hugetlb=0 /usr/bin/time -v python run.py --config=her2st_stflow \\
        --config.data.dir=HER2ST --config.encoder.dir=EMBEDDINGS_OF_BEFORE --config.fold=0 \\
        --config.compare.final=False --workdir=W

    hugetlb=0: 64 s, 26 s of the system's time, 10.1 million page faults, .43 s an epoch of the flow
    hugetlb=1: 54 s, 10 s, .5 million, .29 s
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
