"""STFlow on one card, all of it in one call of ten minutes: speed, memory, shares of the card.

    python benchmarks/accelerator.py [--minutes=10] [--what=cost,inference,train,trace] [--n=...]

STFlow in our form, float32 and bfloat16 (`config.model.precision`). Kinds of rows (`what`):

- "rates": what the card reaches in large matrix products and in `a + s * b` of large arrays; shares
  are of these, not of a data sheet.
- "cost": what an evaluation, or a step, is compiled to (see traffic.py). `--what=cost` alone makes
  these and what follows by hand, on a CPU too.
- "inference": one draw in five evaluations of a slide that lies on the card, its result fetched;
  `one_evaluation_seconds` in one; `preparation_seconds` from coordinates and features to the card,
  of which the graph is made by the host. `spots_per_second` is of the draw, `whole_per_second` of
  both. impl: "stfm" is what the product does; "stfm_kept" keeps the edges' features at a size at
  which it would compute them at every evaluation.
- "train": one step; `preparation_seconds` makes the batch.
- "trace": a profile of one draw and of one step in `--traces`, and the kernels that take longest.

`compile_seconds` is what the first run took beyond later ones; what an earlier row of the same call
compiled is read from a cache. `of_bandwidth` and `of_matmul` are bytes and products of the compiled
program over the time and the card's rate; bytes include what a cache may have served, so that more
than all is possible. `kernels` are those launched. A row that does not fit says `failed`; so does
one there was no time for: the rows that matter most come first. On a CPU it all runs as well, at
small `--n`, and says nothing of a card.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import harness
from harness import Job, Row

WHAT = ("cost", "inference", "train", "trace")
PRECISIONS = ("float32", "bfloat16")
# The most important first; other sizes follow them.
SIZES = (
    ("inference", 100_000),
    ("inference", 1_000_000),
    ("train", 10_000),
    ("inference", 10_000),
    ("train", 100_000),
    ("inference", 1_000),
    ("train", 1_000),
    ("train", 200),
)
KEPT_AT = 100_000  # spots, whose edges' features take 8 GiB and more
COST_AT = 16_384  # spots of a tile of an accelerator
# Seconds a row takes at least, and the spots that are prepared in one more.
LEAST = {"rates": 10.0, "cost": 40.0, "inference": 30.0, "train": 40.0, "trace": 30.0}
PREPARED = 20_000
_SPEED = (
    "what", "impl", "n", "precision", "seconds", "spots_per_second", "preparation_seconds",
    "compile_seconds", "peak_gib", "of_bandwidth", "of_matmul", "kernels",
)  # fmt: skip
COLUMNS = {
    "rates": ("what", "bandwidth", *(f"matmul_{name}" for name in (*PRECISIONS, "highest"))),
    "cost": ("impl", "n", "precision", "bytes_moved", "bytes", "flops", "matmul_flops", "kernels"),
    "inference": (*_SPEED, "one_evaluation_seconds", "whole_per_second", "edges"),
    "train": _SPEED,
    "trace": ("what", "impl", "n", "seconds", "busy_seconds", "kernels_run"),
}
NO_TIME, TOO_LONG = "left out for time", "stopped: the time was over"


# What is measured, and in which order.


def plan(options: argparse.Namespace) -> list[Row]:
    """Orders of all rows, the most important first."""
    made = [] if options.what == ["cost"] else [_order(options, "rates", "machine", 0)]
    if "cost" in options.what:
        made.append(_order(options, "cost", "evaluation", options.tile))
        if options.what == ["cost"]:
            made.append(_order(options, "cost", "step", options.tile))
    traced: set[str] = set()
    for what, n in sizes(options.sizes):
        if what in options.what:
            made += [_order(options, what, "stfm", n, precision) for precision in options.precision]
        if "trace" in options.what and what not in traced:
            traced.add(what)
            made.append(_order(options, "trace", what, n, folder=str(options.traces)))
        if what in options.what and (what, n) == ("inference", KEPT_AT):
            made.append(_order(options, what, "stfm_kept", n))
    return made


def sizes(asked: Sequence[int]) -> list[tuple[str, int]]:
    """Kinds and sizes that are asked for, those of SIZES where none are, in its order."""
    known = [(kind, n) for kind, n in SIZES if not asked or n in asked]
    return known + [
        (kind, n) for n in asked for kind in ("inference", "train") if (kind, n) not in known
    ]


def _order(options, what: str, impl: str, n: int, precision: str = "float32", **more) -> Row:
    order = {"what": what, "impl": impl, "n": n, "precision": precision, "devices": 1}
    return {**order, **harness.network_sizes(options), **more}


def within(
    orders: Sequence[Row],
    seconds: float,
    measured: Callable[[Row, float], list[Row]],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[list[Row]]:
    """Rows of each order in turn; one that needs more than is left says so and is left out.

    Args:
      orders: the most important first.
      seconds: for all of them.
      measured: rows of an order, in so many seconds at most.
      clock: in seconds.
    """
    end = clock() + seconds
    for order in orders:
        left = end - clock()
        yield measured(order, left) if left >= needed(order) else [failed(order, NO_TIME)]


def needed(order: Row) -> float:
    """Seconds that an order takes at least."""
    return LEAST[order["what"]] + order["n"] / PREPARED


def failed(order: Row, why: str) -> Row:
    """A row that was not measured."""
    nothing = dict.fromkeys(("seconds", "spots_per_second", "peak_gib", "evaluations", "device"))
    return {**order, **nothing, "failed": why}


# The driver.


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    rows: list[Row] = []
    with compilations_kept():
        measured = functools.partial(_measured, repeats=options.repeats)
        for made in within(plan(options), 60.0 * options.minutes, measured):
            made = [with_shares(row, rows) for row in made]
            rows += made
            harness.report(options, made, (*COLUMNS[made[0]["what"]], "device", "failed"))
            for row in made:
                if "ops" in row:
                    print(harness.table(row["ops"], ("kernel", "times", "seconds", "share")))
    print(said(rows))
    if panels := speeds(rows):
        title = f"STFlow, one device: {rows[0]['device']}"
        harness.plot(options.figure, panels, "spots per second", title)


def speeds(rows: Sequence[Row]) -> dict[str, dict]:
    """Panels of the figure: spots a second of what was measured."""
    found = {
        what: [row for row in rows if row["what"] == what and row["seconds"]]
        for what in ("inference", "train")
    }
    return {
        what: harness.curves(
            measured, "spots_per_second", lambda row: f"{row['impl']}, {row['precision']}"
        )
        for what, measured in found.items()
        if measured
    }


@contextlib.contextmanager
def compilations_kept() -> Iterator[None]:
    """Workers read from one new folder what others of this call have compiled."""
    name, before = "JAX_COMPILATION_CACHE_DIR", os.environ.get("JAX_COMPILATION_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


def _measured(order: Row, seconds: float, repeats: int) -> list[Row]:
    """Rows of an order; a failed one where it does not fit, ends early or takes too long."""
    once = order["what"] in ("rates", "cost", "trace")
    end = time.monotonic() + seconds
    try:
        (row,) = harness.measure(__file__, [order], 1 if once else repeats, limit=seconds)
    except RuntimeError as error:
        late = time.monotonic() >= end
        return [failed(order, TOO_LONG if late else str(error).rpartition("}: ")[2])]
    if "failed" in row:
        return [{**row, **failed(order, row["failed"])}]
    if order["what"] == "cost":
        facts = {key: row[key] for key in ("device", "platform", "peak_gib")}
        return [{**facts, "spots_per_second": None, **part} for part in row["parts"]]
    if not once:
        row["compile_seconds"] = row["first_seconds"] - row["seconds"]
        row["whole_per_second"] = row["n"] / (row["seconds"] + row["preparation_seconds"])
    return [row]


def with_shares(row: Row, before: Sequence[Row]) -> Row:
    """A row of a draw or a step with its kernels and its shares of the card's rates."""
    rates = next((r for r in before if r["what"] == "rates" and r["seconds"]), None)
    cost = row if row["what"] == "train" else _cost_of(row, before)
    if row["what"] not in ("inference", "train") or not (rates and cost and row["seconds"]):
        return row
    times = row["evaluations"]
    every_second = times * row["rows"] / row["seconds"]
    made = {
        **row,
        "of_bandwidth": every_second * cost["bytes_moved"] / rates["bandwidth"],
        "of_matmul": every_second * cost["matmul_flops"] / rates[f"matmul_{row['precision']}"],
    }
    if row["what"] == "inference":
        made["kernels"] = times * row["tiles"] * cost["kernels"]
    return made


def _cost_of(row: Row, before: Sequence[Row]) -> Row | None:
    """What was compiled for an evaluation in a row's form and precision."""
    form = f"evaluation, edges {row.get('edges')}"
    same = (r for r in before if r["what"] == "cost" and r["impl"] == form)
    return next((r for r in same if r["precision"] == row["precision"]), None)


def said(rows: Sequence[Row]) -> str:
    """What follows: of the costs, and which rows were left out."""
    parts = []
    if costs := [row for row in rows if row["what"] == "cost" and row["seconds"]]:
        import traffic

        parts.append(traffic.summary(costs))
    for row in rows:
        if "failed" in row:
            parts.append(f"{_name(row)}: {row['failed']}")
    devices = {row["device"] for row in rows if row["device"]}
    platforms = {row["platform"] for row in rows if row.get("platform")}
    parts.append(f"measured on {', '.join(sorted(devices)) or 'nothing'}")
    if "cpu" in platforms:
        parts.append("this is a CPU: no row says anything of a GPU's speed")
    return "\n".join(parts)


def _name(row: Row) -> str:
    return f"{row['what']} {row['impl']}, {row['n']:,} spots, {row['precision']}"


def job(order: Row) -> Job:
    """A worker's part."""
    import card

    return card.job(order)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = harness.parser("accelerator", __doc__.splitlines()[0], ())
    parser.add_argument("--what", type=harness.names(*WHAT), default=list(WHAT))
    parser.add_argument("--precision", type=harness.names(*PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--minutes", type=float, default=10.0, help="for all rows together")
    parser.add_argument("--tile", type=int, default=COST_AT, help="spots that costs are of")
    parser.add_argument("--traces", type=Path, default=Path("runs/accelerator"))
    parser.set_defaults(repeats=3)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    harness.entry(main, job)
