"""What libraries that read others' files raise, as our errors: the one place for all of them.

Pillow, tifffile, OpenSlide, h5py, anndata, zarr, pyarrow and pandas raise whatever they meet in a
damaged file; which classes these are is theirs to change.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from stfm_jax.errors import InputError
from stfm_jax.runtime.interrupt import Interrupted

_PASSED = (  # say themselves what is wrong
    *(InputError, PermissionError, IsADirectoryError, Interrupted),
)
# What HDF5 says where it lacks a compression, and not where one fails on damaged data.
_NO_FILTER = re.compile(r"plugin|filter.*(regist|avail)|(requir|unknown).*filter", re.IGNORECASE)


@contextlib.contextmanager
def reading(
    path: str | Path, expected: str, advice: str, passed: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Whatever is raised while a file is read becomes an InputError that names it.

    Args:
      path: of the file or folder.
      expected: what it should be, for the message.
      advice: what to do, its last words.
      passed: errors of ours that go through.

    Raises:
      InputError: for anything but InputErrors, a path that is not there or is not ours to read.
    """
    try:
        yield
    except (*_PASSED, *passed):
        raise
    except MemoryError as error:
        raise InputError(
            f"{path}: takes more memory than is free ({reason(error)}); if it is not damaged, "
            "read it on a machine with more."
        ) from error
    except Exception as error:
        if isinstance(error, FileNotFoundError) and not Path(path).exists():
            raise
        raise InputError(_message(Path(path), expected, advice, error)) from error


def reason(error: BaseException) -> str:
    """The first line that an error says, or its name."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return said[0][:300] if said else type(error).__name__


def _message(path: Path, expected: str, advice: str, error: Exception) -> str:
    if _NO_FILTER.search(reason(error)):
        return (
            f"{path}: is compressed by a filter of HDF5 that is not installed ({reason(error)}); "
            "`pip install hdf5plugin`, which has the usual ones, and run the same command again."
        )
    size = f"{path.stat().st_size} bytes" if path.is_file() else "one"
    return (
        f"{path}: expected {expected}, but it is empty or damaged: {size} that cannot be read "
        f"({reason(error)}); {advice}"
    )
