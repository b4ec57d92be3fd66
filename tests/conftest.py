"""What several end-to-end tests share: a small experiment that was trained once."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path

# Compiling is most of the time here and the arrays are small. Set before jax is imported.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# For the tests of several devices; nothing else uses more than the first.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
# What one process has compiled the others need not: workers, and what they start, inherit these.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    programs = tempfile.TemporaryDirectory(prefix="stfm_jax-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import pytest
import tiny


def pytest_addoption(parser):
    parser.addoption(
        "--all-run", type=int, metavar="N", help="fail if a test is skipped, or fewer than N pass"
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    least = session.config.getoption("all_run")
    if least is None:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    passed = len(reporter.stats.get("passed", ()))
    # A module of another mark may be skipped whole; one of this mark is then missed among N.
    skipped = sum(isinstance(r, pytest.TestReport) for r in reporter.stats.get("skipped", ()))
    if skipped or passed < least:
        reporter.write_line(f"\n{passed} passed and {skipped} skipped; {least} must pass, 0 skip")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


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
