"""What several end-to-end tests share: a small experiment that was trained once."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

# Compiling is most of the time here and the arrays are small. Set before jax is imported.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# For the tests of several devices; nothing else uses more than the first.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")

import pytest
import tiny


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished experiment; tests copy what they change."""

    data: Path  # three slides
    unseen: Path  # a fourth, with counts
    workdir: Path

    def config(self, **overrides):
        return tiny.config(data__dir=str(self.data), **overrides)

    @property
    def metrics(self) -> dict:
        return json.loads((self.workdir / "metrics.json").read_text())


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    root = tmp_path_factory.mktemp("tiny")
    sections = tiny.slides()
    tiny.write(root / "data", sections[:3])
    tiny.write(root, sections[3:])
    made = Trained(root / "data", root / f"{sections[3].name}.h5ad", root / "work")
    assert tiny.run(made.config(), made.workdir) == 0
    return made
