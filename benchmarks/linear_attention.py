"""Does the global attention cost time linear in the spots?

    python benchmarks/linear_attention.py [--n=10000,100000,1000000] [--width=256]

Forward, all spots to all spots, HEADS heads on random queries, keys and values of `--width`
together, by

- "linear": ops/linear_attention.py, what the product does.
- "softmax": the usual weights, by the n x n matrix of every head.

The two are different functions. `slope` is the log-log slope from the size before; `temporary_gib`
is what XLA plans beside inputs and outputs, `peak_gib` all that the process held.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import harness
from harness import Job, Row

SIZES = (1_000, 10_000, 100_000, 1_000_000)
FORMS = ("linear", "softmax")
LARGEST = {"softmax": 10_000}  # spots: 1.5 GiB for the matrices
HEADS = 4
COLUMNS = (
    "what", "impl", "n", "seconds", "slope", "spots_per_second", "temporary_gib", "peak_gib",
    "first_seconds", "device",
)  # fmt: skip


def job(order: Row) -> Job:
    """A worker's part: `impl` names the form."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import problem

    from stfm_jax.ops.linear_attention import linear_attention

    shape, rng = (order["n"], HEADS, order["width"] // HEADS), np.random.default_rng(0)
    inputs = [jnp.asarray(rng.standard_normal(shape, np.float32)) for _ in range(3)]
    mask = jnp.ones(order["n"], bool)
    function = {"linear": linear_attention, "softmax": _softmax_attention}[order["impl"]]
    compiled = jax.jit(function).lower(*inputs, mask).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes / 2**30

    def run():
        jax.block_until_ready(compiled(*inputs, mask))
        return {"temporary_gib": temporary, "evaluations": None, **problem.jax_facts()}

    return run


def _softmax_attention(q, k, v, mask):
    import jax

    return jax.nn.dot_product_attention(q, k, v, mask=mask[None, None])


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    common = {"what": "forward", "devices": 1, "heads": HEADS, "width": options.width}
    rows: list[Row] = []
    for n in options.sizes:
        forms = [form for form in options.impl if n <= LARGEST.get(form, n)]
        orders = [{**common, "impl": form, "n": n} for form in forms]
        measured = harness.measure(__file__, orders, options.repeats)
        for row in measured:
            row["slope"] = _slope_to(row, rows)
        harness.report(options, measured, COLUMNS)
        rows += measured
    print(harness.table(sorted(rows, key=lambda row: row["impl"]), COLUMNS))
    panels = {"forward": harness.curves(rows, "seconds", lambda row: row["impl"])}
    harness.plot(options.figure, panels, "seconds", f"Global attention on {rows[0]['device']}")


def _slope_to(row: Row, before: Sequence[Row]) -> float | None:
    """The log-log slope of the seconds from the size before."""
    pair = [*(other for other in before if other["impl"] == row["impl"]), row][-2:]
    return harness.slope([r["n"] for r in pair], [r["seconds"] for r in pair])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = harness.parser("linear_attention", __doc__.splitlines()[0], SIZES)
    parser.add_argument("--impl", type=harness.names(*FORMS), default=list(FORMS))
    parser.set_defaults(width=64 * HEADS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    harness.entry(main, job)
