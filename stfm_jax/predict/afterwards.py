"""What follows a prediction that is written: scores and pictures; their failure undoes nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from stfm_jax.data.foreign import reason
from stfm_jax.runtime.files import is_disk_full
from stfm_jax.runtime.interrupt import Interrupted

_LOG = logging.getLogger("stfm_jax")


@contextlib.contextmanager
def afterwards(output: Path, what: str) -> Iterator[None]:
    """Whatever is raised in the block is a warning; but a full disk is told as everywhere.

    Args:
      output: that is written.
      what: follows it, for the message.
    """
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        causes = (error, error.__cause__)
        if any(isinstance(each, OSError) and is_disk_full(each) for each in causes):
            raise
        _LOG.warning("%s is written, but not %s: %s", output, what, reason(error))
        _LOG.debug("%s", what, exc_info=True)
