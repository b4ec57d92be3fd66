"""Where the real tissue and the real files lie, which are no part of the project."""

from __future__ import annotations

import os
from pathlib import Path


def her2st_root() -> Path | None:
    """The her2st folder ($STFM_HER2ST), or None where it is absent."""
    return _found("STFM_HER2ST", "her2st", "ST-cnts")


def platforms_root() -> Path | None:
    """Small real files of platforms and slides ($STFM_PLATFORMS), or None where they are absent."""
    return _found("STFM_PLATFORMS", "platforms", "README.md")


def _found(variable: str, name: str, inside: str) -> Path | None:
    """A folder that a variable names, or one in shared/ beside the repository."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / name
    root = Path(os.environ.get(variable, beside))
    return root if (root / inside).exists() else None
