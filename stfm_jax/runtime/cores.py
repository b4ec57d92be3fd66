"""Linear algebra of a few hundred or thousand rows, a piece to a core.

The threads of one BLAS call gain little on matrices of this size, and wait for one another where
other work shares the cores. An eigendecomposition of 1,500 rows (2026-11-28, 2 quiet cores) takes
.50 s of one thread and .39 s of two:

    OPENBLAS_NUM_THREADS=1 python -m timeit -s "import numpy, scipy.linalg; \\
        a = numpy.random.rand(1500, 1500); a = a @ a.T" "scipy.linalg.eigh(a)"
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
