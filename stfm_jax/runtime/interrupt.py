"""SIGTERM, as schedulers send it before they kill: finish the step, save, leave."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

EXIT_CODE = 128 + signal.SIGTERM  # 143, what a shell reports for a process ended by SIGTERM


class Interrupted(Exception):
    """Training stopped on request; the checkpoint is written and the same command goes on."""


@contextlib.contextmanager
def sigterm_flag() -> Iterator[threading.Event]:
    """Gives an event that is set when SIGTERM (or SIGINT) arrives while the block runs."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    signals = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(s, lambda *_: event.set()) for s in signals]
    try:
        yield event
    finally:
        for s, handler in zip(signals, previous, strict=True):
            signal.signal(s, handler)
