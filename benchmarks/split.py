"""Does splitting counts cost time linear in the parents, and memory that does not grow with them?

    python benchmarks/split.py [--n=10000,100000] [--genes=50]

SRast's mean and one draw for every pair of parent and gene, 4 children each, part by part, from
sparse counts in memory; what is learned of the sample is counted too. No count is 0, since nothing
is done where one is. The network's parameters are random, which does not change the work.
`held_gib` is what the process held beyond its input at most; `slope` is the log-log slope of the
seconds from the size before.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import harness
from harness import Job, Row

SIZES = (10_000, 100_000)
EVALUATIONS = 4  # of a draw
COLUMNS = (
    "what", "impl", "n", "seconds", "slope", "spots_per_second", "macs_a_pair", "held_gib",
    "peak_gib", "first_seconds", "device",
)  # fmt: skip


def job(order: Row) -> Job:
    """A worker's part."""
    import jax
    import numpy as np
    import problem

    from stfm_jax.data.coarsen import subdivided
    from stfm_jax.flow.simplex_path import Spread
    from stfm_jax.models.method import Genes, Request
    from stfm_jax.models.srast import latents
    from stfm_jax.models.srast.features import NUM_FACTS, PLAIN
    from stfm_jax.models.srast.flow import Fitted, SplitArrays
    from stfm_jax.models.srast.method import SRastMethod, SRastSettings, State
    from stfm_jax.runtime.devices import make_mesh

    settings = SRastSettings(blocks=order["blocks"], evaluations=EVALUATIONS)
    method, flow, facts = SRastMethod(settings), settings.flow, NUM_FACTS + 16
    arrays = SplitArrays(
        np.full(len(PLAIN), 0.2, np.float32), np.zeros(facts, np.float32),
        np.ones(facts, np.float32), Spread(np.array([3.0, 0.0], np.float32), np.float32(0.3)),
    )  # fmt: skip
    params = flow.init(jax.random.key(0), arrays, facts)
    state = State(Fitted(arrays, None), params, 0)
    pair = subdivided(_low(order["n"], order["genes"]), "2x2")
    request = Request(Genes(tuple(pair.low.genes), ()), 0, 1, 0, make_mesh(1))
    before = harness.host_peak_gib()

    def run():
        latents.FITTED.clear()
        total = 0.0
        for part in method.predict(state, pair, request):
            total += float(part.mean.sum() + part.draws.sum())
        expected = 2.0 * pair.low.counts.nnz
        if abs(total - expected) > 1e-4 * expected:
            raise RuntimeError(f"shares sum to {total}, expected {expected}.")
        return {
            "evaluations": EVALUATIONS,
            "macs_a_pair": _macs(flow, params, arrays, facts),
            "held_gib": harness.host_peak_gib() - before,
            **problem.jax_facts(),
        }

    return run


def _low(n: int, genes: int):
    """n parents on a square of a lattice, counts about smooth fields."""
    import numpy as np
    import scipy.sparse as sp

    from stfm_jax.data.slide import Slide

    rng, side = np.random.default_rng(0), int(np.ceil(np.sqrt(n)))
    at = np.argwhere(np.ones((side, side), bool))[:n]
    waves = np.sin(at @ rng.normal(0, 0.1, (2, 8)) + rng.uniform(0, 6, 8))
    weights, parts = rng.normal(0, 0.5, (8, genes)), []
    for some in np.array_split(waves, max(1, n // 50_000)):
        counts = 1.0 + rng.poisson(np.exp(some @ weights))
        parts.append(sp.csr_matrix(counts.astype(np.float32)))
    return Slide(
        name="benchmark",
        barcodes=np.arange(n).astype(str),
        coords_um=at * 16.0,
        counts=sp.vstack(parts, format="csr"),
        genes=np.array([f"g{i}" for i in range(genes)]),
    )


def _macs(flow, params, arrays, facts: int) -> float:
    """Multiply-adds a pair of one evaluation, as XLA counts them: half its operations."""
    import jax
    import jax.numpy as jnp

    from stfm_jax.models.srast.features import SplitRows

    n, f = 1024, len(arrays.pool)
    rows = SplitRows(
        jnp.zeros((n, 4, f)), jnp.zeros((n, facts)), jnp.ones((n, 4), bool), jnp.ones(n),
        jnp.zeros((n, 4)), jnp.arange(n, dtype=jnp.int32),
    )  # fmt: skip

    def logits(params, arrays, rows, x_t, t):
        return flow.logits(params, arrays, rows, flow.line(arrays, rows), x_t, t)

    lowered = jax.jit(logits).lower(params, arrays, rows, rows.ratios, jnp.full(n, 0.5))
    return lowered.compile().cost_analysis()["flops"] / 2 / n


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    rows: list[Row] = []
    for n in options.sizes:
        order = {"what": "split", "impl": "srast", "devices": 1, "n": n}
        order |= {"genes": options.genes, "blocks": options.blocks}
        measured = harness.measure(__file__, [order], options.repeats)
        for row in measured:
            pair = [*rows[-1:], row]
            row["slope"] = harness.slope([r["n"] for r in pair], [r["seconds"] for r in pair])
        harness.report(options, measured, COLUMNS)
        rows += measured
    print(harness.table(rows, COLUMNS))
    panels = {"split": harness.curves(rows, "seconds", lambda row: row["impl"])}
    harness.plot(options.figure, panels, "seconds", f"Counts split on {rows[0]['device']}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = harness.parser("split", __doc__.splitlines()[0], SIZES)
    parser.set_defaults(blocks=1, repeats=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    harness.entry(main, job)
