"""What benchmarks/accelerator.py says of compiled programs, and how it spends its time."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"
SMALL = {"features": 16, "genes": 6, "width": 8, "blocks": 1, "precision": "float32"}


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark as `python benchmarks/NAME.py` does."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def compiled_of(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def test_bytes_agree_with_xlas_where_nothing_loops(load):
    compiled = load("compiled")
    program = compiled_of(lambda x: jnp.tanh(x @ x.T).sum(axis=1) + x[:, 0], jnp.ones((256, 64)))
    found = compiled.kernels(program.as_text())
    assert compiled.moved(found) == pytest.approx(compiled.cost(program)["bytes"], rel=0.05)
    assert compiled.launched(found) >= 2


def test_what_a_loop_runs_counts_every_time(load):
    compiled = load("compiled")
    x = jnp.ones((64, 64))

    def function(length):
        def repeated(x):
            y, _ = jax.lax.scan(lambda y, _: (jnp.sin(y @ x), None), x, None, length=length)
            return y

        return compiled.kernels(compiled_of(repeated, x).as_text())

    few, many = function(5), function(50)
    each = 3 * x.nbytes  # of the product alone
    assert compiled.moved(many) - compiled.moved(few) >= 45 * each
    assert compiled.launched(many) >= compiled.launched(few) + 45
    (name, times, size), *_ = compiled.largest(many, 3)
    assert times >= 50 and size >= 50 * x.nbytes and "f32[64,64]" in name


def test_of_what_is_gathered_or_written_in_place_a_part_counts(load):
    compiled = load("compiled")
    text = """
%inside (a: f32[1000,4], i: s32[8,1]) -> f32[8,4] {
  %a = f32[1000,4]{1,0} parameter(0)
  %i = s32[8,1]{1,0} parameter(1)
  ROOT %g = f32[8,4]{1,0} gather(%a, %i), offset_dims={1}
}

ENTRY %main (x: f32[1000,4], i: s32[8,1]) -> f32[1000,4] {
  %x = f32[1000,4]{1,0} parameter(0)
  %i.1 = s32[8,1]{1,0} parameter(1)
  %f = f32[8,4]{1,0} fusion(%x, %i.1), kind=kLoop, calls=%inside, metadata={op_name="jit(f)/a/b"}
  %c = (bf16[8,4]{1,0}, s8[4096]{0}) custom-call(%f), custom_call_target="product"
  ROOT %u = f32[1000,4]{1,0} dynamic-update-slice(%x, %f, %i.1)
}
"""
    gathered, product, updated = compiled.kernels(text)
    assert (gathered.read, gathered.written) == (8 * 4 * 4 + 8 * 4, 8 * 4 * 4)
    assert (product.read, product.written) == (8 * 4 * 4, 8 * 4 * 2)
    assert (updated.read, updated.written) == (8 * 4 * 4, 8 * 4 * 4)
    assert compiled.largest([gathered], 1) == [("a/b f32[8,4]", 1, 288.0)]


def test_bytes_of_an_evaluation_grow_with_the_spots(load):
    traffic = load("traffic")

    def total(n, kept=False):
        row = traffic.evaluation_cost({"what": "cost", "n": n, "devices": 1, **SMALL}, kept)
        assert row["bytes"] > 0 and row["flops"] > row["matmul_flops"] > 0 and row["kernels"] > 10
        return n * row["bytes_moved"]

    small, double, fourfold = (total(n) for n in (256, 512, 1024))
    assert 0 < small < double < fourfold
    assert fourfold - double == pytest.approx(2 * (double - small), rel=0.15)
    assert total(512, kept=True) < double


def test_by_hand(load):
    traffic = load("traffic")
    sizes = {"width": 128, "genes": 50, "heads": 4}
    totals = [
        sum(traffic.by_hand(**sizes, blocks=4, degree=8, edges=edges).values())
        for edges in ("recomputed", "kept", "fused")
    ]
    assert totals[0] > totals[1] > totals[2] > 0
    fewer = traffic.by_hand(**sizes, blocks=2, degree=8, edges="kept")
    assert sum(fewer.values()) == totals[1] / 2
    assert fewer["edges: frames [K, 128]"] == 2 * 4 * 8 * 128
    assert traffic.most_spots(400e3, 2e12) == pytest.approx(1e6)
    assert "the aim takes 100% of it" in traffic.allowed(400e3)
    assert traffic.allowed(1e6).count("is out of reach") == 2


def test_what_there_is_no_time_for_says_so(load):
    accelerator = load("accelerator")
    orders = [
        {"what": "train", "impl": name, "n": n, "precision": "float32"}
        for name, n in (("a", 1_000), ("b", 1_000_000), ("c", 1_000))
    ]
    now, given = [100.0], []

    def measured(order, seconds):
        given.append((order["impl"], seconds))
        now[0] += 50.0
        return [{**order, "seconds": 1.0}]

    rows = list(accelerator.within(orders, 120.0, measured, clock=lambda: now[0]))
    assert given == [("a", 120.0), ("c", 70.0)]
    assert [[row.get("failed") for row in made] for made in rows] == [
        [None], [accelerator.NO_TIME], [None]
    ]  # fmt: skip
    (left_out,) = rows[1]
    assert left_out["seconds"] is None and left_out["n"] == 1_000_000
    assert "train b, 1,000,000 spots, float32: left out for time" in accelerator.said(
        [{**row, "device": None} for (row,) in rows]
    )


def test_the_rows_that_matter_come_first(load):
    accelerator = load("accelerator")

    def planned(*arguments):
        orders = accelerator.plan(accelerator._options(arguments))
        return [(o["what"], o["impl"], o["n"], o["precision"]) for o in orders]

    every = planned()
    assert every[:5] == [
        ("rates", "machine", 0, "float32"),
        ("cost", "evaluation", 16_384, "float32"),
        ("inference", "stfm", 100_000, "float32"),
        ("inference", "stfm", 100_000, "bfloat16"),
        ("trace", "inference", 100_000, "float32"),
    ]
    assert {n for what, _, n, _ in every if what == "inference"} == {10**k for k in (3, 4, 5, 6)}
    assert {n for what, _, n, _ in every if what == "train"} == {200, 10**3, 10**4, 10**5}
    assert [o for o in every if o[0] == "trace"][1:] == [("trace", "train", 10_000, "float32")]
    assert {o[:2] for o in planned("--what=cost")} == {("cost", "evaluation"), ("cost", "step")}
    assert planned("--what=train", "--n=7,1000", "--precision=float32")[1:] == [
        ("train", "stfm", 1_000, "float32"),
        ("train", "stfm", 7, "float32"),
    ]


def test_what_does_not_fit_is_a_row(load, monkeypatch):
    card = load("card")

    def too_large(order):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setitem(card.MAKERS, "train", too_large)
    run = card.job({"what": "train"})
    assert [run()["failed"] for _ in range(2)] == [card.NO_ROOM] * 2

    def wrong(order):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setitem(card.MAKERS, "train", wrong)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        card.job({"what": "train"})()


def test_the_longest_kernels(load):
    found = load("profiled").longest([("a", 1.0), ("b", 5.0), ("a", 2.0)])
    assert found["busy_seconds"] == 8.0 and found["kernels_run"] == 3
    assert [(op["kernel"], op["times"], op["seconds"]) for op in found["ops"]] == [
        ("b", 1, 5.0), ("a", 2, 3.0)
    ]  # fmt: skip
