"""The workers of accelerator.py: what is timed on the one device there is, and what it reaches."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import problem
import profiled
import traffic
from harness import Job, Row
from ready import Ready, Training, ready_to_draw

from stfm_jax.nn.mlp import PRECISIONS, matmul

PRODUCT, TRIAD = 8_192, 1 << 28  # side of a product, floats of an array
ON_CPU = 1_024, 1 << 24
QUEUED = 4  # runs under way at once, so that starting them does not show
NO_ROOM = "does not fit in memory"


def job(order: Row) -> Job:
    """What a worker runs; where memory does not suffice its facts say so."""
    made: list[Job] = []

    def run() -> Row:
        try:
            if not made:
                made.append(MAKERS[order["what"]](order))
            facts = made[0]()
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(error, file=sys.stderr)
            made[:] = [lambda: {"failed": NO_ROOM}]
            facts = made[0]()
        return {"platform": jax.devices()[0].platform, **facts}

    return run


def rates(order: Row) -> Job:
    """Bytes a second of a triad; operations a second of matrix products as the network makes them.

    `matmul_highest` is a float32 product of which nothing is rounded, where the default may be.
    """
    side, floats = ON_CPU if jax.default_backend() == "cpu" else (PRODUCT, TRIAD)

    def product(precision: str) -> float:
        a = jnp.ones((side, side))
        return 2.0 * side**3 / _queued(functools.partial(matmul, dtype=precision), a, a)

    def measured() -> Row:
        x = jnp.ones(floats)
        facts = {"bandwidth": 12.0 * floats / _queued(lambda x, y: x + 0.5 * y, x, 2.0 * x)}
        facts |= {f"matmul_{precision}": product(precision) for precision in PRECISIONS}
        with jax.default_matmul_precision("highest"):
            facts["matmul_highest"] = product("float32")
        return {"evaluations": None, **facts, **problem.jax_facts()}

    return functools.cache(measured)


def _queued(function: Callable, *inputs: jax.Array) -> float:
    """Seconds of a run of a function among several."""
    compiled = jax.jit(function)

    def runs():
        jax.block_until_ready([compiled(*inputs) for _ in range(QUEUED)])

    return harness.timed(runs, 3) / QUEUED


def costs(order: Row) -> Job:
    """What an evaluation in all its forms, or a step, is compiled to; `parts`, a row each."""

    def measured() -> Row:
        if order["impl"] == "step":
            training, prepared = _training(order, tile=order["n"])
            parts = [traffic.step_cost(order, training, training.batch(prepared))]
        else:
            parts = [
                traffic.evaluation_cost({**order, "precision": precision}, kept)
                for precision in PRECISIONS
                for kept in traffic.FORMS
            ]
        return {"evaluations": 1, "parts": parts, **problem.jax_facts()}

    return functools.cache(measured)


def inference(order: Row) -> Job:
    """Draws of a slide that is prepared in the first two runs, of which the first compiles."""
    flow, prepared = traffic.own_flow(order), problem.slide(order)
    arrays, params = problem.flow_arrays(order["genes"]), problem.weights(flow, order)
    cache = problem.CACHES.get(order["impl"])
    spent: list[float] = []
    ready: Ready | None = None

    def prepare():
        nonlocal ready
        ready = None  # what it holds goes first
        ready = ready_to_draw(flow, params, arrays, prepared, 1, cache)

    def run() -> Row:
        if len(spent) < 2:
            spent.append(_seconds(prepare))
        five, one = (
            _seconds(functools.partial(ready.draw, evaluations))
            for evaluations in (problem.EVALUATIONS, 1)
        )
        return {
            "seconds": five,
            "one_evaluation_seconds": one,
            "preparation_seconds": spent[-1],
            "evaluations": problem.EVALUATIONS,
            "tiles": ready.tiles,
            "rows": ready.tiles * ready.tile,
            "edges": "kept" if ready.edges_kept else "recomputed",
            **problem.jax_facts(),
        }

    return run


def train(order: Row) -> Job:
    """Steps on a slide, its batch made anew each time as a fit does."""
    training, prepared = _training(order)
    cost: Row = {}

    def run() -> Row:
        started = time.perf_counter()
        batch = training.batch(prepared)
        preparation = time.perf_counter() - started
        seconds = _seconds(lambda: training.step(batch))
        facts = problem.jax_facts()
        if not cost:  # after the step, whose compilation it finds in the cache
            cost.update(traffic.step_cost(order, training, batch))
        return {
            **cost,
            **order,
            "seconds": seconds,
            "preparation_seconds": preparation,
            "rows": len(batch.place),
            **facts,
        }

    return run


def _training(order: Row, **changes):
    """Weights in training, and a slide to train on."""
    flow = traffic.own_flow(order, **changes)
    training = Training(flow, problem.flow_arrays(order["genes"]), order)
    return training, problem.slide({**order, "what": "train"})


def trace(order: Row) -> Job:
    """A profile of one draw or one step, after two that compile."""
    folder = Path(order["folder"]) / f"{order['impl']}_{order['n']}_{order['precision']}"
    traced = MAKERS[order["impl"]]({**order, "what": order["impl"], "impl": "stfm"})

    def measured() -> Row:
        traced()
        traced()
        with jax.profiler.trace(folder):
            facts = traced()
        return {
            "seconds": facts["seconds"],
            "evaluations": facts["evaluations"],
            **profiled.kernels(folder),
            **problem.jax_facts(),
        }

    return functools.cache(measured)


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


MAKERS = {"rates": rates, "cost": costs, "inference": inference, "train": train, "trace": trace}
