"""What the benchmarks share: workers and timing, the command line, rows, tables and plots.

Every competitor runs in a worker, a process of its own that prepares what it needs and then waits
to be told to run. The workers of one size run in turn, repeat by repeat, so that noise of the
machine hits all alike; the peak memory of a worker is that of one kind of work; and its environment
says how many devices it sees. The process that drives them touches no device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
PACKAGES = ("jax", "jaxlib", "torch", "numpy")  # whose versions are noted
LONG = 30.0  # seconds; a run that takes longer is not repeated
VERY_LONG = 900.0  # s; the first run is the timed one, since compiling hardly shows
SLOPE_FROM = 10_000  # spots; slopes are taken from here on, where there are two sizes

Row = dict[str, Any]
Job = Callable[[], Row]  # runs once and says facts of the run


# The command line.


def parser(name: str, description: str, sizes: Sequence[int]) -> argparse.ArgumentParser:
    """The options that every benchmark has; `sizes` are the default ones."""
    made = argparse.ArgumentParser(prog=f"benchmarks/{name}.py", description=description)
    made.add_argument("--n", "--sizes", dest="sizes", type=integers, default=list(sizes))
    made.add_argument("--repeats", type=int, default=5, help="timed runs after the first")
    made.add_argument("--json", "--out", dest="json", default=FOLDER / "results" / f"{name}.jsonl")
    made.add_argument("--figure", default=FOLDER / "figures" / f"{name}.png")
    made.add_argument("--commit", default=None, help="of this code, where git cannot say")
    network = made.add_argument_group("network; defaults are the published sizes")
    for field, value in {"features": 1024, "genes": 50, "width": 128, "blocks": 4}.items():
        network.add_argument(f"--{field}", type=int, default=value)
    return made


def integers(text: str) -> list[int]:
    """`1000,1e6` -> [1000, 1000000]."""
    return [int(float(part)) for part in text.split(",")]


def names(*choices: str) -> Callable[[str], list[str]]:
    """A reader of `a,b`, each one of the choices."""

    def read(text: str) -> list[str]:
        found = text.split(",")
        if not set(found) <= set(choices):
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(choices)}: {text!r}")
        return found

    return read


def network_sizes(options: argparse.Namespace) -> Row:
    """The part of a worker's order that is the same for all of a run."""
    return {field: getattr(options, field) for field in ("features", "genes", "width", "blocks")}


def entry(main: Callable[[], None], make: Callable[[Row], Job]) -> None:
    """Of a script: the benchmark itself, or one of its workers."""
    if sys.argv[1:2] == ["--worker"]:
        _serve(make, json.loads(sys.argv[2]))
    else:
        main()


# Workers.


class Worker:
    """A process that makes a job from an order, then runs it whenever it is told to.

    An order names at least `what`, `impl`, `n` and `devices`.
    """

    def __init__(self, script: str, order: Row):
        self._process = subprocess.Popen(
            [sys.executable, script, "--worker", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(order["devices"]),
        )
        self.order = order

    def run(self) -> Row:
        """One run; see `run`."""
        print(file=self._process.stdin, flush=True)
        return self._answer()

    def stop(self) -> None:
        """Ends it, whatever it does; who waits for its answer is told."""
        self._process.kill()

    def __enter__(self) -> Worker:
        """Waits until it is ready."""
        self._answer()
        return self

    def __exit__(self, *_) -> None:
        self._process.communicate()

    def _answer(self) -> Row:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.order}: ended with {self._process.wait()}.")
        return json.loads(line)


def measure(
    script: str, orders: Iterable[Row], repeats: int, limit: float | None = None
) -> list[Row]:
    """Rows of competitors: order, facts, `first_seconds` (compiling too), median `seconds`.

    Raises RuntimeError where one ends early, or is not done after `limit` seconds.
    """
    with contextlib.ExitStack() as stack:
        started = [Worker(script, order) for order in orders]
        if limit is not None:
            timer = threading.Timer(limit, lambda: [worker.stop() for worker in started])
            timer.start()
            stack.callback(timer.cancel)
        workers = [stack.enter_context(worker) for worker in started]
        first = [worker.run() for worker in workers]
        runs = [[row] if row["seconds"] > VERY_LONG else [] for row in first]
        for _ in range(repeats):
            for worker, done in zip(workers, runs, strict=True):
                if not done or done[0]["seconds"] < LONG:
                    done.append(worker.run())
    return [
        _row(worker.order, cold, warm)
        for worker, cold, warm in zip(workers, first, runs, strict=True)
    ]


def _row(order: Row, cold: Row, warm: Sequence[Row]) -> Row:
    seconds = [run["seconds"] for run in warm]
    median = statistics.median(seconds)
    return {
        **order,
        **warm[-1],
        "seconds": median,
        "all_seconds": seconds,
        "first_seconds": cold["seconds"],
        "spots_per_second": order["n"] / median,
    }


def _serve(make: Callable[[Row], Job], order: Row) -> None:
    """The worker's side: a line of JSON when ready and after every run, which a line asks for."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed
    job = make(order)
    print(json.dumps({}), file=channel, flush=True)
    for _ in sys.stdin:
        print(json.dumps(run(job)), file=channel, flush=True)


def run(job: Job) -> Row:
    """One run: `seconds`, the process's peak memory so far, and what the job says.

    A job that ran on an accelerator says `peak_gib` itself, that of the device.
    """
    started = time.perf_counter()
    facts = job()
    seconds = time.perf_counter() - started
    peak = host_peak_gib()
    return {"seconds": seconds, "peak_gib": peak, "host_peak_gib": peak, **facts}


def environment(devices: int) -> dict[str, str]:
    """Of a worker that is to see so many devices: virtual ones on a CPU, the first GPUs."""
    made = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if devices > 1:
        flag = f"--xla_force_host_platform_device_count={devices}"
        made["XLA_FLAGS"] = f"{made.get('XLA_FLAGS', '')} {flag}"
    visible = made.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices))))
    made["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[:devices])
    return made


def host_peak_gib() -> float:
    """Largest resident memory of this process so far.

    From the kernel's own mark where there is one: `ru_maxrss` starts at that of the parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**20
    kib = 1024 if platform.system() == "Darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kib / 2**20


def timed(function: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a function in this process, after a run that compiles it."""
    function()
    seconds: list[float] = []
    for _ in range(repeats):
        if not seconds or seconds[0] < LONG:
            started = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


# Rows, tables and plots.


def provenance(commit: str | None) -> Row:
    """Versions of what is installed, and commit, for every row."""
    return {
        **{name: version(name) for name in PACKAGES if find_spec(name)},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "commit": commit or _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str:
    """Of the code; `+` where it was changed since."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=FOLDER, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "../stfm_jax", "*.py")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def cpu_name() -> str:
    """Model of the processor, as the kernel says it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def report(options: argparse.Namespace, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Prints rows as a table and appends them to the JSON file, a line each."""
    print(table(rows, columns), flush=True)
    path, common = Path(options.json), provenance(options.commit)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for row in rows:
            print(json.dumps({**row, **common}), file=file)


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Aligned text, a line per row; `-` where a row has no such field."""
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def slope(sizes: Sequence[int], values: Sequence[float]) -> float | None:
    """Log-log slope by least squares, from SLOPE_FROM on where there are two such sizes."""
    sizes, values = np.asarray(sizes, float), np.asarray(values, float)
    if (sizes >= SLOPE_FROM).sum() > 1:
        sizes, values = sizes[sizes >= SLOPE_FROM], values[sizes >= SLOPE_FROM]
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0]) if len(sizes) > 1 else None


def curves(rows: Sequence[Row], field: str, label: Callable[[Row], str]) -> dict:
    """{label: (sizes, values of a field)}, ascending in size."""
    made: dict[str, tuple[list[int], list[float]]] = {}
    for row in sorted(rows, key=lambda row: row["n"]):
        sizes, values = made.setdefault(label(row), ([], []))
        sizes.append(row["n"])
        values.append(row[field])
    return made


def plot(path: str | os.PathLike, panels: dict[str, dict], y_label: str, title: str) -> None:
    """Log-log panels side by side, slopes in the legend.

    Args:
      path: of the picture.
      panels: {title: curves}.
      y_label: what is measured.
      title: of the whole.
    """
    # Not at the head: workers draw nothing, and their memory is measured.
    from matplotlib.figure import Figure

    from stfm_jax.plots.slides import COLORS, save

    figure = Figure(figsize=(5.2 * len(panels), 5.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (name, lines) in zip(axes, panels.items(), strict=True):
        for i, (label, (sizes, values)) in enumerate(lines.items()):
            steepness = slope(sizes, values)
            said = label if steepness is None else f"{label} (slope {steepness:.2f})"
            style = ("-", "--", ":")[i // len(COLORS) % 3]
            ax.loglog(sizes, values, style, color=COLORS[i % len(COLORS)], marker=".", label=said)
        ax.set(xlabel="spots", title=name)
        ax.grid(alpha=0.3, which="major")
        ax.legend(
            fontsize="x-small",
            frameon=False,
            ncols=2,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.13),
        )
    axes[0].set_ylabel(y_label)
    figure.suptitle(title, fontsize="medium")
    save(figure, path)
    print(f"-> {path}")
