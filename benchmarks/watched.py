"""Tests of ours in forks of one process, of a module that may be changed; for mutants.py.

Tests that never end are killed by the processor's time, a multiple of what they take as all is, so
that a busy machine kills none.
"""

from __future__ import annotations

import atexit
import importlib.abc
import importlib.util
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = (
    "jax", "jax.numpy", "flax.linen", "optax", "orbax.checkpoint", "anndata", "h5py", "pandas",
    "zarr", "scipy.sparse", "scipy.spatial", "scipy.stats", "scipy.optimize", "sklearn.ensemble",
    "sklearn.cluster", "sklearn.linear_model", "skimage.color", "matplotlib.figure",
    "ml_collections", "tifffile", "PIL.Image", "hypothesis",
)  # fmt: skip


def prepare() -> None:
    """As tests/conftest.py: imported before the forks, so that they need not."""
    os.chdir(ROOT)
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True)
        atexit.register(cache.cleanup)  # of this process: forks end without
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for name in PRELOADED:
        importlib.import_module(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Gives one module of a changed source."""

    def __init__(self, name: str, path: Path, source: bytes):
        self.name, self.path, self.source = name, path, source

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def get_source(self, name):
        return self.source.decode()

    def get_code(self, name):
        return compile(self.source, str(self.path), "exec")


class Watch:
    """A plugin of pytest: which tests run, in this order; which one failed first."""

    def __init__(self, only: Sequence[str] = ()):
        self.only, self.failed = {test: number for number, test in enumerate(only)}, ""
        self.seconds = {}

    def pytest_collection_modifyitems(self, items):
        if self.only:
            items[:] = [item for item in items if item.nodeid in self.only]
            items.sort(key=lambda item: self.only[item.nodeid])

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        self.pytest_collectreport(report)

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed = self.failed or report.nodeid

    def told(self) -> dict:
        return {"failed": self.failed, "seconds": self.seconds, "lines": None}


class Trace(Watch):
    """And which lines of ours each test passes by, itself or in what it is given."""

    def __init__(self):
        super().__init__()
        self.root, self.now, self.tests, self.lines = f"{ROOT / 'stfm_jax'}/", "", {}, {}
        self.given = {}

    def pytest_runtest_logstart(self, nodeid, location):
        import chex
        import jax

        jax.clear_caches()  # what is compiled passes by nothing
        chex.clear_trace_counter()
        self.now = nodeid
        threading.settrace(self._called)
        sys.settrace(self._called)

    def pytest_runtest_setup(self, item):
        for fixtures in item._fixtureinfo.name2fixturedefs.values():
            for fixture in fixtures:
                self.given.setdefault(self._name(fixture), set()).add(item.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        before = self.now
        if fixturedef.scope != "function":
            self.now = self._name(fixturedef)
        try:
            return (yield)
        finally:
            self.now = before

    @staticmethod
    def _name(fixture) -> str:
        return f"{fixture.baseid} {fixture.argname}"

    def _called(self, frame, event, argument):
        return self._passed if frame.f_code.co_filename.startswith(self.root) else None

    def _passed(self, frame, event, argument):
        place = frame.f_code.co_filename, frame.f_lineno
        self.lines.setdefault(place, set()).add(self.now)
        return self._passed

    def told(self) -> dict:
        passing = {}
        for (file, line), names in self.lines.items():
            tests = set().union(*(self.given.get(name, {name}) for name in names))
            passing.setdefault(file.removeprefix(f"{ROOT}/"), {})[line] = sorted(tests)
        return super().told() | {"lines": passing}


def _run_tests(temporary: str, tests: Sequence[Path], watch: Watch, changed=None) -> int:
    """In a fork: the exit status of pytest; a module may be changed (name, file, source)."""
    if changed:
        sys.meta_path.insert(0, _Finder(*changed))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={temporary}/t"]
    status = int(pytest.main([*options, *map(str, tests)], plugins=[watch]))
    Path(temporary, "told.json").write_text(json.dumps(watch.told()))
    return status


class Ended(NamedTuple):
    """How the tests of a mutant, or of everything as it is, ended."""

    key: Any
    noticed: bool
    seconds: float
    told: dict  # of the watch; empty where time ran out


class Pool:
    """Forks at work, each on a mutant."""

    def __init__(self, jobs: int):
        self.jobs, self.running = jobs, {}

    def start(self, key: Any, limit_s: float, *arguments) -> None:
        """Tests that may take so many seconds of a processor, and many more of a clock."""
        temporary = tempfile.TemporaryDirectory(prefix="mutant-", ignore_cleanup_errors=True)
        child = os.fork()
        if child == 0:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s), int(limit_s)))
            status = 99
            try:
                status = _run_tests(temporary.name, *arguments)
            finally:
                os._exit(status)
        self.running[child] = key, time.monotonic(), 20.0 * limit_s, temporary

    def ended(self, free: bool = False) -> Iterator[Ended]:
        """What has ended; waits until one may start, or until all are free."""
        while self.running and (free or len(self.running) >= self.jobs):
            for child, (key, since, limit, temporary) in list(self.running.items()):
                seconds = time.monotonic() - since
                done, status = os.waitpid(child, os.WNOHANG)
                if not done and seconds > limit:
                    os.killpg(child, signal.SIGKILL)
                    done, status = os.waitpid(child, 0)
                if done:
                    del self.running[child]
                    told = Path(temporary.name, "told.json")
                    told = json.loads(told.read_text()) if told.exists() else {}
                    temporary.cleanup()
                    yield Ended(key, _noticed(status), seconds, told)
            time.sleep(0.02)


def _noticed(status: int) -> bool:
    """Whether tests failed, were not even collected, or died."""
    code = os.waitstatus_to_exitcode(status)
    if code > pytest.ExitCode.INTERRUPTED and code != pytest.ExitCode.INTERNAL_ERROR:
        raise SystemExit(f"pytest ended with {code}, without running what it was to run")
    return code != 0


def as_it_is(files: Sequence[Path], pool: Pool, watch: Watch) -> dict:
    """What is told of the tests where nothing is changed; they must pass."""
    pool.start("", 7200.0, files, watch)
    (ended,) = pool.ended(free=True)
    if ended.noticed:
        raise SystemExit(f"tests fail as it is: {ended.told.get('failed', '')}")
    return ended.told
