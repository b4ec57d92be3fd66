"""The Python face: three lines from a trained folder to a predicted AnnData."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import test_run_srast
import tiny

import stfm_jax as stfm
from configs import demo
from stfm_jax.data.coarsen import by_lattice
from stfm_jax.data.readers import h5ad


def assert_same(one: anndata.AnnData, other: anndata.AnnData) -> None:
    """But for where the input lay."""
    assert list(one.obs_names) == list(other.obs_names)
    assert list(one.var_names) == list(other.var_names)
    np.testing.assert_allclose(one.X, other.X, atol=1e-6)
    assert set(one.layers) == set(other.layers) and set(one.obsm) == set(other.obsm)
    for name in one.layers:
        np.testing.assert_allclose(one.layers[name], other.layers[name], atol=1e-6)
    for name in one.obsm:
        np.testing.assert_allclose(one.obsm[name], other.obsm[name], atol=1e-9)
    for key in ("version", "method", "checkpoint", "draws"):
        assert one.uns["stfm"][key] == other.uns["stfm"][key]


def by_command(made, work, adata_path, output):
    with made.unlocked():
        made.predict.input, made.predict.output = str(adata_path), str(output)
    assert tiny.run(made, work, "predict") == 0
    return anndata.read_h5ad(output)


def test_three_lines(trained):
    model = stfm.load(trained.workdir)
    adata = anndata.read_h5ad(trained.unseen)
    predicted = model.predict(adata)
    assert predicted.n_obs == adata.n_obs and list(predicted.var_names) == model.genes
    assert model.method == "stflow" and "stflow" in repr(model)


@pytest.mark.parametrize("given", ["AnnData", "path"])
@pytest.mark.parametrize("method", [None, "ridge"])
def test_it_gives_what_the_command_writes(trained, tmp_path, given, method):
    made = trained.config(predict__method=method or "")
    expected = by_command(made, trained.workdir, trained.unseen, tmp_path / "out.h5ad")
    data = anndata.read_h5ad(trained.unseen) if given == "AnnData" else trained.unseen
    before = copy.deepcopy(data)
    predicted = stfm.load(str(trained.workdir), method).predict(data)
    if method:
        assert not predicted.layers and predicted.uns["stfm"]["method"] == "ridge"
        np.testing.assert_allclose(predicted.X, expected.X, atol=1e-6)
    else:
        assert_same(predicted, expected)
    if given == "AnnData":
        assert data.obs.equals(before.obs) and set(data.obsm) == set(before.obsm)
        assert (data.X != before.X).nnz == 0 and repr(data.uns) == repr(before.uns)
    assert {p.name for p in tmp_path.iterdir()} == {"out.h5ad", "out.png", "out_report.html"}


def test_what_is_not_looked_at_may_be_odd(trained):
    """What no file could hold is not written, and other columns are not looked at."""
    adata = anndata.read_h5ad(trained.unseen)
    expected = stfm.load(trained.workdir).predict(adata)
    adata.uns["odd"] = {"a": lambda: 1, 3: object()}
    adata.obs["mixed"] = pd.Series([1, "a"] * (adata.n_obs // 2) + [0] * (adata.n_obs % 2)).values
    adata.X = None
    np.testing.assert_array_equal(stfm.load(trained.workdir).predict(adata).X, expected.X)


def test_draws_and_a_folds_model(trained):
    model = stfm.load(trained.workdir, fold=1)
    predicted = model.predict(trained.unseen, draws=3)
    assert predicted.uns["stfm"]["draws"] == 3
    assert predicted.uns["stfm"]["checkpoint"].endswith("fold_1/stflow/seed_0/model")


def bad(trained):
    adata = anndata.read_h5ad(trained.unseen)
    bare = adata.copy()
    del bare.obsm["features"]
    pixels = bare.copy()
    pixels.uns["spatial_unit"] = "pixel"
    return {
        "neither": (3, {}, ["expected an AnnData, or the path", "int"]),
        "no file": (trained.workdir / "nothing.h5ad", {}, ["nothing.h5ad", "no such file"]),
        "no features": (bare, {}, ["has no features in obsm['features']", "embeddings", "image"]),
        "no scale": (pixels, {}, ["um_per_px"]),
        "one draw": (adata, {"draws": 1}, ["draws must be at least 2"]),
        "no image": (bare, {"image": "x.jpg"}, ["image: the model uses features of"]),
    }


@pytest.mark.parametrize(
    "name", ["neither", "no file", "no features", "no scale", "one draw", "no image"]
)
def test_errors_name_arguments(trained, name):
    data, arguments, words = bad(trained)[name]
    with pytest.raises(stfm.InputError) as error:
        stfm.load(trained.workdir).predict(data, **arguments)
    said = str(error.value)
    assert "--" not in said and "config." not in said and "stfm-" not in said, said
    for word in words:
        assert word in said, said


def test_load_says_what_is_wrong(trained, tmp_path):
    with pytest.raises(stfm.InputError, match=r"holds no experiment"):
        stfm.load(tmp_path)
    with pytest.raises(stfm.InputError, match=r"Did you mean 'stflow'\?"):
        stfm.load(trained.workdir, "stflw")
    with pytest.raises(stfm.InputError, match=r"no trained model"):
        stfm.load(trained.workdir, "random_forest")


def test_a_moved_folder_predicts_the_same(trained, tmp_path):
    """Also without the data it was trained on."""
    moved = shutil.copytree(trained.workdir, tmp_path / "elsewhere")
    one, other = (stfm.load(w).predict(trained.unseen) for w in (trained.workdir, moved))
    np.testing.assert_array_equal(one.X, other.X)


def test_fit_and_predict(trained, tmp_path):
    adatas = {s.name: anndata.read_h5ad(trained.data / f"{s.name}.h5ad") for s in tiny.slides(3)}
    before = {name: adata.copy() for name, adata in adatas.items()}
    made = demo.get_config()
    made.update_from_flattened_dict(tiny.fields(methods=("mean", "ridge"), fold=0))
    model = stfm.fit(made, adatas, tmp_path / "work")
    assert model.method == "ridge" and (tmp_path / "work" / "metrics.json").exists()
    for name, adata in adatas.items():
        assert (adata.X != before[name].X).nnz == 0
    expected = stfm.load(trained.workdir, "ridge").predict(trained.unseen)
    np.testing.assert_allclose(model.predict(trained.unseen).X, expected.X, atol=1e-6)
    again = stfm.fit(made, adatas, tmp_path / "work")  # finished: nothing is done
    np.testing.assert_array_equal(again.predict(trained.unseen).X, model.predict(trained.unseen).X)
    for wrong in ({"../x": adatas["P1_S1"]}, [1], {"a": 3}):
        with pytest.raises(stfm.InputError):
            stfm.fit(made, wrong, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_counts_are_split(tmp_path):
    data = tiny.write(tmp_path / "data", [test_run_srast.section(f"P{i}", i) for i in range(3)])
    work = tmp_path / "work"
    assert tiny.run(test_run_srast.config(data__dir=str(data), fold=0), work) == 0
    pair = by_lattice(test_run_srast.section("new", 9))
    h5ad.write(pair.low, tmp_path / "low.h5ad")
    low = anndata.read_h5ad(tmp_path / "low.h5ad")
    fine = stfm.load(work).predict(low, draws=2)
    assert fine.n_obs == 4 * low.n_obs
    np.testing.assert_allclose(fine.X.sum(), low.X.sum(), rtol=1e-6)
    uniform = stfm.load(work, "uniform").predict(low)
    assert not uniform.layers
    siblings = uniform.X.toarray()[(uniform.obs["parent"] == uniform.obs["parent"].iloc[0])]
    assert len(siblings) == 4
    np.testing.assert_allclose(siblings, siblings[:1].repeat(4, axis=0))


def test_importing_it_is_light():
    code = "import sys, stfm_jax; sys.exit('jax' in sys.modules or 'anndata' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
