"""Linear algebra of a few hundred or thousand rows, a piece to a core.

On matrices of this size the threads of one BLAS call wait for one another longer than they compute:
an eigendecomposition of 1,500 rows takes .85 s of one core and 2.6 s of two (2026-11-28, OpenBLAS
of scipy, 2 cores with other work on them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import joblib
from threadpoolctl import threadpool_limits

SMALL = 2048  # rows; of more, all cores share one piece [ours]
MOST = 8  # pieces at a time, each with matrices of its own in memory


def each(function: Callable[..., Any], pieces: Iterable[tuple], rows: int) -> list:
    """`function(*piece)` of every piece, in their order.

    Args:
      function: works on arrays, and does not mind being run in a thread.
      pieces: its arguments.
      rows: of the largest matrix that is decomposed.
    """
    if rows > SMALL:
        return [function(*piece) for piece in pieces]
    jobs = min(joblib.cpu_count(), MOST)
    with threadpool_limits(1, user_api="blas"):
        work = joblib.Parallel(n_jobs=jobs, prefer="threads")
        return work(joblib.delayed(function)(*piece) for piece in pieces)
