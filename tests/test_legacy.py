"""Workdirs that earlier versions wrote predict as they did.

tests/legacy/ was written by commit 0c00b60: config.json, final/model and what went into prediction;
expected.npz is what it gave (compiled with JAX_DISABLE_MOST_OPTIMIZATIONS, as tests are).
"""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
import scipy.sparse as sp
import tiny

import stfm_jax as stfm
from stfm_jax import workdir as workdirs
from stfm_jax.data.readers.h5ad_elements import layer_names

LEGACY = tiny.REPOSITORY / "tests" / "legacy"
GIVEN = {
    "stflow": {"data": "in.h5ad", "draws": 3},
    "holotea": {"data": "in", "draws": 3, "sections": ("S2",)},
    "srast": {"data": "in.h5ad", "draws": 2},
}


def dense(x) -> np.ndarray:
    return np.asarray(x.todense() if sp.issparse(x) else x)


def share_of_draws(name: str) -> float:
    """How many numbers over draws must be what they were, of all.

    HoloTea's prior throws Poisson counts. At rates from 10 on JAX accepts a throw by its lgamma,
    whose last bits are others in 0.12. So a few throws differ, and spots near them see it; gammas,
    uniforms and X are the same.
    """
    return 1.0 if name != "holotea" or jax.__version__.startswith("0.10.") else 0.95


@pytest.mark.parametrize("name", GIVEN)
def test_it_predicts_as_it_did(name):
    given = dict(GIVEN[name])
    data = LEGACY / name / given.pop("data")
    predicted = stfm.load(LEGACY / name).predict(data, **given)
    with np.load(LEGACY / name / "expected.npz") as expected:
        assert list(predicted.obs_names) == list(expected["obs_names"])
        assert list(predicted.var_names) == list(expected["var_names"])
        np.testing.assert_allclose(dense(predicted.X), expected["X"], rtol=1e-6, atol=1e-6)
        layers = {k.removeprefix("layers_") for k in expected.files if k.startswith("layers_")}
        assert layers == set(layer_names(predicted))
        for layer in layers:
            same = np.isclose(
                dense(predicted.layers[layer]), expected[f"layers_{layer}"], rtol=1e-6, atol=1e-6
            )
            assert same.mean() >= share_of_draws(name)


def test_the_command_takes_an_old_workdir_too(tmp_path):
    work = shutil.copytree(LEGACY / "stflow", tmp_path / "work")
    config = workdirs.read_config(work)
    assert config.methods[-1] == "stflow" and "method" not in config
    assert config.data.folds == "auto", "whose folds are those of before there was the field"
    with config.unlocked():
        config.predict.input = str(work / "in.h5ad")
        config.predict.output = str(tmp_path / "out.h5ad")
        config.predict.draws = 3
    assert tiny.run(config, work, "predict") == 0
    assert (tmp_path / "out.h5ad").exists()


def test_what_it_did_not_keep_is_said():
    with pytest.raises(stfm.InputError, match=r"holds 'stflow' alone.*'ridge' has to be trained"):
        stfm.load(LEGACY / "stflow", "ridge")
    anchor = stfm.load(LEGACY / "stflow", "anchor").predict(LEGACY / "stflow" / "in.h5ad")
    assert np.isfinite(anchor.X).all()


def test_a_config_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"seed": 0}))
    with pytest.raises(stfm.InputError, match=r"config\.json: lacks 'methods'"):
        stfm.load(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(stfm.InputError, match=r"expected a config, found list"):
        stfm.load(tmp_path)
