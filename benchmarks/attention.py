"""One layer of STFlow by its forms of neighbour attention: time and memory against spots.

    python benchmarks/attention.py [--n=1000,10000,100000] [--impl=tiled,segments]

The same block of the network on the same spots, edge features included, by

- "tiled": a table of neighbours for each tile of spots, tile by tile, edges computed again
  backwards; what the product does.
- "table": one table for the whole slide.
- "segments": the edges in one list, sums over the edges of each spot; the definition.
- "dense": all pairs of spots, those that are not neighbours masked.

All give the same output, which is checked. `temporary_gib` is what XLA plans beside inputs and
outputs; `peak_gib` is all that the process held.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence

import harness
import numpy as np
from harness import Job, Row

SIZES = (250, 1_000, 10_000, 100_000)
FORMS = ("tiled", "table", "segments", "dense")
PASSES = ("forward", "forward_backward")
LARGEST = {"dense": 1_000}  # spots: a million pairs
TOLERANCE = 1e-3
COLUMNS = (
    "what", "impl", "n", "seconds", "spots_per_second", "temporary_gib", "peak_gib",
    "first_seconds", "device",
)  # fmt: skip


def job(order: Row) -> Job:
    """A worker's part: `impl` names the form, `what` the pass."""
    import jax
    import jax.numpy as jnp
    import problem

    n, flow = order["n"], problem.flow_of(order)
    layer = flow.network.layers(problem.weights(flow, order)["flow"])[0]
    rows, apply = layer_in_form(order["impl"], flow, problem.slide(order).coords)
    h, y = (
        jnp.asarray(np.random.default_rng(i).standard_normal((n, width), np.float32))
        for i, width in enumerate((order["width"], order["genes"]))
    )

    def square(layer, h, y):
        padded = (jnp.zeros((rows, a.shape[1])).at[:n].set(a) for a in (h, y))
        outputs = apply(functools.partial(flow.network.block, layer), *padded)
        return sum(jnp.mean(a[:n] ** 2) for a in outputs)

    backward = jax.value_and_grad(square, argnums=(0, 1, 2))
    function = square if order["what"] == "forward" else backward
    compiled = jax.jit(function).lower(layer, h, y).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes / 2**30

    def run():
        output = jax.tree.leaves(jax.block_until_ready(compiled(layer, h, y)))[0]
        facts = {"output": float(output), "temporary_gib": temporary, "evaluations": None}
        return {**facts, **problem.jax_facts()}

    return run


def layer_in_form(form: str, flow, coords: np.ndarray) -> tuple[int, Callable]:
    """Padded number of rows, and `apply(block, h, y)` that runs a block over all spots."""
    from stfm_jax.nn.stflow_net import over_edge_list, over_tiles
    from stfm_jax.ops.frames import edge_geometry
    from stfm_jax.ops.neighbors import knn_graph
    from stfm_jax.ops.tiles import hilbert_order, tile

    coords, n = coords[hilbert_order(coords)], len(coords)
    graph = knn_graph(coords, flow.neighbors)
    geometry = edge_geometry(coords, graph)
    if form == "dense":
        return n, _over_all_pairs(graph, geometry, n)
    size = min(flow.tile, n) if form == "tiled" else n
    rows = -(-n // size) * size
    tiles = tile(graph, geometry, rows, size)
    over = over_edge_list if form == "segments" else over_tiles
    return rows, lambda block, h, y: over(block, h, y, tiles.geometry, tiles, None)


def _over_all_pairs(graph, geometry, n: int) -> Callable:
    """The block over n^2 edges, masked but for the graph's."""
    from stfm_jax.ops.frames import EdgeGeometry
    from stfm_jax.ops.tiles import Edges

    at = graph.receivers.astype(np.int64) * n + graph.senders

    def spread(values):
        out = np.zeros((n * n, *values.shape[1:]), np.float32)
        out[at] = values
        return out

    pairs = EdgeGeometry(*map(spread, geometry))
    receivers, senders = np.divmod(np.arange(n * n, dtype=np.int32), np.int32(n))
    edges = Edges(senders, receivers, spread(np.ones(len(at))) > 0)
    return lambda block, h, y: block(h, y, pairs, edges, n)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    network = harness.network_sizes(options)
    rows: list[Row] = []
    for what in PASSES:
        for n in options.sizes:
            forms = [form for form in options.impl if n <= LARGEST.get(form, n)]
            orders = [
                {"what": what, "impl": form, "n": n, "devices": 1, **network} for form in forms
            ]
            measured = harness.measure(__file__, orders, options.repeats)
            check_outputs(measured)
            harness.report(options, measured, COLUMNS)
            rows += measured
    panels = {
        what.replace("_", " + "): harness.curves(
            [row for row in rows if row["what"] == what], "seconds", lambda row: row["impl"]
        )
        for what in PASSES
    }
    harness.plot(options.figure, panels, "seconds", f"One layer on {rows[0]['device']}")


def check_outputs(rows: Sequence[Row]) -> None:
    """Raises RuntimeError where forms differ."""
    outputs = {row["impl"]: row["output"] for row in rows}
    if not np.ptp(list(outputs.values())) <= TOLERANCE * max(outputs.values()):
        raise RuntimeError(f"the forms differ at {rows[0]['n']} spots: {outputs}.")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = harness.parser("attention", __doc__.splitlines()[0], SIZES)
    parser.add_argument("--impl", type=harness.names(*FORMS), default=list(FORMS))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    harness.entry(main, job)
