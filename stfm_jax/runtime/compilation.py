"""XLA's programs kept on disk, so that the next run need not compile them again."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax

VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # another folder; empty: none


def enable_cache() -> None:
    """Keeps programs that took over half a second to compile, in the user's cache folder.

    A folder for each kind of processor: what was compiled for one may crash on another, and
    clusters share home folders.
    """
    if VARIABLE in os.environ:
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(root / "stfm_jax" / _processor()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _processor() -> str:
    """A short name of this kind of processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        said = sorted({line for line in lines if line.startswith(("model name", "flags"))})
    except OSError:
        said = [platform.processor()]
    return f"{platform.machine()}-{hashlib.sha256(repr(said).encode()).hexdigest()[:8]}"
