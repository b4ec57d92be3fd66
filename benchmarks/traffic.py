"""What an evaluation of STFlow, and a training step, move through memory: as compiled, and by hand.

The compiled program is that of whatever device JAX has: a CPU's is fused otherwise than a GPU's.
By hand it is what any compiler that fuses every elementwise chain still moves, matrix products
being kernels of their own. Both are of one tile, whose rows all hold spots, without ties among the
neighbours. Divided by a card's bandwidth they say how many spots a second it can do at most.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import breakdown
import compiled
import jax
import jax.numpy as jnp
import problem
from harness import Row
from ready import Training

from stfm_jax.models.stflow.flow import STFlow
from stfm_jax.models.stflow.settings import STFlowSettings
from stfm_jax.nn.blocks import LOGIT_WIDTH
from stfm_jax.nn.stflow_net import STFlowNet
from stfm_jax.ops.frames import EdgeGeometry
from stfm_jax.ops.tiles import Tiles
from stfm_jax.train import state

FORMS = {False: "edges recomputed", True: "edges kept"}
FRAME_HIDDEN = 64  # inner width of the frames' MLP, behind its gate
HALO = 32  # rows of a made-up tile's halo
LARGEST = 6  # arrays that are named
FLOAT = 4  # bytes
# Data sheets' bytes a second, of a class of cards.
CARDS = {"2 TB/s (A100 80 GB, H100 PCIe)": 2.0e12, "3.35 TB/s (H100 SXM)": 3.35e12}
AIM = 1_000_000  # spots a second, of draws in problem.EVALUATIONS evaluations


def own_flow(order: Row, **changes: Any) -> STFlow:
    """STFlow in our form, by the defaults of its settings; `precision` of its products."""
    settings = STFlowSettings(
        width=order["width"], blocks=order["blocks"], precision=order["precision"]
    )
    return dataclasses.replace(settings.flow(order["genes"]), **changes)


# As compiled.


def evaluation_cost(order: Row, kept: bool) -> Row:
    """One network evaluation of a tile of n spots, from its shapes: `cost_of`."""
    network = own_flow(order).network
    inputs = evaluation_inputs(network, order["n"], order["features"], kept)
    started = time.perf_counter()
    program = jax.jit(network.denoise).lower(*inputs).compile()
    facts = cost_of(program, order["n"], time.perf_counter() - started)
    return {
        **order,
        "impl": f"evaluation, {FORMS[kept]}",
        "evaluations": 1,
        "matmul_flops": breakdown.matmul_flops(network.denoise, *inputs) / order["n"],
        **facts,
    }


def evaluation_inputs(network: STFlowNet, n: int, features: int, kept: bool) -> tuple:
    """Shapes of the arguments of `STFlowNet.denoise` for one tile of n spots."""
    k, float32 = STFlow.neighbors, jnp.float32

    def array(*shape, kind=float32):
        return jax.ShapeDtypeStruct(shape, kind)

    offset, scalar = array(1, n, k, 2), array(1, n, k)
    tiles = Tiles(
        halo=array(1, HALO, kind=jnp.int32),
        senders=array(1, n, k, kind=jnp.int32),
        mask=array(1, n, k, kind=bool),
        geometry=EdgeGeometry(offset, offset, scalar, scalar),
    )
    params = jax.eval_shape(lambda key: network.init(key, features), jax.random.key(0))
    edges = jax.eval_shape(network.encode_edges, params, tiles) if kept else None
    state_and_time = array(n, network.num_genes), array()
    return params, *state_and_time, array(n, network.width), tiles, edges


def step_cost(order: Row, training: Training, batch) -> Row:
    """Loss and gradient of a batch: `cost_of` a row of it."""
    arguments = training.gradient_arguments(batch)
    started = time.perf_counter()
    program = state._sums.lower(*arguments).compile()
    facts = cost_of(program, len(batch.place), time.perf_counter() - started)
    flow, mesh, *arrays = arguments

    def sums(*arrays):
        return state._sums(flow, mesh, *arrays)

    flops = breakdown.matmul_flops(sums, *arrays) / len(batch.place)
    return {**order, "impl": "step", "evaluations": 1, "matmul_flops": flops, **facts}


def cost_of(program: Any, rows: int, seconds: float) -> Row:
    """Facts of a compiled program of so many rows; all but `kernels` are of one row.

    `bytes` and `flops` are XLA's count, a loop's body once; `bytes_moved` counts loops as often as
    they run.
    """
    found = compiled.kernels(program.as_text())
    named = compiled.largest(found, LARGEST)
    memory = program.memory_analysis()
    return {
        "seconds": seconds,
        **{name: value / rows for name, value in compiled.cost(program).items()},
        "bytes_moved": compiled.moved(found) / rows,
        "kernels": compiled.launched(found),
        "largest": [(name, times, size / rows) for name, times, size in named],
        "temporary_gib": getattr(memory, "temp_size_in_bytes", 0) / 2**30,
    }


# By hand.


def by_hand(
    width: int, genes: int, heads: int, blocks: int, degree: float, edges: str
) -> dict[str, float]:
    """Bytes of a spot in one float32 evaluation, by array: every write, and every read.

    What is gathered by several receivers is read once, as if the card's cache held a tile.

    Args:
      width: d.
      genes: g.
      heads: h.
      blocks: L.
      degree: edges of a spot.
      edges: "recomputed" in every evaluation, "kept" over them, or "fused": in one kernel from
        geometry to weighted sums, so that nothing of an edge is written.
    """
    d, g, hidden, k = width, genes, heads * LOGIT_WIDTH, degree
    geometry, logits = 6 * k, 2 * heads * k
    of_edges = {
        "recomputed": {
            "edges: geometry": geometry,
            "edges: hidden layer of the frames [K, 64]": 2 * FRAME_HIDDEN * k,
            f"edges: frames [K, {d}]": 3 * d * k,
            f"edges: frames' part of the logits [K, {heads}, {LOGIT_WIDTH}]": 2 * hidden * k,
            "edges: logits": logits,
        },
        "kept": {
            f"edges: frames [K, {d}]": d * k,
            f"edges: frames' part of the logits [K, {heads}, {LOGIT_WIDTH}]": hidden * k,
            "edges: logits": logits,
        },
        "fused": {"edges: geometry": geometry},
    }[edges]
    of_spots = {
        f"senders' and receivers' part of the logits [{heads}, {LOGIT_WIDTH}]": 4 * hidden,
        "expression's part of the logits": 3 * LOGIT_WIDTH,
        "tokens, normed; queries, keys, values": 3 * d + 6 * d,
        "message and mix": 9 * d,
        "feed-forward": 15 * d,
        "expression head": 5 * d + g,
        "expression and its sum": 6 * g,
    }
    return {name: FLOAT * blocks * floats for name, floats in {**of_edges, **of_spots}.items()}


def most_spots(bytes_of_evaluation: float, bandwidth: float) -> float:
    """Spots a second that a bandwidth allows for draws in problem.EVALUATIONS evaluations."""
    return bandwidth / (problem.EVALUATIONS * bytes_of_evaluation)


# What is said of both.


def summary(rows: Sequence[Row]) -> str:
    """Of the rows of evaluations and steps: the arrays that dominate, and what cards allow."""
    said = []
    for row in rows:
        said.append(
            f"{row['impl']}, {row['precision']}, a spot, compiled for {row['device']}: "
            f"{row['bytes_moved'] / 1e3:,.0f} kB ({row['bytes'] / 1e3:,.0f} by XLA's count), "
            f"{row['flops'] / 1e6:.2f} MFLOP, {row['matmul_flops'] / 1e6:.2f} of them in products; "
            f"{row['kernels']:,} kernels a tile of {row['n']:,}. Most is moved for:"
        )
        said += [f"  {size / 1e3:7.1f} kB  {name} ({n})" for name, n, size in row["largest"]]
        if row["impl"].startswith("evaluation"):
            said += [allowed(row["bytes_moved"]), arithmetic(row["flops"])]
    sizes = {"width": rows[0]["width"], "genes": rows[0]["genes"], "blocks": rows[0]["blocks"]}
    for edges in ("recomputed", "kept", "fused"):
        arrays = by_hand(**sizes, heads=STFlowNet.heads, degree=STFlow.neighbors, edges=edges)
        total = sum(arrays.values())
        said.append(f"an evaluation by hand, edges {edges}, a spot: {total / 1e3:,.0f} kB")
        ordered = sorted(arrays.items(), key=lambda item: -item[1])
        said += [f"  {size / 1e3:7.1f} kB  {name}" for name, size in ordered[:LARGEST]]
        said.append(allowed(total))
    return "\n".join(said)


def arithmetic(flops_of_evaluation: float) -> str:
    """The rate of operations that the aim takes, whatever is moved."""
    rate = AIM * problem.EVALUATIONS * flops_of_evaluation
    return f"  the aim takes {rate / 1e12:.1f} TFLOP/s"


def allowed(bytes_of_evaluation: float) -> str:
    """What cards could do were they never to wait, against the aim."""
    parts = []
    for card, bandwidth in CARDS.items():
        most = most_spots(bytes_of_evaluation, bandwidth)
        needs = f"takes {AIM / most:.0%} of it" if most >= AIM else "is out of reach"
        parts.append(f"{most / 1e6:.2f} million spots a second at {card}, the aim {needs}")
    return f"  at most {'; '.join(parts)}"
