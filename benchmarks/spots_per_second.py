"""How many spots a second: STFlow here against the published network in plain PyTorch.

    python benchmarks/spots_per_second.py [--what=inference,train] [--n=1000,10000] [--devices=1,2]

Both have the same weights, and their outputs are compared first, at the smallest size. A
prediction is one joint draw in five network evaluations; a training step is forward, backward and
optimizer, on the whole slide. Both start from coordinates and features: the graph is included.

impl: "stfm" is what the product does with so many spots; "stfm_recomputed" its form for the largest
slides, at sizes it would do otherwise; "reference" the published way (N x N distances in every
block); "reference_kdtree" the same network with its graph from a k-d tree. torch uses a GPU where
it sees one; `device` says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import harness
from harness import Job, Row

SIZES = {
    "inference": (1_000, 10_000, 100_000, 1_000_000),
    "train": (200, 1_000, 10_000, 100_000),
}
IMPLEMENTATIONS = {
    "inference": ("stfm", "stfm_recomputed", "reference", "reference_kdtree"),
    "train": ("stfm", "reference", "reference_kdtree"),
}
# The largest sizes they are run at: the matrix takes n^2, the table of pairs 10 GiB at 100,000
# spots (and four times as much backwards); beyond some 13,000 spots "stfm" is that form.
LARGEST = {
    ("inference", "stfm_recomputed"): 20_000,
    ("inference", "reference"): 10_000,
    ("inference", "reference_kdtree"): 100_000,
    ("train", "reference"): 10_000,
    ("train", "reference_kdtree"): 10_000,
}
SHARED = {"inference": 20_000}  # the largest slide that several devices share
TOLERANCE = 1e-3
COLUMNS = (
    "what", "impl", "n", "devices", "seconds", "spots_per_second", "over_reference",
    "over_reference_kdtree", "first_seconds", "peak_gib", "evaluations", "device",
)  # fmt: skip


def job(order: Row) -> Job:
    """A worker's part."""
    import problem

    if order["what"] == "agreement":
        return problem.agreement(order)
    ours = order["impl"].startswith("stfm")
    if order["what"] == "inference":
        return (problem.draw if ours else problem.reference_draw)(order)
    return (problem.step if ours else problem.reference_step)(order)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    network = harness.network_sizes(options)
    smallest = min(min(options.sizes or SIZES[what]) for what in options.what)
    if any(name.startswith("reference") for name in options.impl):
        check_agreement({"n": smallest, **network})
    rows: list[Row] = []
    for what in options.what:
        for n in options.sizes or SIZES[what]:
            orders = _orders(what, n, options)
            if orders:
                measured = harness.measure(
                    __file__, [{**order, **network} for order in orders], options.repeats
                )
                harness.report(options, with_ratios(measured), COLUMNS)
                rows += measured
    if said := summary(rows):
        print(said)
    panels = {
        what: harness.curves(
            [row for row in rows if row["what"] == what], "spots_per_second", _label
        )
        for what in options.what
    }
    title = f"STFlow, {options.features} features, {options.genes} genes, on {rows[0]['device']}"
    harness.plot(options.figure, panels, "spots per second", title)


def check_agreement(size: Row) -> None:
    """Prints how far apart the outputs are; raises RuntimeError where they differ."""
    order = {"what": "agreement", "impl": "reference", "devices": 1, **size}
    with harness.Worker(__file__, order) as worker:
        facts = worker.run()
    print(
        f"same weights, {size['n']:,} spots: the draws differ by {facts['difference']:.1e} of "
        f"their root mean square at most, the losses by {facts['loss_difference']:.1e}, the "
        f"gradients' norms by {facts['gradient_difference']:.1e}"
    )
    worst = max(facts[name] for name in facts if name.endswith("difference"))
    if not worst < TOLERANCE:
        raise RuntimeError(f"ours and the reference differ by {worst:.1e}, over {TOLERANCE}.")


def with_ratios(rows: list[Row]) -> list[Row]:
    """Adds to ours how many times faster than each reference they were, at the same size."""
    for reference in (row for row in rows if row["impl"].startswith("reference")):
        for row in rows:
            if row["impl"].startswith("stfm"):
                row[f"over_{reference['impl']}"] = reference["seconds"] / row["seconds"]
    return rows


def summary(rows: Sequence[Row]) -> str:
    """The seconds per spot of the largest slide over those of the same form at its smallest."""
    same_form = [
        row for row in rows if row["what"] == "inference" and row["impl"].startswith("stfm")
    ]
    large = [row for row in same_form if row["n"] > LARGEST["inference", "stfm_recomputed"]]
    small = [row for row in same_form if row["impl"] == "stfm_recomputed"]
    if not large or not small:
        return ""
    a, b = max(large, key=lambda row: row["n"]), max(small, key=lambda row: row["n"])
    ratio = b["spots_per_second"] / a["spots_per_second"]
    return (
        f"seconds per spot at {a['n']:,} spots are {ratio:.2f} times those of the same form at "
        f"{b['n']:,}"
    )


def _orders(what: str, n: int, options: argparse.Namespace) -> list[Row]:
    """The competitors of one size."""
    return [
        {"what": what, "impl": impl, "n": n, "devices": devices}
        for impl in IMPLEMENTATIONS[what]
        for devices in options.devices
        if impl in options.impl
        and n <= LARGEST.get((what, impl), n)
        and (devices == 1 or (impl == "stfm" and n <= SHARED.get(what, n)))
    ]


def _label(row: Row) -> str:
    return row["impl"] if row["devices"] == 1 else f"{row['impl']}, {row['devices']} devices"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = harness.parser("spots_per_second", __doc__.splitlines()[0], ())
    parser.add_argument("--what", type=harness.names(*SIZES), default=list(SIZES))
    every = tuple(dict.fromkeys(sum(IMPLEMENTATIONS.values(), ())))
    parser.add_argument("--impl", type=harness.names(*every), default=list(every))
    parser.add_argument("--devices", type=harness.integers, default=[1])
    return parser.parse_args(arguments)


if __name__ == "__main__":
    harness.entry(main, job)
