"""Where the time of a prediction goes, and what share of the machine it uses.

    python benchmarks/breakdown.py [--n=10000,100000,1000000]

Three kinds of rows (`what`), in the form driven from the host whatever the size:

- "prediction": preparing a slide, one draw, and both.
- "stage": what they consist of, for the whole slide, timed by itself, one chunk of spots after the
  other (a prediction has several chunks under way on a CPU, so its stages add up to more). `times`
  says how often the stage comes in a prediction, `share` how much of it that makes; zero times for
  what only our own form of the method needs, neighbourhood features.
- "part": the parts of a block, each a function of its own, on one chunk; `share` is of the block.

`of_matmul` is the rate of the stage's matrix products over this machine's own, measured by a large
float32 product; `of_bandwidth` the rate of its inputs and outputs over that of a large addition.
`slope` is the log-log slope over the sizes so far.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import problem
from harness import Row

from stfm_jax.flow import priors
from stfm_jax.models.stflow import whole_slide
from stfm_jax.models.stflow.flow import STFlow
from stfm_jax.nn.blocks import AttentionLogits, QueryKeyValue
from stfm_jax.nn.mlp import ExpressionHead, LayerNorm, SwiGLU
from stfm_jax.nn.stflow_net import map_tiles, run_tiles
from stfm_jax.ops.attention import attend
from stfm_jax.ops.frames import edge_geometry
from stfm_jax.ops.neighbors import knn_graph
from stfm_jax.ops.tiles import Edges, hilbert_order, tile
from stfm_jax.regression import features as feature_ops

SIZES = (10_000, 100_000, 1_000_000)
FITTED_ON = 4_096  # spots that the principal axes of the features are fitted on
MATMUL, COPY = 4_096, 1 << 26  # side of a product, floats of an addition
COLUMNS = (
    "what", "impl", "n", "times", "seconds", "share", "of_matmul", "of_bandwidth", "slope",
    "device",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stage:
    """Something to time."""

    name: str
    run: Callable[[], Any]
    times: int = 0  # in a prediction
    flops: float = 0.0  # of its matrix products
    bytes: float = 0.0  # of its inputs and outputs


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    network = harness.network_sizes(options)
    machine = machine_rates(options.matmul, options.copy)
    print(
        f"{jax.devices()[0].device_kind}: {machine['matmul'] / 1e9:,.0f} GFLOP/s in a float32 "
        f"product, {machine['bandwidth'] / 1e9:,.1f} GB/s in an addition"
    )
    rows: list[Row] = []
    for n in options.sizes:
        measured = measure({"what": "inference", "n": n, **network}, options.repeats, machine)
        rows += measured
        for row in measured:
            row["slope"] = slope_up_to(row, rows)
        harness.report(options, measured, COLUMNS)
        print(prior_share(measured))
    panels = {
        what: harness.curves(
            [row for row in rows if row["what"] == kind], "seconds", lambda row: row["impl"]
        )
        for what, kind in {"whole": "prediction", "stages": "stage"}.items()
    }
    harness.plot(options.figure, panels, "seconds", f"A prediction on {rows[0]['device']}")


def measure(order: Row, repeats: int, machine: Row) -> list[Row]:
    """All rows of one size."""
    flow, prepared = problem.flow_of(order), problem.slide(order)
    params, arrays = problem.weights(flow, order), problem.flow_arrays(order["genes"])

    def encode():
        rows = whole_slide.Rows.of(prepared)
        return whole_slide.encode(flow, params, arrays, rows, cache_bytes=0)

    encoded = encode()

    def draw():
        return next(whole_slide.sample(flow, params, arrays, encoded, problem.KEY, 1))

    common = {
        "n": order["n"],
        "devices": 1,
        "peak_gib": None,
        "evaluations": flow.evaluations,
        **problem.jax_facts(),
    }
    wholes = timed((Stage("preparation", encode, 1), Stage("draw", draw, 1)), repeats)
    total = sum(seconds for _, seconds in wholes)
    wholes.append((Stage("prediction", lambda: None, 1), total))
    stages = itertools.chain(
        graph_stages(flow, prepared.coords),
        feature_stages(flow, prepared.features, prepared.coords),
        device_stages(flow, params, arrays, encoded),
    )
    parts = timed(block_parts(flow, params, encoded), repeats)
    return [
        *(_row("prediction", *each, total, machine, common) for each in wholes),
        *(_row("stage", *each, total, machine, common) for each in timed(stages, repeats)),
        *(
            _row("part", *each, parts[0][1], machine, {**common, "n": encoded.chunk_rows})
            for each in parts
        ),
    ]


def timed(stages: Iterable[Stage], repeats: int) -> list[tuple[Stage, float]]:
    """Stages with their seconds. What only one of them needs is freed before the next."""
    return [(stage, harness.timed(stage.run, repeats)) for stage in stages]


def _row(what: str, stage: Stage, seconds: float, total: float, machine: Row, common: Row) -> Row:
    return {
        "what": what,
        "impl": stage.name,
        "times": stage.times,
        "seconds": seconds,
        "spots_per_second": common["n"] / seconds,
        "share": stage.times * seconds / total,
        "of_matmul": stage.flops / seconds / machine["matmul"] if stage.flops else None,
        "of_bandwidth": stage.bytes / seconds / machine["bandwidth"] if stage.bytes else None,
        "matmul_gflops": machine["matmul"] / 1e9,
        "bandwidth_gb": machine["bandwidth"] / 1e9,
        **common,
    }


def slope_up_to(row: Row, rows: Sequence[Row]) -> float | None:
    """The log-log slope of what a row is about, over the sizes so far."""
    same = [r for r in rows if (r["what"], r["impl"]) == (row["what"], row["impl"])]
    if row["what"] == "part":  # on a chunk, whatever the size
        return None
    return harness.slope([r["n"] for r in same], [r["seconds"] for r in same])


def prior_share(rows: Sequence[Row]) -> str:
    """How much of a draw its prior takes."""
    seconds = {row["impl"]: row["seconds"] for row in rows}
    share = seconds["prior draw"] / seconds["draw"]
    return f"the prior takes {share:.1%} of a draw at {rows[0]['n']:,} spots"


# The machine.


def machine_rates(side: int, floats: int) -> Row:
    """What this device reaches: flops of a float32 product, bytes of an addition, each a second."""
    a, x = jnp.ones((side, side)), jnp.ones(floats)
    product, add = jax.jit(lambda a: a @ a), jax.jit(lambda x: x + 1.0)
    return {
        "matmul": 2.0 * side**3 / harness.timed(lambda: jax.block_until_ready(product(a)), 3),
        "bandwidth": 8.0 * floats / harness.timed(lambda: jax.block_until_ready(add(x)), 3),
    }


def matmul_flops(function: Callable, *arguments: Any) -> float:
    """Multiplications and additions of the matrix products in a function.

    Counted in its jaxpr: XLA's own count takes the body of a loop once, however often it runs.
    """
    return _flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _flops(jaxpr) -> float:
    return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(equation) -> float:
    params = equation.params
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        summed = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        return 2.0 * summed * math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "cond":  # of a tile: occupied, but for the padding's
        return max(_flops(branch.jaxpr) for branch in params["branches"])
    inner = (getattr(value, "jaxpr", value) for value in params.values())
    inside = sum(_flops(jaxpr) for jaxpr in inner if hasattr(jaxpr, "eqns"))
    return params.get("length", 1) * inside if equation.primitive.name == "scan" else inside


def _bytes(tree: Any) -> float:
    return float(sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree)))


# Stages.


def graph_stages(flow: STFlow, coords: np.ndarray) -> Iterator[Stage]:
    """From coordinates to tiles, once for each slide; NumPy and SciPy."""
    order = hilbert_order(coords)
    ordered = coords[order]
    graph = knn_graph(ordered, flow.neighbors)
    geometry = edge_geometry(ordered, graph)
    rows = -(-len(coords) // flow.tile) * flow.tile
    yield Stage("Hilbert order", lambda: hilbert_order(coords), 1)
    yield Stage("kNN graph", lambda: knn_graph(ordered, flow.neighbors), 1)
    yield Stage("geometry", lambda: edge_geometry(ordered, graph), 1)
    yield Stage("tiling", lambda: tile(graph, geometry, rows, flow.tile), 1)


def feature_stages(flow: STFlow, features: np.ndarray, coords: np.ndarray) -> Iterator[Stage]:
    """Neighbourhood features, which the published form does without; NumPy and SciPy."""
    some = features[:FITTED_ON]
    transform = feature_ops.fit_transform([some], flow.standardize, flow.components)
    own = feature_ops.own_features(transform, features)
    yield Stage("own components", lambda: feature_ops.own_features(transform, features))
    for size in flow.context:
        mean = functools.partial(feature_ops.window_mean, own, coords, size)
        yield Stage(f"means of {size} spots", mean)


def device_stages(flow: STFlow, params, arrays, encoded) -> Iterator[Stage]:
    """What JAX does, a chunk after the other; tokens are encoded with the preparation."""
    network, weights = flow.network, params["flow"]
    layer = network.layers(weights)[0]
    tiles = jax.tree.map(lambda *parts: jnp.concatenate(parts), *encoded.chunks)
    h, y = encoded.tokens, encoded.mean
    every = network.num_blocks * flow.evaluations
    width = weights["embed_features"]["kernel"].shape[0]
    features = jnp.zeros((encoded.chunk_rows, width))

    def encode(features, _):
        return network.encode_features(weights, features)

    def prior(place):
        keys = priors.spot_keys(problem.KEY, jnp.zeros_like(place), place)
        return priors.sample(arrays.prior, keys)

    def edge_features(geometry, mask):
        return map_tiles(functools.partial(network.encode_frames, layer), geometry, mask)

    def halo_rows(h, y, halo):
        return h[halo], y[halo]

    def block(all_h, all_y, h, y, tiles):
        halo = halo_rows(all_h, all_y, tiles.halo)
        run = functools.partial(network.block, layer)
        return run_tiles(run, h, y, *halo, tiles.geometry, tiles.senders, tiles.mask)

    chunks = len(encoded.chunks)
    yield by_chunks("tokens", 1, encode, chunks, (features,), (encoded.place,))
    yield by_chunks("prior draw", 1, prior, chunks, (), (encoded.place,))
    yield by_chunks(
        "block: its edge features", every, edge_features, chunks, (), (tiles.geometry, tiles.mask)
    )
    yield by_chunks("block: its halo rows", every, halo_rows, chunks, (h, y), (tiles.halo,))
    yield by_chunks("block", every, block, chunks, (h, y), (h, y, tiles))


def by_chunks(
    name: str, times: int, function: Callable, chunks: int, whole: tuple, split: tuple
) -> Stage:
    """A stage that gives a function `whole`, then equal runs of the leading axes of `split`."""
    compiled = jax.jit(function)

    def of_chunk(i):
        def run_of(a):
            size = len(a) // chunks
            return a[i * size : (i + 1) * size]

        return jax.tree.map(run_of, split)

    def run():
        for i in range(chunks):
            jax.block_until_ready(compiled(*whole, *of_chunk(i)))

    first = of_chunk(0)
    flops = matmul_flops(function, *whole, *first)
    traffic = _bytes(first) + _bytes(jax.eval_shape(function, *whole, *first))
    return Stage(name, run, times, chunks * flops, chunks * traffic)


# Parts of a block, on the tiles of one chunk.


def block_parts(flow: STFlow, params, encoded) -> list[Stage]:
    """The block on edge features that are at hand; then what it does, step by step."""
    network = flow.network
    layer = network.layers(params["flow"])[0]
    tiles = encoded.chunks[0]
    n, d, receivers = tiles.size, network.width, jnp.arange(tiles.size)[:, None]

    def with_halo(a):
        own = a[: encoded.chunk_rows].reshape(tiles.num_tiles, n, -1)
        return jnp.concatenate([own, a[tiles.halo]], axis=1)

    def split(x):
        return x.reshape(*x.shape[:-1], network.heads, d // network.heads)

    def apply(module, name, *inputs):
        return module.apply({"params": layer.block[name]}, *inputs)

    def block(h, y, features, senders, mask):
        return network.block(layer, h, y, features, Edges(senders, receivers, mask), n)

    def queries_keys_values(h):
        return tuple(map(split, apply(QueryKeyValue(), "qkv", apply(LayerNorm(), "norm", h), n)))

    def logits_of(q, k, features, y, senders, mask):
        edges = Edges(senders, receivers, mask)
        return apply(AttentionLogits(), "logits", q, k, features, y, edges)

    def weighted_sums(logits, v, frames, senders, mask):
        sums = attend(logits, v, split(frames), Edges(senders, receivers, mask), n)
        return jnp.concatenate([a.reshape(n, d) for a in sums], axis=-1)

    made: list[Stage] = []

    def step(name, function, *inputs):
        # The mask is an argument: were it known to be full, XLA would drop the branch around a
        # tile, and with it what keeps the code fast (see map_tiles).
        mapped = functools.partial(_over_tiles, function)
        compiled, inputs = jax.jit(mapped), (tiles.mask, *inputs)
        result = jax.block_until_ready(compiled(*inputs))
        made.append(
            Stage(
                name,
                lambda: jax.block_until_ready(compiled(*inputs)),
                1,
                matmul_flops(mapped, *inputs),
                _bytes((inputs, result)),
            )
        )
        return result

    h, y, edges = with_halo(encoded.tokens), with_halo(encoded.mean), (tiles.senders, tiles.mask)
    encode = functools.partial(network.encode_frames, layer)
    features = jax.jit(network.encode_layer)(layer, tiles)
    step("block, edge features kept", block, h, y, features, *edges)
    step("its edge features, where not kept", encode, tiles.geometry)
    q, k, v = step("queries, keys, values", queries_keys_values, h)
    logits = step("logits", logits_of, q, k, features, y, *edges)
    message = step("weighted sums", weighted_sums, logits, v, features.frames, *edges)
    step("mix", lambda m: apply(SwiGLU(d, d), "mix", m), message)
    step("feed-forward", lambda h: apply(SwiGLU(4 * d, d), "feed_forward", h), h[:, :n])
    head = ExpressionHead(network.num_genes, network.zero_init)
    step("expression head", lambda h: apply(head, "head", h), h[:, :n])
    return made


def _over_tiles(function: Callable, mask: jax.Array, *inputs):
    return map_tiles(lambda each: function(*each), inputs, mask)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = harness.parser("breakdown", __doc__.splitlines()[0], SIZES)
    parser.add_argument("--matmul", type=int, default=MATMUL, help="side of the machine's product")
    parser.add_argument("--copy", type=int, default=COPY, help="floats of the machine's addition")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
