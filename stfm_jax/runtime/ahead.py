"""Parts of a computation side by side: XLA's CPU code leaves cores idle between its small steps."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax

From, To = TypeVar("From"), TypeVar("To")


def threads(devices: int = 1) -> int:
    """Parts to compute at a time: a core takes one; of several devices all share each part."""
    alone = devices == 1 and jax.process_count() == 1
    return os.cpu_count() or 1 if alone and jax.default_backend() == "cpu" else 1


def computed(
    function: Callable[[From], To], parts: Iterable[From], threads: int, ahead: int
) -> Iterator[To]:
    """Results of the function, in the order of its arguments.

    Args:
      function: does not mind being run in a thread.
      parts: its arguments; the next ones are made while threads work.
      threads: that work; with one, every result is computed when it is asked for.
      ahead: results that are waited for or kept, at most.
    """
    if threads == 1:
        yield from map(function, parts)
        return
    pool, waiting = ThreadPoolExecutor(threads), deque()
    try:
        for part in parts:
            waiting.append(pool.submit(function, part))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
