"""benchmarks/mutants.py: what it makes wrong, whose tests it runs, and that these decide."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = b'''"""A text, 3 < 4."""
x: int | None = -2


def f(a: "1 + 1", b=True):
    """Another 5."""
    if a is not None and b < 3:
        raise ValueError(f"{a + 1}")
    return [c % 2 for c in a if not c]
'''


def load(monkeypatch, name):
    """Imports a benchmark as `python benchmarks/NAME.py` does."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module(name)


@pytest.fixture
def mutants(monkeypatch):
    return load(monkeypatch, "mutants")


def test_what_is_made_wrong(mutants):
    found = [mutant.told(SOURCE).split(" in `")[0] for mutant in mutants.mutants(SOURCE)]
    condition = "a is not None and b < 3"
    assert sorted(found) == sorted([
        "- -> ", "2 -> 3", "True -> False", f"{condition} -> not ({condition})", "is not -> is",
        "and -> or", "< -> <=", "< -> >=", "3 -> 4", "% -> *", "2 -> 3", "not c -> not (not c)",
        "not  -> ",
    ])  # fmt: skip
    for mutant in mutants.mutants(SOURCE):
        compile(mutant.of(SOURCE), "f.py", "exec")


def test_where_a_mutant_is_passed_by(mutants):
    found = {mutant.line: mutant for mutant in mutants.mutants(SOURCE)}
    assert [(line, m.around, m.called) for line, m in sorted(found.items())] == [
        (2, range(2, 3), False), (5, range(5, 6), False), (7, range(7, 8), True),
        (9, range(9, 10), True),
    ]  # fmt: skip


def test_which_tests_are_a_modules_own(mutants):
    near, run = (ROOT / "tests" / file for file in ("data/test_b.py", "test_run.py"))
    tests = {near: {"stfm_jax.data.a"}, run: {"stfm_jax.data.a", "stfm_jax.data.d"}}
    assert mutants.tests_of("stfm_jax.data.a", tests, {}) == [near]
    assert mutants.tests_of("stfm_jax.data.d", tests, {}) == [run]
    users = {"stfm_jax.data.e": {"stfm_jax.data.d"}, "stfm_jax.data.d": {"stfm_jax.data.a"}}
    assert mutants.tests_of("stfm_jax.data.e", tests, users) == [near]
    assert mutants.tests_of("stfm_jax.data.f", tests, {}) == []
    kin = ROOT / "tests/data/test_a_frozen.py"
    tests |= {near: {"stfm_jax.data.a_b"}, kin: {"stfm_jax.data.c"}}
    assert mutants.tests_of("stfm_jax.data.a_b", tests, {}) == [kin, near]
    paths = [Path(f"test_{name}.py") for name in ("readers_a", "a_more", "ab", "b_a")]
    assert mutants.named("stfm_jax.data.readers.a", paths) == paths[:2]


def test_tests_of_its_name_that_pass_by_go_before_others(mutants):
    source = ROOT / "stfm_jax/flow/path.py"
    tests = [ROOT / f"tests/flow/test_{name}.py" for name in ("gaussian", "path_solvers")]
    module = mutants.Module("stfm_jax.flow.path", mutants.mutants(source.read_bytes()), tests, [])
    text, mutant = next((t, m) for t, m in module.mutants.items() if m.called)
    other, slow, quick = (
        "tests/flow/test_gaussian.py::a",
        *(f"tests/flow/test_path_solvers.py::{name}" for name in "bc"),
    )
    told = {"seconds": {other: 0.1, slow: 2.0, quick: 1.0}}

    def passing(*by):
        lines = {"stfm_jax/flow/path.py": {str(mutant.line): list(by)}}
        return module.passing(text, told | {"lines": lines})

    assert passing(other, slow, quick) == [quick, slow, other] and passing(other) == [other]
    assert passing() == [] and module.passing(text, told | {"lines": None}) == [quick, slow, other]


def test_what_helpers_of_tests_import_is_tested_by_them(mutants, tmp_path):
    (tmp_path / "helper.py").write_text("import other\nfrom stfm_jax.ops import a\n")
    (tmp_path / "other.py").write_text("import helper\nimport stfm_jax.data.b\n")
    (tmp_path / "test_it.py").write_text("from helper import of\nfrom stfm_jax import c\n")
    (found,) = mutants.test_imports(tmp_path).values()
    assert {"stfm_jax.ops.a", "stfm_jax.data.b", "stfm_jax.c"} <= found


def test_what_was_found_holds_as_long_as_it_does(mutants, tmp_path, monkeypatch):
    """Of the same module: all while the tests are, the killed while their killer is there."""
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    module, test = tmp_path / "stfm_jax/ops/a.py", tmp_path / "tests/ops/test_a.py"
    for file, text in ((module, "A = 1 + 2\n"), (test, "def test_it():\n    pass\n")):
        file.parent.mkdir(parents=True)
        file.write_text(text)

    def now(rows=()):
        return mutants.Module("stfm_jax.ops.a", mutants.mutants(module.read_bytes()), [test], rows)

    first = now()
    assert len(first.left) == 3
    rows = [
        first.ended(text, killed, 1.0, "tests/ops/test_a.py::test_it[1]" if killed else "")
        for text, killed in zip(first.left, (True, False, True), strict=True)
    ]
    assert now(rows).left == []
    test.write_text("def test_it():\n    pass\n\n\ndef test_more():\n    pass\n")
    assert now(rows).left == [rows[1]["mutant"]] and sum(now(rows).found.values()) == 2
    assert len(now(rows).found) == 3
    test.write_text("def test_more():\n    pass\n")
    assert len(now(rows).left) == 3
    module.write_text("A = 1 + 2  # now\n")
    test.write_text("def test_it():\n    pass\n")
    assert len(now(rows).left) == 3


def test_another_seed_draws_what_was_not_drawn(mutants, monkeypatch):
    path = ROOT / "stfm_jax/flow/path.py"
    given = {"at_most": 4, "seed": 0}
    first = mutants._drawn(path, argparse.Namespace(**given), [])
    source = path.read_bytes()
    module = mutants.Module("stfm_jax.flow.path", first, [], [])
    rows = [module.ended(mutant.told(source), i < 3, 1.0, "") for i, mutant in enumerate(first)]
    assert {row["seed"] for row in rows} == {0}
    del rows[0]["seed"]  # as rows were written before there were seeds
    assert mutants._drawn(path, argparse.Namespace(**given), rows) == first
    fresh = mutants._drawn(path, argparse.Namespace(**given | {"seed": 1}), rows)
    assert len(fresh) == 4 and not set(fresh) & set(first)


def test_what_was_seen_first_stays(mutants):
    """Whatever tests were written, and the module changed, since."""
    path = ROOT / "stfm_jax/flow/path.py"
    drawn = mutants.mutants(path.read_bytes())[:2]
    module = mutants.Module("stfm_jax.flow.path", drawn, [], [])
    texts = list(module.mutants)
    rows = [module.ended(text, False, 1.0, "") for text in texts]
    rows[0]["of"] = "another"
    rows += [row | {"killed": True, "of": module.of} for row in rows]
    assert mutants.Module("stfm_jax.flow.path", drawn, [], rows).first == dict.fromkeys(
        texts, False
    )


@pytest.mark.slow
def test_a_mutant_is_killed_by_the_modules_tests(tmp_path):
    out = tmp_path / "mutants.jsonl"
    command = [sys.executable, "benchmarks/mutants.py", "--modules=flow.path", "--at-most=2"]
    said = subprocess.run(
        [*command, f"--json={out}", "--jobs=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 2 and {row["module"] for row in rows} == {"flow.path"}
    number = sum(row["killed"] for row in rows)
    killed = f"{number} of 2 killed"
    assert said.splitlines()[-1].endswith(f"at first sight {number} of 2")
    assert killed in said.splitlines()[-1] and f"flow: {killed}" in said.splitlines()[-2]
    assert all(bool(row["by"]) == row["killed"] for row in rows)
    again = subprocess.run(
        [*command, f"--json={out}", "--summary"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert again == said
