"""A model that is passed on predicts as its workdir does, and holds nothing else."""

from __future__ import annotations

import shutil

import anndata
import numpy as np
import pytest
import tiny
from test_api import assert_same

import stfm_jax as stfm
from stfm_jax.runtime.files import read_json, write_json


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A folder for each method, none of which knows of the workdir."""
    root = tmp_path_factory.mktemp("exported")
    names = ("stflow", "anchor", "kernel_ridge", "ridge_smooth")
    return {name: stfm.export(trained.workdir, root / name, method=name) for name in names}


@pytest.mark.parametrize("method", ["stflow", "anchor", "kernel_ridge", "ridge_smooth"])
def test_it_predicts_the_same(trained, exported, method):
    here = stfm.load(trained.workdir, method).predict(trained.unseen)
    there = stfm.load(exported[method]).predict(trained.unseen)
    np.testing.assert_array_equal(there.X, here.X)
    assert set(there.layers) == set(here.layers)
    for name in here.layers:
        np.testing.assert_array_equal(there.layers[name], here.layers[name])


def test_the_command_predicts_the_same_without_a_config(trained, exported, tmp_path):
    output = tmp_path / "out.h5ad"
    fields = {"input": trained.unseen, "output": output, "maps": False}
    flags = [f"--config.predict.{name}={value}" for name, value in fields.items()]
    assert tiny.command("--mode=predict", f"--workdir={exported['stflow']}", *flags) == 0
    expected = stfm.load(exported["stflow"]).predict(trained.unseen)
    written = anndata.read_h5ad(output)
    written.uns["stfm"]["checkpoint"] = expected.uns["stfm"]["checkpoint"]
    assert_same(written, expected)


@pytest.mark.parametrize(("method", "owner"), [("stflow",) * 2, ("ridge_smooth", "ridge")])
def test_nothing_else_is_inside(trained, exported, method, owner):
    folder, model = exported[method], f"final/{owner}/seed_0/model"
    files = {"README.md", "config.json", f"{model}/model.json", f"{model}/state.npz"}
    assert set(tiny.contents(folder)) == files
    for name in files - {f"{model}/state.npz"}:
        text = (folder / name).read_text()
        assert str(trained.workdir.parent) not in text and "/tmp" not in text, name
    config = read_json(folder / "config.json")
    assert config["methods"] == [method] and config["data"]["dir"] == ""
    assert folder.stat().st_mode == trained.workdir.stat().st_mode


def test_what_prediction_does_not_need_is_left_out(trained, exported):
    """The residuals that `anchor` draws are of no use to `stflow`, nor is the network to it."""

    def arrays(folder):
        with np.load(folder / "final/stflow/seed_0/model/state.npz") as stored:
            return set(stored.files)

    every = arrays(trained.workdir)
    assert every - arrays(exported["stflow"]) == {"residuals"}
    left_out = every - arrays(exported["anchor"])
    assert left_out and all(name.startswith("params/") for name in left_out)
    for asked, folder in (("anchor", exported["stflow"]), ("stflow", exported["anchor"])):
        with pytest.raises(stfm.InputError, match="was passed on for"):
            stfm.load(folder, asked)


def test_the_card(trained, exported):
    card = (exported["stflow"] / "README.md").read_text()
    row = trained.metrics["methods"]["stflow"]["pearson"]
    words = (
        f"{row['mean']:.3f} +- {row['std']:.3f}", "stflow_draw", "kernel_ridge", "of 3 folds",
        "3 slides (sections), 151 spots, of 1 patient", "P1_S1, P1_S2, P1_S3", "`anndata`",
        "8 genes", tiny.ENCODER, "licence and citation are not known", "arXiv 2506.05361",
        "Not for clinical use", "whose patients have other slides among those trained on",
        "features of 151 single training spots", "stfm.load(",
    )  # fmt: skip
    for word in words:
        assert word in card, word
    assert "of 151 single training spots: measured less fitted" not in card
    assert all(gene in card for gene in stfm.load(exported["stflow"]).genes)


def test_a_model_says_what_it_holds(trained):
    about = read_json(tiny.place(trained.workdir, None) / "model" / "model.json")
    known = about["slides"]["P1_S2"]
    assert known.pop("library") > 1
    assert known == {"spots": 50, "patient": "P1", "pitch_um": 200.0}
    assert set(about["individual_level"]) == {
        "model.json/slides",
        "state.npz/fitted/anchor/landmarks",
        "state.npz/fitted/anchor/weights",
        "state.npz/residuals",
    }


def test_one_of_an_earlier_version_is_passed_on_too(trained, tmp_path):
    """Which kept no list of slides."""
    work = shutil.copytree(trained.workdir, tmp_path / "work")
    path = tiny.place(work, None, "ridge") / "model" / "model.json"
    kept = {k: v for k, v in read_json(path).items() if k not in ("slides", "individual_level")}
    write_json(path, kept)
    card = (stfm.export(work, tmp_path / "out", method="ridge") / "README.md").read_text()
    assert "kept no list of its slides" in card and "is not known here" in card


def test_what_is_refused(trained, exported, tmp_path):
    before = tiny.contents(exported["stflow"])
    with pytest.raises(stfm.InputError, match="expected no folder there, or an empty one"):
        stfm.export(trained.workdir, exported["stflow"])
    assert tiny.contents(exported["stflow"]) == before
    with pytest.raises(stfm.InputError, match="holds no experiment"):
        stfm.export(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(stfm.InputError, match="holds no trained model"):
        stfm.export(trained.workdir, tmp_path / "out", method="random_forest")
    with pytest.raises(stfm.InputError, match=r"seed_7.*holds no trained model"):
        stfm.export(trained.workdir, tmp_path / "out", seed=7)
    with pytest.raises(stfm.InputError, match=r"metrics\.json"):  # no report: passed on before
        stfm.export(exported["stflow"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_will_do(trained, tmp_path):
    assert stfm.export(trained.workdir, tmp_path, method="mean") == tmp_path
    assert stfm.load(tmp_path).method == "mean"
