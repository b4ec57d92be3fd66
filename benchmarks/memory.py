"""Peak memory against the number of spots, of predictions and of training steps.

    python benchmarks/memory.py [--what=inference,train] [--n=10000,1000000]

Each row is a process of its own. `peak_gib` is all it ever held (on a GPU: all the device held),
`baseline_gib` that of the same work on BASELINE spots, the libraries and the compiled code;
`input_gib` the features and coordinates that it was given, which a user's own slide takes too.

impl: "stfm" is what the product does; of predictions "stfm_kept" and "stfm_recomputed" are the form
driven from the host with the edge features kept over the evaluations, or computed again in each; of
training "stfm" computes a tile's edges again backwards and "stfm_untiled" keeps those of the slide.
`first_loss` and `last_loss` are those of the first and the last of the steps taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import harness
from harness import Job, Row

SIZES = {"inference": (10_000, 100_000, 1_000_000), "train": (1_000, 10_000, 100_000)}
IMPLEMENTATIONS = {
    "inference": ("stfm", "stfm_kept", "stfm_recomputed"),
    "train": ("stfm", "stfm_untiled"),
}
# The largest sizes they are run at: what is kept takes 80 KiB a spot in a prediction and twice that
# in a step; beyond some 13,000 spots "stfm" computes again.
LARGEST = {
    ("inference", "stfm_kept"): 20_000,
    ("inference", "stfm_recomputed"): 20_000,
    ("train", "stfm_untiled"): 10_000,
}
BASELINE = 64  # spots
STEPS = 6  # of training, at least
COLUMNS = (
    "what", "impl", "n", "peak_gib", "baseline_gib", "own_gib", "input_gib", "seconds",
    "first_loss", "last_loss", "evaluations", "device",
)  # fmt: skip


def job(order: Row) -> Job:
    """A worker's part."""
    import problem

    return (problem.draw if order["what"] == "inference" else problem.step)(order)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    network = harness.network_sizes(options)
    rows: list[Row] = []
    for what in options.what:
        for impl in (impl for impl in IMPLEMENTATIONS[what] if impl in options.impl):
            order = {"what": what, "impl": impl, "devices": 1, **network}
            baseline = _peak({**order, "n": BASELINE}, 1)["peak_gib"]
            for n in options.sizes or SIZES[what]:
                if n <= LARGEST.get((what, impl), n):
                    repeats = max(options.repeats, STEPS - 1 if what == "train" else 1)
                    row = _peak({**order, "n": n}, repeats)
                    rows.append(_with_parts(row, baseline))
                    harness.report(options, rows[-1:], COLUMNS)
    print(harness.table(rows, COLUMNS))
    panels = {
        what: harness.curves(
            [row for row in rows if row["what"] == what], "peak_gib", lambda row: row["impl"]
        )
        for what in options.what
    }
    harness.plot(options.figure, panels, "peak memory, GiB", f"STFlow on {rows[0]['device']}")


def _peak(order: Row, repeats: int) -> Row:
    return harness.measure(__file__, [order], repeats)[0]


def _with_parts(row: Row, baseline: float) -> Row:
    """Says what the peak is made of, and the losses of a training."""
    losses = row.pop("losses", [None])
    return {
        **row,
        "baseline_gib": baseline,
        "own_gib": row["peak_gib"] - baseline,
        "input_gib": row["n"] * (4 * row["features"] + 16) / 2**30,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = harness.parser("memory", __doc__.splitlines()[0], ())
    parser.add_argument("--what", type=harness.names(*SIZES), default=list(SIZES))
    every = tuple(dict.fromkeys(sum(IMPLEMENTATIONS.values(), ())))
    parser.add_argument("--impl", type=harness.names(*every), default=list(every))
    parser.set_defaults(repeats=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    harness.entry(main, job)
