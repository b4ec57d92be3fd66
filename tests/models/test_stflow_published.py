"""The published STFlow is itself whatever the config says of ours, and trains beside it."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny

from stfm_jax.models import table
from stfm_jax.models.method import Genes, Section
from stfm_jax.models.stflow.flow import STFlow
from stfm_jax.nn.stflow_net import STFlowNet
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.runtime.files import read_csv
from stfm_jax.train.stages import Run, TrainSettings

# Fields of `model` and others that make ours the published one.
FLAGS = {
    "model__expression": "differences",
    "model__anchor": "none",
    "model__token_context": False,
    "model__frames": "pca",
    "model__time_scale": 1.0,
    "model__feature_noise": 0.0,
    "model__feature_dropout": 0.0,
    "model__image_weight": 0.0,
    "model__width": 128,
    "model__blocks": 4,
    "model__heads": 4,
    "model__neighbors": 8,
    "model__context": (9, 25, 60),
    "model__components": 256,
    "prior": "zinb_scalar",
    "train__loss_weight": "data",
}


def published(**overrides):
    return table.build("stflow_published", tiny.config(**overrides))


def test_it_is_the_published_network_and_loss():
    flow = published().settings.flow(50)
    network = STFlowNet(
        50, width=128, num_blocks=4, heads=4, dropout=0.2, expression="differences",
        frames="pca", time_scale=1.0, zero_init=False,
    )  # fmt: skip
    expected = STFlow(
        network, anchor="none", prior="zinb_scalar", token_context=False, loss_weight="data",
        neighbors=8, evaluations=5, image_weight=0.0,
    )  # fmt: skip
    same = {"tile": expected.tile, "edge_cache": expected.edge_cache}
    assert dataclasses.replace(flow, **same) == expected
    shapes = jax.eval_shape(lambda: flow.network.init(jax.random.key(0), 1024))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 1_147_724


@pytest.mark.parametrize(
    "changed",
    [FLAGS, {"model__width": 32, "model__neighbors": 6, "prior": "zero", "model__anchor": "ridge"}],
)
def test_fields_of_ours_do_not_change_it(changed):
    assert published(**changed) == published()
    assert published(data__normalization="log1p_cp10k") != published()
    names = {field.split("__")[-1] for field in changed}
    assert not names & {field.split(".")[-1] for field in published().fields()}


@pytest.mark.slow
def test_it_shares_nothing_with_ours_set_to_the_same(tmp_path):
    """Neither the folder nor, through `once`, what was trained: the optimizer is another."""
    sections = tiny.slides(3)
    genes = tuple(map(str, sections[0].genes[:6]))
    config = tiny.config(**FLAGS, train__epochs=1, train__select=False, model__targets=9)
    shared, params = {}, {}
    for name in ("stflow", "stflow_published"):
        method = table.build(name, config)
        run = Run(tmp_path / name, name, 0, make_mesh(1), TrainSettings.of(config), shared=shared)
        fitted = method.fit([Section(s) for s in sections], Genes(genes, genes), run)
        params[name] = fitted.params
        (row,) = read_csv(tmp_path / name / "refit" / "history.csv")
        assert row["epoch"] == "0" or row["epoch"] == "1"
    assert method.settings.flow(6) == table.build("stflow", config).settings.flow(6)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), *params.values())
    assert max(jax.tree.leaves(apart)) > 1e-4


@pytest.mark.slow
def test_beside_ours_in_one_workdir(tmp_path):
    """Ours may be changed under it: another row's settings are not its own."""
    data = tiny.write(tmp_path / "data", tiny.slides(3))
    fields = {"data__dir": str(data), "train__epochs": 1, "train__select": False, "fold": 0}
    both = tiny.config(methods=("stflow_published", "stflow"), **fields)
    alone = tiny.config(methods=("stflow_published",), **{**fields, "model__width": 24})
    assert tiny.run(alone, tmp_path / "work") == 0
    before = tiny.contents(tiny.place(tmp_path / "work", 0, "stflow_published"))
    assert tiny.run(both, tmp_path / "work") == 0
    assert tiny.contents(tiny.place(tmp_path / "work", 0, "stflow_published")) == before
    found = json.loads((tmp_path / "work" / "metrics.json").read_text())
    rows = ["stflow_published", "stflow_published_draw", "stflow", "stflow_draw"]
    assert list(found["methods"]) == rows
    assert "stflow_published - stflow" in found["comparisons"]
    points = tiny.points(tmp_path / "work", 0)
    assert np.abs(points["stflow"] - points["stflow_published"]).max() > 0.01
    history = read_csv(tmp_path / "work" / "history.csv")
    assert {row["method"] for row in history} == {"stflow", "stflow_published"}
