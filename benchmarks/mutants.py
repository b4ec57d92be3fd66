"""Do the tests of a module notice when it is wrong?

    python benchmarks/mutants.py [--modules=ops,flow,data,regression,report] [--at-most=20]

Of every module of these packages (data has the readers) so many places are drawn, seed 0, and each
is made wrong in turn: an operator, a comparison, a constant, a condition. Then the module's own
tests run, those that import it (else those that import what imports it), the slow ones aside. A
mutant that no test notices has survived. Equivalent ones count as survivors too, but for those that
results/mutants_equivalent.json argues, one by one. Each is a line of results/mutants.jsonl; what is
there, of the same code and the same tests, is not run again.

Tests run in forks of one process that has imported what we stand on; what they start as commands of
their own sees the module as it is.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("ops", "flow", "data", "regression", "report")
PRELOADED = (
    "jax", "jax.numpy", "flax.linen", "optax", "orbax.checkpoint", "anndata", "h5py", "pandas",
    "zarr", "scipy.sparse", "scipy.spatial", "scipy.stats", "scipy.optimize", "sklearn.ensemble",
    "sklearn.cluster", "sklearn.linear_model", "skimage.color", "matplotlib.figure",
    "ml_collections", "tifffile", "PIL.Image", "pytest",
)  # fmt: skip
COMPARED = {
    ast.Lt: ("<", "<=", ">="), ast.LtE: ("<=", "<", ">"), ast.Gt: (">", ">=", "<="),
    ast.GtE: (">=", ">", "<"), ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}  # fmt: skip
COMPUTED = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"), ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}  # fmt: skip
JOINED = {ast.And: ("and", "or"), ast.Or: ("or", "and")}


class Mutant(NamedTuple):
    """A place of a module that is made wrong."""

    start: int  # bytes of the source
    end: int
    instead: str
    line: int

    def of(self, source: bytes) -> bytes:
        return source[: self.start] + self.instead.encode() + source[self.end :]

    def told(self, source: bytes) -> str:
        """Stays the same where lines are added before it."""
        line = source.decode().splitlines()[self.line - 1].strip()
        return f"{source[self.start : self.end].decode()} -> {self.instead} in `{line}`"


def mutants(source: bytes) -> list[Mutant]:
    """All mutants of a module, in the order of its text; annotations, messages and texts aside."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: ast.expr) -> tuple[int, int]:
        return (
            starts[node.lineno - 1] + node.col_offset,
            starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def between(left: ast.expr, right: ast.expr, known: Sequence[str]) -> Iterator[Mutant]:
        low, high = span(left)[1], span(right)[0]
        at = source[low:high].find(known[0].encode())
        for instead in known[1:] if at >= 0 else ():
            yield Mutant(low + at, low + at + len(known[0]), instead, right.lineno)

    def negated(test: ast.expr) -> Mutant:
        low, high = span(test)
        return Mutant(low, high, f"not ({source[low:high].decode()})", test.lineno)

    def visit(node: ast.AST) -> Iterator[Mutant]:
        if isinstance(node, ast.JoinedStr | ast.Raise | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            for left, op, right in zip(operands, node.ops, operands[1:], strict=False):
                yield from between(left, right, COMPARED[type(op)])
        elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
            yield from between(node.left, node.right, COMPUTED[type(node.op)])
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield from between(left, right, JOINED[type(node.op)])
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
            low, inner = span(node)[0], span(node.operand)[0]
            yield Mutant(low, inner, "", node.lineno)
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            yield Mutant(*span(node), repr(_other(node.value)), node.lineno)
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            yield negated(node.test)
        if isinstance(node, ast.comprehension):
            yield from map(negated, node.ifs)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child)

    return sorted(set(visit(ast.parse(source))))


def _other(value: bool | int | float) -> bool | int | float:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return 2.0 * value or 1.0


def imported(path: Path) -> set[str]:
    """Names of our modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith("stfm_jax.")}


def tests_of(module: str, tests: dict[Path, set[str]], users: dict[str, set[str]]) -> list[Path]:
    """Test files of a module: those of its package that import it, else others, else of its users.

    Args:
      module: its name.
      tests: what each test file imports.
      users: which modules import each.
    """
    for names in ({module}, users.get(module, set())):
        found = [path for path, uses in tests.items() if uses & names]
        near = [p for p in found if p.parent.name != "tests"]  # no whole runs, if it can be
        if near or found:
            return sorted(near or found)
    return []


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


def _run_tests(name: str, path: Path, source: bytes, tests: Sequence[Path], temporary: str) -> int:
    """In a fork: the exit status of pytest with a module of this source."""
    import pytest

    sys.meta_path.insert(0, _Finder(name, path, source))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={temporary}/t"]
    return int(pytest.main([*options, *map(str, tests)]))


class Pool:
    """Forks at work, each on a mutant."""

    def __init__(self, jobs: int):
        self.jobs, self.running = jobs, {}

    def start(self, key, limit_s: float, *arguments) -> None:
        temporary = tempfile.TemporaryDirectory(prefix="mutant-", ignore_cleanup_errors=True)
        child = os.fork()
        if child == 0:
            os.setsid()
            status = 99
            try:
                status = _run_tests(*arguments, temporary.name)
            finally:
                os._exit(status)
        self.running[child] = key, time.monotonic(), limit_s, temporary

    def ended(self, free: bool = False) -> Iterator[tuple]:
        """Key, whether tests noticed, and seconds, of what has ended; waits until one may start."""
        while self.running and (free or len(self.running) >= self.jobs):
            for child, (key, since, limit, temporary) in list(self.running.items()):
                seconds = time.monotonic() - since
                done, status = os.waitpid(child, os.WNOHANG)
                if not done and seconds > limit:
                    os.killpg(child, signal.SIGKILL)
                    done, status = os.waitpid(child, 0)
                if done:
                    del self.running[child]
                    temporary.cleanup()
                    yield key, status != 0, seconds
            time.sleep(0.02)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is asked for and prints a table."""
    made = argparse.ArgumentParser(prog="benchmarks/mutants.py", description=__doc__.split("\n")[0])
    made.add_argument("--modules", default=",".join(PACKAGES), help="packages or modules of ours")
    made.add_argument("--at-most", type=int, default=20, help="mutants of a module")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--jobs", type=int, default=os.cpu_count())
    made.add_argument("--json", type=Path, default=RESULTS / "mutants.jsonl")
    given = made.parse_args(arguments)
    _prepare()
    known = {(row["module"], row["of"], row["mutant"]): row for row in _rows(given.json)}
    argued = json.loads((RESULTS / "mutants_equivalent.json").read_text())
    imports = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): imported(path)
        for path in (ROOT / "stfm_jax").rglob("*.py")
    }
    users = {name: {user for user, uses in imports.items() if name in uses} for name in imports}
    tests = {path: imported(path) for path in (ROOT / "tests").rglob("test_*.py")}
    wanted = tuple(f"stfm_jax.{each.replace('/', '.')}" for each in given.modules.split(","))
    pool, table = Pool(given.jobs), []
    for name in sorted(imports):
        path = ROOT / f"{name.replace('.', '/')}.py"
        if name.startswith(wanted) and (drawn := _drawn(path, given)):
            files = tests_of(name, tests, users)
            table.append(_of_module(pool, name, path, drawn, files, known, given.json))
            _print(table[-1], argued)
    killed, total = (sum(len(row[key]) for row in table) for key in ("killed", "all"))
    spared = sum(f"{row['module']}: {told}" in argued for row in table for told in row["survived"])
    share = killed / max(1, total - spared)
    print(f"{killed} of {total - spared} killed, {share:.1%}; {spared} equivalent")


def _prepare() -> None:
    """As tests/conftest.py: imported before the forks, so that they need not."""
    os.chdir(ROOT)
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="mutants-"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for name in PRELOADED:
        importlib.import_module(name)


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _drawn(path: Path, given: argparse.Namespace) -> list[Mutant]:
    found = mutants(path.read_bytes())
    rng = random.Random(f"{given.seed} {path.relative_to(ROOT)}")
    return sorted(rng.sample(found, min(given.at_most, len(found))))


def _of_module(pool, name, path, drawn, files, known, out) -> dict:
    """Which mutants of a module are noticed by its tests; new ones are written as they end."""
    source, short = path.read_bytes(), name.removeprefix("stfm_jax.")
    content = [source, *(file.read_bytes() for file in files)]
    of = hashlib.sha256(b"\0".join(content)).hexdigest()[:12]
    told = {mutant.told(source): mutant for mutant in drawn}
    found = {text: row["killed"] for text in told if (row := known.get((short, of, text)))}
    left = [text for text in told if text not in found]
    if left and files:
        limit = _baseline(pool, name, path, source, files)

        def note(ended: Iterator[tuple]) -> None:
            for text, killed, seconds in ended:
                found[text] = killed
                row = {"module": short, "of": of, "mutant": text, "killed": killed}
                with out.open("a") as file:
                    file.write(json.dumps({**row, "seconds": round(seconds, 1)}) + "\n")

        for text in left:
            pool.start(text, limit, name, path, told[text].of(source), files)
            note(pool.ended())
        note(pool.ended(free=True))
    killed = [text for text in told if found.get(text)]
    survived = [text for text in told if not found.get(text)]
    return {"module": short, "all": list(told), "killed": killed, "survived": survived}


def _baseline(pool: Pool, name: str, path: Path, source: bytes, files: Sequence[Path]) -> float:
    """Seconds that a mutant's tests may take; those of the module as it is must pass."""
    pool.start("", 3600.0, name, path, source, files)
    ((_, failed, seconds),) = pool.ended(free=True)
    if failed:
        raise SystemExit(f"{name}: its tests fail as it is: {', '.join(map(str, files))}")
    return 20.0 + 5.0 * seconds


def _print(row: dict, argued: dict[str, str]) -> None:
    print(f"{row['module']:32} {len(row['killed']):3} of {len(row['all']):3}", flush=True)
    for told in row["survived"]:
        why = argued.get(f"{row['module']}: {told}")
        print(f"    {'equivalent: ' + why if why else 'survived'}: {told}", flush=True)


if __name__ == "__main__":
    main()
