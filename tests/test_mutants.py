"""benchmarks/mutants.py: what it makes wrong, whose tests it runs, and that these decide."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCE = b'''"""A text, 3 < 4."""
x: int | None = -2


def f(a: "1 + 1", b=True):
    """Another 5."""
    if a is not None and b < 3:
        raise ValueError(f"{a + 1}")
    return [c % 2 for c in a if not c]
'''


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "benchmarks" / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module
    spec.loader.exec_module(module)
    return module


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


def test_which_tests_are_a_modules_own(mutants):
    near, run = ROOT / "tests/ops/test_a.py", ROOT / "tests/test_run.py"
    tests = {near: {"stfm_jax.ops.a"}, run: {"stfm_jax.ops.a", "stfm_jax.ops.b"}}
    assert mutants.tests_of("stfm_jax.ops.a", tests, {}) == [near]
    assert mutants.tests_of("stfm_jax.ops.b", tests, {}) == [run]
    assert mutants.tests_of("stfm_jax.ops.c", tests, {"stfm_jax.ops.c": {"stfm_jax.ops.a"}}) == [
        near
    ]
    assert mutants.tests_of("stfm_jax.ops.d", tests, {}) == []


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
    assert f"{sum(row['killed'] for row in rows)} of 2 killed" in said.splitlines()[-1]
