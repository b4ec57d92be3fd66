"""Do the tests of a module notice when it is wrong?

    python benchmarks/mutants.py [--modules=ops,flow,data,regression,report,score] [--at-most=20]
        [--seed=0]

Of every module of these packages (data has the readers) so many places are drawn, and each is made
wrong in turn: an operator, a comparison, a constant, a condition. Then those of the module's own
tests run that pass by the place, the slow ones aside. A mutant that none of them notices has
survived. A draw of another seed is fresh: it leaves out what smaller seeds drew, for which tests
may have been written since. At first sight is as it was when a seed's mutants were first run, of
whatever version, before any test was written for them. Equivalent ones count as survivors too, but
for those that results/mutants_equivalent.json argues, one by one. Each is a line of
results/mutants.jsonl. What is there is not run again while the module and its tests are the same;
one that was killed, while the module is and the test that did it is there. `--summary` prints what
is there and runs nothing.

What passes by is found by running all of these tests once, traced, which takes minutes and is not
done for a few mutants. Tests run in forks of one process; what they start as commands of their own
sees the module as it is.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from mutations import Mutant, mutants
from watched import ROOT, Ended, Pool, Trace, Watch, as_it_is, prepare

RESULTS = ROOT / "benchmarks" / "results"
FEW = 30  # mutants whose tests take less time than to trace what passes by
PACKAGES = ("ops", "flow", "data", "regression", "report", "score")


def imported(path: Path, helpers: Mapping[str, Path] = MappingProxyType({})) -> set[str]:
    """Names of our modules that a file imports, itself or by files beside it (by their names)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    others = {name: other for name, other in helpers.items() if name != path.stem}
    beside = (imported(others[name], others) for name in found & set(others))
    return {name for name in found if name.startswith("stfm_jax.")}.union(*beside)


def tests_of(module: str, tests: dict[Path, set[str]], users: dict[str, set[str]]) -> list[Path]:
    """Test files of a module: those of its package that import it or, if none does, what uses it
    (and so on), else others. With them those of its package of its first word: of `a_b` test_a*.py.

    Args:
      module: its name.
      tests: what each test file imports.
      users: which modules import each.
    """
    package, names, asked, left = module.split(".")[1], {module}, set(), []
    word = module.rpartition(".")[2].split("_")[0]
    kin = {path for path in named(word, list(tests)) if path.parent.name == package}
    while names:
        found = [path for path, uses in tests.items() if uses & names]
        if near := [path for path in found if path.parent.name == package]:
            return sorted({*near, *kin})
        left = left or [path for path in found if path.parent.name != "tests"] or found
        asked |= names
        names = set().union(*(users.get(name, set()) for name in names)) - asked
    return sorted(left)


def named(module: str, tests: Sequence[Path]) -> list[Path]:
    """Those of the module's name: of `a.b` test_b.py, test_b_more.py, test_readers_b.py."""
    name = module.rpartition(".")[2]
    kinds = {path: path.stem.removeprefix("test_").removeprefix("readers_") for path in tests}
    return [path for path, kind in kinds.items() if f"{kind}_".startswith(f"{name}_")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is asked for and prints a table."""
    made = argparse.ArgumentParser(prog="benchmarks/mutants.py", description=__doc__.split("\n")[0])
    made.add_argument("--modules", default=",".join(PACKAGES), help="packages or modules of ours")
    made.add_argument("--at-most", type=int, default=20, help="mutants of a module")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--jobs", type=int, default=os.cpu_count())
    made.add_argument("--json", type=Path, default=RESULTS / "mutants.jsonl")
    made.add_argument("--summary", action="store_true", help="of what was run; runs nothing")
    given = made.parse_args(arguments)
    argued = json.loads((RESULTS / "mutants_equivalent.json").read_text())
    modules = list(_modules(given, argued))
    if not given.summary:
        _run([module for module in modules if module.left], Pool(given.jobs), given.json)
    for module in modules:
        _print(module, argued)
    _sum_up(modules, argued)


def _modules(given: argparse.Namespace, argued: Mapping[str, str]) -> Iterator[Module]:
    """Those that are asked for, with what is known of them."""
    rows = _rows(given.json)
    imports = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): imported(path)
        for path in (ROOT / "stfm_jax").rglob("*.py")
    }
    users = {name: {user for user, uses in imports.items() if name in uses} for name in imports}
    tests = test_imports(ROOT / "tests")
    wanted = tuple(f"stfm_jax.{each.replace('/', '.')}" for each in given.modules.split(","))
    for name in sorted(imports):
        if name.startswith(wanted):
            drawn = _drawn(ROOT / f"{name.replace('.', '/')}.py", given, rows)
            if drawn:
                module = Module(name, drawn, tests_of(name, tests, users), rows, given.seed)
                for text in module.left:
                    if f"{module.short}: {text}" in argued:
                        module.killed[text] = False  # need not be run
                yield module


def test_imports(root: Path) -> dict[Path, set[str]]:
    """What each test file imports, those aside that skip where what they open in is missing."""
    helpers = {path.stem: path for path in root.rglob("*.py") if not path.stem.startswith("test_")}
    files = (path for path in root.rglob("test_*.py") if path.parent.name != "ecosystem")
    return {path: imported(path, helpers) for path in files}


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _drawn(path: Path, given: argparse.Namespace, rows: Sequence[dict]) -> list[Mutant]:
    """Of a module, those aside that a smaller seed drew."""
    source = path.read_bytes()
    short = _short(".".join(path.relative_to(ROOT).with_suffix("").parts))
    before = {r["mutant"] for r in rows if r["module"] == short and r.get("seed", 0) < given.seed}
    found = mutants(source)
    random.Random(f"{given.seed} {path.relative_to(ROOT)}").shuffle(found)
    # zip's strict asserts what never happens.
    found = [m for m in found if not source[: m.start].endswith(b"strict=")]
    found = [m for m in found if m.told(source) not in before]
    return sorted(found[: given.at_most])  # fewer are among more


class Module:
    """A module of ours, its mutants and what became of them."""

    def __init__(
        self,
        name: str,
        drawn: Sequence[Mutant],
        tests: Sequence[Path],
        rows: Sequence[dict],
        seed: int = 0,
    ):
        self.name, self.short, self.tests, self.seed = name, _short(name), tests, seed
        self.path = ROOT / f"{name.replace('.', '/')}.py"
        self.source = self.path.read_bytes()
        self.of = _digest(self.source)
        self.by = _digest(*(file.read_bytes() for file in tests))
        self.mutants = {mutant.told(self.source): mutant for mutant in drawn}
        ever = [row for row in rows if row["module"] == self.short]
        there = [row for row in ever if row["of"] == self.of and row["mutant"] in self.mutants]
        now = [row for row in there if row["tests"] == self.by or _holds(row)]
        self.killed = {row["mutant"]: row["killed"] for row in now}
        self._survived = {row["mutant"]: False for row in there}  # of earlier tests, too
        drawn = (row for row in reversed(ever) if row.get("seed", 0) == seed)
        self.first = {row["mutant"]: row["killed"] for row in drawn}  # when first run

    @property
    def found(self) -> dict[str, bool]:
        """Which were killed, of those ever run; what survived has until it is run again."""
        return self._survived | self.killed

    @property
    def left(self) -> list[str]:
        return [text for text in self.mutants if text not in self.killed]

    def passing(self, text: str, told: dict) -> list[str]:
        """Own tests that pass by a mutant's place, in turn, those of the module's name first.

        All where it was not looked at what they pass by.
        """
        own = {f"{file.relative_to(ROOT)}" for file in self.tests}
        first = {f"{file.relative_to(ROOT)}" for file in named(self.name, self.tests)}
        tests = [test for test in told["seconds"] if _file(test) in own]
        if told["lines"] is not None:
            lines = told["lines"].get(f"{self.path.relative_to(ROOT)}", {})
            around = (lines.get(str(line), ()) for line in self.mutants[text].around)
            tests = sorted(set(tests) & set().union(*around))
        parts = [
            [t for t in tests if (_file(t) in first) == is_first] for is_first in (True, False)
        ]
        return [test for part in parts for test in _in_turn(part, told["seconds"])]

    def ended(self, text: str, killed: bool, seconds: float, by: str) -> dict:
        """Notes what became of a mutant; a row of the results."""
        self.killed[text] = killed
        self.first.setdefault(text, killed)
        row = {"module": self.short, "of": self.of, "tests": self.by, "mutant": text}
        return {**row, "seed": self.seed, "killed": killed, "seconds": round(seconds, 1), "by": by}


def _run(modules: Sequence[Module], pool: Pool, out: Path) -> None:
    """Runs what is not known yet; each result is written as it comes."""
    if not modules:
        return
    prepare()
    traced = sum(len(module.left) for module in modules) >= FEW
    files = sorted({file for module in modules for file in module.tests})
    told = as_it_is(files, pool, Trace() if traced else Watch())

    def note(module: Module, text: str, *became) -> None:
        with out.open("a") as file:
            file.write(json.dumps(module.ended(text, *became)) + "\n")

    def note_all(ended: Iterator[Ended]) -> None:
        for each in ended:
            by = each.told.get("failed", "") or "time or a signal"
            note(*each.key, each.noticed, each.seconds, by if each.noticed else "")

    for module in modules:
        for text in module.left:
            mutant, tests = module.mutants[text], module.passing(text, told)
            if not tests and not mutant.called:  # run when it is imported, by any of them
                tests = module.passing(text, told | {"lines": None})
            if not tests:
                note(module, text, False, 0.0, "")
                continue
            files = [ROOT / file for file in dict.fromkeys(map(_file, tests))]
            limit = 30.0 + 3.0 * sum(told["seconds"][test] for test in tests)
            changed = module.name, module.path, mutant.of(module.source)
            pool.start((module, text), limit, files, Watch(tests), changed)
            note_all(pool.ended())
    note_all(pool.ended(free=True))


def _digest(*content: bytes) -> str:
    return hashlib.sha256(b"\0".join(content)).hexdigest()[:12]


def _holds(row: dict) -> bool:
    """Whether the test that killed a mutant is still there."""
    file, _, test = row.get("by", "").partition("::")
    path = ROOT / file
    found = row["killed"] and test and path.is_file()
    return bool(found) and f"def {test.split('[')[0]}(" in path.read_text()


def _short(name: str) -> str:
    return name.removeprefix("stfm_jax.")


def _file(test: str) -> str:
    return test.partition("::")[0]


def _in_turn(tests: Sequence[str], seconds: dict[str, float]) -> list[str]:
    """File by file, that fixtures of a file are made once; quick files and tests first."""
    files = {}
    for test in tests:
        files.setdefault(_file(test), []).append(test)
    quick = sorted(files.values(), key=lambda each: sum(seconds[test] for test in each))
    return [test for each in quick for test in sorted(each, key=seconds.__getitem__)]


def _print(module: Module, argued: dict[str, str]) -> None:
    killed = sum(module.found.values())
    print(f"{module.short:32} {killed:3} of {len(module.mutants):3}", flush=True)
    for text in module.mutants:
        if not module.found.get(text):
            state = "survived" if text in module.found else "not run"
            why = argued.get(f"{module.short}: {text}")
            print(f"    {'equivalent: ' + why if why else state}: {text}", flush=True)


def _sum_up(modules: Sequence[Module], argued: dict[str, str]) -> None:
    """Of each package and of all: mutants that were run, killed, equivalent; as it was at first."""
    packages, first = {}, {}
    for module in modules:
        of = (
            "data/readers"
            if module.short.startswith("data.readers")
            else module.short.split(".")[0]
        )
        for key in (of, "all"):
            packages.setdefault(key, []).extend(
                (killed, f"{module.short}: {text}" in argued)
                for text, killed in module.found.items()
            )
            first.setdefault(key, []).extend(module.first.values())
    for package, found in sorted(packages.items(), key=lambda each: each[0] == "all"):
        killed, spared = sum(k for k, _ in found), sum(e and not k for k, e in found)
        share = killed / max(1, len(found) - spared)
        told = f"{killed} of {len(found) - spared} killed, {share:.1%}; {spared} equivalent"
        told += f"; at first sight {sum(first[package])} of {len(first[package])}"
        print(f"{package + ':' if package != 'all' else ''} {told}".strip())


if __name__ == "__main__":
    main()
