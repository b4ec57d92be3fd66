"""Files that say that a process is at work on something, so that others leave it alone.

A lock appears whole and at once (a link to a file written before, which fails where one is), and
its holder touches it every BEAT seconds. It is taken over from a process of this machine that is
gone, or where it was not touched for DEAD seconds; one process alone can do that.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

BEAT, DEAD = 30.0, 600.0


@contextlib.contextmanager
def held(path: str | os.PathLike) -> Iterator[bool]:
    """Whether this process holds the lock `path` while the block runs; else another does."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = _written(path)
    try:
        got = _linked(mine, path) or (_is_dead(path, mine) and _taken_over(mine, path))
    finally:
        mine.unlink(missing_ok=True)
    if not got:
        yield False
        return
    done = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, done), daemon=True)
    beats.start()
    try:
        yield True
    finally:
        done.set()
        beats.join()
        path.unlink(missing_ok=True)


def _written(path: Path) -> Path:
    about = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
    handle, name = tempfile.mkstemp(prefix=f"{path.name}-", suffix=".tmp", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(about, file)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)


def _linked(mine: Path, path: Path) -> bool:
    try:
        os.link(mine, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: the name at least is taken at once
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(mine.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def _is_dead(path: Path, fresh: Path) -> bool:
    """Whether nobody is at work; ages are told by the file system's own clock."""
    try:
        age = fresh.stat().st_mtime - path.stat().st_mtime
        about = json.loads(path.read_text(encoding="utf-8"))
        here, pid = about["host"] == socket.gethostname(), int(about["pid"])
    except FileNotFoundError:
        return False  # it was let go just now
    except (OSError, ValueError, KeyError, TypeError):
        return age > DEAD
    return age > DEAD or (here and not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _taken_over(mine: Path, path: Path) -> bool:
    """Puts the own lock in the place of a dead one, which is looked at again meanwhile."""
    guard = path.with_name(f"{path.name}.taking")
    with contextlib.suppress(FileNotFoundError):
        if mine.stat().st_mtime - guard.stat().st_mtime > DEAD:
            guard.unlink()
    try:
        open(guard, "x").close()
    except FileExistsError:
        return False
    try:
        if not _is_dead(path, mine):
            return False
        os.utime(mine)
        os.replace(mine, path)
        return True
    finally:
        guard.unlink(missing_ok=True)


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)
