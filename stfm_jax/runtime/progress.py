"""Bars of what takes long: smooth on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from stfm_jax.runtime.distributed import is_main

IN_A_FILE = 15.0  # seconds between lines, where nobody sees them overwritten


def bar(desc: str, total: int, unit: str, **kwargs: Any) -> tqdm:
    """A bar of the first process; further arguments are tqdm's."""
    interval = 0.5 if sys.stderr.isatty() else IN_A_FILE
    return tqdm(
        desc=desc,
        total=total,
        unit=unit,
        mininterval=interval,
        maxinterval=interval,
        dynamic_ncols=True,
        disable=not is_main(),
        **kwargs,
    )
