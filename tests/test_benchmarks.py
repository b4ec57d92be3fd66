"""The benchmarks run, at sizes that measure nothing: rows, fields, and how workers are driven."""

import importlib
import json
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optional
import pytest
import tiny

from stfm_jax.encoders import stain_texture
from stfm_jax.models import regression, strangers
from stfm_jax.models.regression import RegressionSettings

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"
SMALL = ["--features=16", "--genes=6", "--width=8", "--blocks=1", "--repeats=1"]
# What scripts outside the project read of every row.
FIELDS = {
    "what", "impl", "n", "devices", "seconds", "spots_per_second", "peak_gib", "evaluations",
    "device", "jax", "commit",
}  # fmt: skip


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark as `python benchmarks/NAME.py` does."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture
def harness(load):
    return load("harness")


@pytest.fixture
def rows_of(load, harness, monkeypatch, tmp_path):
    """Runs a benchmark with its workers in this process, which has everything imported."""

    class Here:
        def __init__(self, script, order):
            self.order = order
            self._job = load(pathlib.Path(script).stem).job(order)

        def run(self):
            return harness.run(self._job)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(harness, "Worker", Here)

    def run(name, *arguments):
        json_file, figure = tmp_path / "rows.jsonl", tmp_path / "figure.png"
        load(name).main([*arguments, *SMALL, f"--json={json_file}", f"--figure={figure}"])
        assert figure.stat().st_size > 1000
        rows = [json.loads(line) for line in json_file.read_text().splitlines()]
        assert all(row.keys() >= FIELDS and row["seconds"] > 0 for row in rows)
        return rows

    return run


def which(rows, *fields):
    return {tuple(row[field] for field in fields) for row in rows}


@pytest.mark.parity
@pytest.mark.slow
def test_spots_per_second(rows_of, capsys):
    optional.torch()
    impl = "stfm,stfm_recomputed,reference,reference_kdtree"
    rows = rows_of("spots_per_second", "--what=inference", "--n=40", f"--impl={impl}")
    assert which(rows, "what", "impl", "n", "evaluations") == {
        ("inference", name, 40, 5) for name in impl.split(",")
    }
    (ours,) = (row for row in rows if row["impl"] == "stfm")
    assert ours["over_reference"] > 0 and ours["over_reference_kdtree"] > 0
    printed = capsys.readouterr().out
    assert "same weights, 40 spots" in printed and "over_reference_kdtree" in printed


def test_competitors_of_a_size(load):
    script = load("spots_per_second")
    options = script._options(["--devices=1,2"])

    def at(what, n):
        return which(script._orders(what, n, options), "impl", "devices")

    both = {("stfm", 1), ("stfm", 2)}
    references = {("reference", 1), ("reference_kdtree", 1)}
    assert at("train", 10_000) == both | references
    assert at("train", 100_000) == both
    assert at("inference", 10_000) == both | references | {("stfm_recomputed", 1)}
    assert at("inference", 1_000_000) == {("stfm", 1)}


@pytest.mark.parity
@pytest.mark.slow
def test_a_training_step_of_the_reference(load):
    optional.torch()
    sizes = {"features": 16, "genes": 6, "width": 8, "blocks": 1}
    order = {"what": "train", "impl": "reference_kdtree", "n": 40, "devices": 1, **sizes}
    step = load("spots_per_second").job(order)
    facts = [step() for _ in range(20)][-1]
    assert facts["evaluations"] == 1 and 0 < facts["losses"][-1] < facts["losses"][0]


def test_outputs_that_differ_are_refused(load, harness, monkeypatch):
    facts = {"difference": 1e-6, "loss_difference": 2e-3, "gradient_difference": 0.0}
    worker = mock.MagicMock()
    worker.return_value.__enter__.return_value.run.return_value = facts
    monkeypatch.setattr(harness, "Worker", worker)
    with pytest.raises(RuntimeError, match="ours and the reference differ"):
        load("spots_per_second").check_agreement({"n": 40})
    attention = load("attention")
    with pytest.raises(RuntimeError, match="the forms differ at 40 spots"):
        attention.check_outputs(
            [{"n": 40, "impl": i, "output": o} for i, o in ((1, 1.0), (2, 2.0))]
        )


@pytest.mark.slow
def test_attention(rows_of):
    forms = ("tiled", "dense")
    rows = rows_of("attention", "--n=40", f"--impl={','.join(forms)}")
    passes = ("forward", "forward_backward")
    assert which(rows, "what", "impl") == {(a, b) for a in passes for b in forms}
    assert all(row["temporary_gib"] > 0 for row in rows)


def test_dense(rows_of):
    (row,) = rows_of("dense", "--n=400")
    assert row["rows"] == 400
    assert row["seconds_600k"] == pytest.approx(row["seconds"] * 1500)


def test_embed(rows_of):
    rows = rows_of("embed", "--n=3", "--what=stain_texture,lunit-s16", "--impl=stfm")
    assert which(rows, "what", "impl", "n", "width") == {
        ("stain_texture", "stfm", 3, len(stain_texture.feature_names())),
        ("lunit-s16", "stfm", 3, 384),
    }


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("what", ["efficientnet_lite0", "resnet18-ciga", "h0-mini"])
def test_embed_as_torch_does(rows_of, what):
    optional.timm()
    rows = rows_of("embed", "--n=2", f"--what={what}")
    assert which(rows, "impl") == {("stfm",), ("torch",)}
    assert all(row["difference"] < 1e-3 and row["over_torch"] > 0 for row in rows)


def test_other_features_than_torchs_are_refused(load):
    rows = [{"what": "uni", "impl": i, "output": [o, 0.0]} for i, o in (("stfm", 1), ("torch", 2))]
    with pytest.raises(RuntimeError, match=r"uni: ours and torch's differ by 1\.0e\+00"):
        load("embed").compare(rows)


def test_linear_attention(rows_of):
    rows = rows_of("linear_attention", "--n=16,64")
    forms = {"linear", "softmax"}
    assert which(rows, "impl", "n") == {(form, n) for form in forms for n in (16, 64)}
    assert which(rows, "what", "width") == {("forward", 8)}
    assert all((row["slope"] is None) == (row["n"] == 16) for row in rows)


@pytest.mark.slow
def test_the_parts_of_gated(load):
    """Two of its rows are what the library predicts; every variant is another prediction."""
    parts = load("strangers")
    *train, test = tiny.slides()
    settings = RegressionSettings(components=tiny.WIDTH, context=(9,))
    genes = train[0].genes[:6]
    found = {
        name: parts.of_far(far, settings, train, [test], genes, 0)[0]
        for name, far in parts.VARIANTS.items()
    }
    seen = regression.seen_of(settings, train, genes, True, 0)
    fitted = strangers.fit(train, seen, ("kernel", "ridge"))
    far = strangers.far_mean(fitted, seen.transform, test, (1.0,))
    np.testing.assert_allclose(found["far"], far, atol=1e-4)
    for name, values in found.items():
        assert name == "far" or np.abs(values - found["far"]).max() > 1e-3, name


def test_memory(load, rows_of, monkeypatch):
    monkeypatch.setattr(load("memory"), "BASELINE", 40)
    rows = rows_of("memory", "--n=40", "--impl=stfm,stfm_recomputed")
    assert which(rows, "what", "impl", "n") == {
        ("inference", "stfm", 40),
        ("inference", "stfm_recomputed", 40),
        ("train", "stfm", 40),
    }
    assert all(row["peak_gib"] >= row["baseline_gib"] > 0 for row in rows)
    (training,) = (row for row in rows if row["what"] == "train")
    assert 0 < training["last_loss"] < training["first_loss"]


@pytest.mark.slow
def test_breakdown(rows_of):
    rows = rows_of("breakdown", "--n=40", "--matmul=64", "--copy=1024")
    names = which(rows, "what", "impl")
    assert names >= {("prediction", name) for name in ("preparation", "draw", "prediction")}
    assert names >= {("stage", name) for name in ("kNN graph", "tiling", "prior draw", "block")}
    assert names >= {
        ("part", name) for name in ("block, edge features kept", "logits", "weighted sums")
    }
    assert all(row["of_matmul"] > 0 for row in rows if row["impl"] == "block")


@pytest.mark.slow
def test_accelerator(rows_of, tmp_path, capsys):
    rows = rows_of("accelerator", "--n=40", "--tile=64", f"--traces={tmp_path}")
    both = {"float32", "bfloat16"}
    assert which(rows, "what", "n", "precision") == {
        ("rates", 0, "float32"),
        *(("cost", 64, precision) for precision in both),
        *((what, 40, precision) for what in ("inference", "train") for precision in both),
        ("trace", 40, "float32"),
    }
    for row in rows:
        if row["what"] in ("inference", "train"):
            assert min(row[name] for name in ("of_bandwidth", "of_matmul", "kernels")) > 0
            assert row["preparation_seconds"] > 0 and row["compile_seconds"] > 0
        if row["what"] == "trace":
            assert row["ops"] and row["busy_seconds"] > 0
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 2
    assert "this is a CPU" in capsys.readouterr().out


@pytest.mark.slow
def test_volume(load, rows_of):
    (row,) = rows_of("volume", "--sections=4", "--spots=100", "--epochs=1")
    assert row["n"] == 400 and row["error_um"] < 100
    assert all(row[f"{stage}_s"] > 0 for stage in ("registration", "fit", "epoch"))
    assert -1 <= row["consistency"] <= 1 and -1 <= row["holotea"] <= 1


def test_matrix_products_are_counted(load):
    def function(x):
        def body(carry, _):
            return carry @ x, None

        y, _ = jax.lax.scan(body, x, None, length=5)
        return jax.lax.cond(y.sum() > 0, jax.checkpoint(lambda a: a @ a), lambda a: a, y)

    flops = load("breakdown").matmul_flops(jax.jit(function), jnp.ones((8, 8)))
    assert flops == 6 * 2 * 8**3


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import harness
def make(order):
    print("this is no answer")
    if order["n"] < 0:
        raise ValueError("negative")
    return lambda: {{"twice": 2 * order["n"]}}
harness.entry(lambda: None, make)
"""


def test_workers(harness, tmp_path):
    """Processes of their own, run in turn."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(folder=str(FOLDER)))
    orders = [{"what": "test", "impl": "x", "n": n, "devices": 1} for n in (1, 2)]
    rows = harness.measure(str(script), orders, repeats=3)
    assert [row["twice"] for row in rows] == [2, 4]
    assert all(len(row["all_seconds"]) == 3 and 0 < row["peak_gib"] < 1 for row in rows)
    with pytest.raises(RuntimeError, match=r"'n': -1.* ended with 1"):
        harness.measure(str(script), [{**orders[0], "n": -1}], repeats=1)


def test_a_worker_that_takes_too_long_is_stopped(harness, tmp_path):
    script = tmp_path / "script.py"
    sleeping = SCRIPT.replace('"twice": 2 * order["n"]', '"slept": __import__("time").sleep(600)')
    script.write_text(sleeping.format(folder=str(FOLDER)))
    order = {"what": "test", "impl": "x", "n": 600, "devices": 1}
    with pytest.raises(RuntimeError, match="ended with -9"):
        harness.measure(str(script), [order], repeats=1, limit=2.0)


def test_devices_of_a_worker(harness, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    two, one = harness.environment(2), harness.environment(1)
    assert two["XLA_FLAGS"] == "--xla_dump_to=x --xla_force_host_platform_device_count=2"
    assert two["CUDA_VISIBLE_DEVICES"] == "4,5" and one["CUDA_VISIBLE_DEVICES"] == "4"
    assert one["XLA_FLAGS"] == "--xla_dump_to=x"


def test_slope(harness):
    assert harness.slope([10, 100], [3.0, 300.0]) == pytest.approx(2.0)
    sizes = [1_000, 10_000, 100_000]
    assert harness.slope(sizes, [9.0, 1.0, 10.0]) == pytest.approx(1.0)  # from 10,000 on
    assert harness.slope([10], [1.0]) is None


def test_table(harness):
    rows = [{"n": 1000, "seconds": 0.0123456}, {"n": 5}]
    assert harness.table(rows, ("n", "seconds")).splitlines() == [
        "    n  seconds",
        "1,000   0.0123",
        "    5        -",
    ]


def test_unknown_choices_are_refused(load, capsys):
    with pytest.raises(SystemExit):
        load("spots_per_second").main(["--impl=torch"])
    assert "expected some of stfm" in capsys.readouterr().err


@pytest.mark.slow
def test_split(rows_of):
    rows = rows_of("split", "--n=100,200")
    assert [row["n"] for row in rows] == [100, 200]
    assert all(0 < row["macs_a_pair"] < 20_000 and row["held_gib"] >= 0 for row in rows)
