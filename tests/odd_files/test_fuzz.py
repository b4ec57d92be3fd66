"""Damaged files of every kind, 2,000 in all: read or refused in words, by a child that may die.

No other exception, no death by a signal, and none takes 20 seconds. Run with `make fuzz`.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import kinds
import pytest
import reads

pytestmark = pytest.mark.fuzz
ROOT = Path(__file__).parents[2]
TRIES = -(-2000 // len(reads.READS))
SECONDS = 20.0
FIRST = int(os.environ.get("STFM_FUZZ_SEED", "0"))  # of the seeds; others look at others


class Child:
    """A process that reads; started again where it died."""

    def __init__(self, folder: Path):
        self.folder, self.process = folder, None

    def says(self, kind: str, seed: int) -> str:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(reads.__file__)), str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,  # what waits in a buffer is not seen by select
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"},
            )
        self.process.stdin.write(f"{kind} {seed}\n".encode())
        self.process.stdin.flush()
        assert self.line(60.0) == f"began {kind} {seed}", "the child does not start"
        return self.line(SECONDS)

    def line(self, seconds: float) -> str:
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        if not ready:
            self.process.kill()
            self.process.wait()
            return f"took more than {seconds:g} s"
        line = self.process.stdout.readline().decode(errors="replace").strip()
        return line or f"died of signal {-self.process.wait()}"

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait(60)


@pytest.mark.parametrize("kind", reads.READS)
def test_no_damaged_file_does_more_than_be_refused(tmp_path, kind):
    folder = kinds.write(tmp_path, kind)
    reads.READS[kind](folder)
    whole = {path: path.read_bytes() for path in reads.files(folder)}
    child, found, refused = Child(tmp_path), {}, 0
    for seed in range(FIRST, FIRST + TRIES):
        said = child.says(kind, seed)
        refused += said == "refused"
        if said not in ("read", "refused"):
            found[seed] = said
            for path, content in whole.items():  # whoever died did not put it back
                path.write_bytes(content)
    child.close()
    assert not found, "\n".join(f"seed {seed}: {said}" for seed, said in found.items())
    assert refused, "nothing was ever refused"
