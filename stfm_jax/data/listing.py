"""What lies in a folder, without names that begin with a dot.

Those are other programs' matters: `._S1.h5ad` of macOS, and what is being written, ours too.
"""

from __future__ import annotations

from pathlib import Path


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """Files and folders, sorted; of a pattern with folders or `**` those below.

    Args:
      folder: nothing is found where there is none.
      pattern: as of `Path.glob`.
    """
    found = folder.glob(pattern) if folder.is_dir() else ()
    return sorted(p for p in found if not any(s[0] == "." for s in p.relative_to(folder).parts))
