"""Commands that are killed at a chosen moment, each in a fork of a process that has imported all.

    python killed.py       in lines: JSON of argv, root, at, delay; out: exit status, and how many
                           times something below `root` was made, written, moved or removed

At the `at`-th of these moments, `delay` seconds later, the command gets SIGKILL; 0: never.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from typing import Any

import tiny  # imports JAX, whose devices are not looked for before the fork

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_OTHERS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.utime")


def below(root: str, path: Any) -> bool:
    return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(root)


def watch(root: str, at: int, delay: float, count: list[int]) -> None:
    """Counts the moments, and kills this process at one of them."""

    def hook(event: str, args: tuple) -> None:
        if event == "open":
            here = below(root, args[0]) and bool((args[2] or 0) & _WRITES)
        else:
            here = event in _OTHERS and below(root, args[0])
        if not here:
            return
        count[0] += 1
        if count[0] == at and delay:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def attempt(task: dict) -> dict:
    """Exit status (as of `os.waitpid`), and number of moments, of a command in a fork."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        count = [0]
        with open(task["log"], "w") as log:
            os.dup2(log.fileno(), 2)
            os.dup2(log.fileno(), 1)
        watch(task["root"], task["at"], task["delay"], count)
        code = tiny.command(*task["argv"])
        os.write(write, str(count[0]).encode())
        os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    return {"status": os.waitpid(child, 0)[1], "moments": int(said or 0)}


def main() -> None:
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        print(json.dumps(attempt(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
