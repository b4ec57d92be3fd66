"""metrics.json of six small experiments at any commit, and how two commits' differ.

    python benchmarks/gate.py make DIR [--commit=REV] [--core=0] [--only=demo,tiny_srast]
    python benchmarks/gate.py compare DIR_A DIR_B

A restructuring changes no figure: made on one machine, the six of two commits agree to rounding.
Three are demos, three the tiny experiments of the tests, one for each method. Every run has one
device and one thread. The tiny data are written once beside DIR, by the checkout the script lies
in, so that both commits read the same files; the demos simulate theirs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TINY_STACK = {
    "stack.kept": 6,
    "stack.candidates": 5,
    "stack.context_width": 6,
    "stack.epochs": 2,
    "train.epochs": 2,
    "sample.draws": 3,
    "sample.mean_draws": 1,
}
LEFT_OUT = ("config", "version")  # of metrics.json: not figures


def experiments(data: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Config and overrides by name; `data` holds the slides of the tiny ones."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import test_run_srast
    import test_run_stack
    import tiny

    def written(name: str, slides) -> dict[str, str]:
        folder = data / name
        if not folder.exists():
            tiny.write(folder, slides)
        return {"data.dir": str(folder)}

    plain = tiny.OVERRIDES | written("tiny", tiny.slides(3))
    stack = plain | TINY_STACK | written("tiny_stack", test_run_stack.moved(tiny.slides()))
    samples = [test_run_srast.section(f"P{i}", i) for i in range(3)]
    split = test_run_srast.OVERRIDES | written("tiny_srast", samples)
    return {
        "tiny": ("demo", plain),
        "tiny_stack": ("holotea_demo", stack),
        "tiny_srast": ("srast_her2st", split),
        "demo": ("demo", {}),
        "srast_demo": ("srast_demo", {}),
        "holotea_demo": ("holotea_demo", {}),
    }


def make(folder: Path, commit: str | None, core: int, only: list[str]) -> None:
    """Runs the experiments at a commit, or as the checkout is, and keeps their metrics.json."""
    os.sched_setaffinity(0, {core})
    folder.mkdir(parents=True, exist_ok=True)
    wanted = experiments(folder.parent / "data")
    with tempfile.TemporaryDirectory() as scratch:
        checkout = ROOT
        if commit:
            checkout = Path(scratch) / "checkout"
            _git("worktree", "add", "--detach", str(checkout), commit)
        try:
            for name, (config, overrides) in wanted.items():
                if name in (only or wanted):
                    workdir = Path(scratch) / name
                    _run(checkout, config, {"devices": 1} | overrides, workdir, name)
                    (folder / f"{name}.json").write_text((workdir / "metrics.json").read_text())
        finally:
            if commit:
                _git("worktree", "remove", "--force", str(checkout))


def _git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True)


def _run(checkout: Path, config: str, overrides: dict, workdir: Path, name: str) -> None:
    flags = [f"--config.{field}={value}" for field, value in overrides.items()]
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    xla = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_PLATFORMS": "cpu"}
    started = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "run.py", f"--config=configs/{config}.py", f"--workdir={workdir}", *flags],
        cwd=checkout,
        env={**os.environ, **threads, **xla, "PYTHONPATH": str(checkout)},
        stderr=subprocess.PIPE,
        text=True,
    )
    print(f"{name}: exit code {run.returncode}, {time.perf_counter() - started:.0f} s", flush=True)
    if run.returncode:
        raise SystemExit(run.stderr[-3000:])


def compare(a: Path, b: Path) -> None:
    """Prints how many figures each file has, the largest difference, and what only one has."""
    print("| experiment | figures | largest difference | where | in one alone |")
    print("|---|---|---|---|---|")
    for path in sorted(a.glob("*.json")):
        if not (b / path.name).exists():
            continue
        one, other = (dict(_leaves(json.loads((d / path.name).read_text()))) for d in (a, b))
        both = one.keys() & other.keys()
        apart = {key: _difference(one[key], other[key]) for key in both}
        where = max(apart, key=apart.get)
        alone = sorted(one.keys() ^ other.keys())
        print(
            f"| {path.stem} | {len(both)} | {apart[where]:.2g} | {where if apart[where] else ''} | "
            f"{len(alone)} {', '.join(alone[:4])} |"
        )


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if prefix or key not in LEFT_OUT:
                yield from _leaves(value, f"{prefix}{key}/")
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from _leaves(value, f"{prefix}{i}/")
    else:
        yield prefix[:-1], tree


def _difference(a: Any, b: Any) -> float:
    numbers = (int, float)
    if isinstance(a, numbers) and isinstance(b, numbers):
        return abs(a - b)
    return 0.0 if a == b else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("--commit", help="a revision; as the checkout is, where none is given")
    making.add_argument("--core", type=int, default=0, help="the processor core that does it")
    making.add_argument("--only", default="", help="names, with commas between")
    comparing = verbs.add_parser("compare")
    comparing.add_argument("a", type=Path)
    comparing.add_argument("b", type=Path)
    given = parser.parse_args()
    if given.verb == "compare":
        compare(given.a, given.b)
    else:
        make(given.folder, given.commit, given.core, [n for n in given.only.split(",") if n])


if __name__ == "__main__":
    main()
