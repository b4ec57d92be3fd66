"""Several seeds: every fold once for each, one report; the first one's model predicts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tiny

import stfm_jax as stfm
from stfm_jax.errors import InputError
from stfm_jax.regression import regressors
from stfm_jax.runtime.files import read_csv

METHODS = ("kernel_ridge", "random_forest", "stflow")


def report(work: Path) -> dict:
    return json.loads((work / "metrics.json").read_text())


@pytest.fixture(scope="module")
def seeded(trained, tmp_path_factory) -> Path:
    """A fold of the tiny experiment with seeds 0 and 3, as the command line is told."""
    work = tmp_path_factory.mktemp("seeds") / "work"
    argv = tiny.arguments(work, data__dir=trained.data, methods=",".join(METHODS), fold=0)
    with mock.patch.object(regressors, "choose", side_effect=regressors.choose) as choose:
        assert tiny.command(*argv, "--config.seeds=0,3") == 0
    # With each seed on all training slides, for kernel ridge and the flow's anchor together, and
    # on those that epochs are selected on; for the models of all slides once.
    assert choose.call_count == 2 * 2 + 1
    return work


def test_every_fold_is_run_once_for_each_seed(seeded):
    for name in METHODS:
        for seed in (0, 3):
            assert (tiny.place(seeded, 0, name, seed) / "scores.json").exists()
        assert (tiny.place(seeded, None, name) / "model" / "model.json").exists()
        assert not tiny.place(seeded, None, name, 3).exists()
    stored = json.loads((seeded / "config.json").read_text())
    assert stored["seeds"] == [0, 3] and stored["seed"] == 0


def test_a_seed_among_others_scores_as_it_does_alone(seeded, trained):
    alone = trained.metrics["methods"]
    for name in (*METHODS[::2], "stflow_draw"):
        for metric, cell in report(seeded)["methods"][name].items():
            assert cell["seeds"][0] == alone[name][metric]["folds"][0], (name, metric)


def test_the_report_is_over_both(seeded):
    written = report(seeded)
    assert written["seeds"] == [0, 3]
    for name, metrics in written["methods"].items():
        for metric, cell in metrics.items():
            assert set(cell) == {"mean", "std", "folds", "seeds", "seed_std"}, (name, metric)
            assert cell["folds"] == [pytest.approx(np.mean(cell["seeds"]), nan_ok=True)]
            spread = np.std(cell["seeds"], ddof=1)
            assert cell["seed_std"] == pytest.approx(spread), (name, metric)
        spread = metrics["crps"][
            "seed_std"
        ]  # kernel ridge throws no dice where slides are left out
        assert spread == 0.0 if name == "kernel_ridge" else spread > 0, name
    difference = written["comparisons"]["stflow - kernel_ridge"]["difference"]
    stflow, kernel_ridge = (
        written["methods"][name]["pearson"]["seeds"] for name in ("stflow", "kernel_ridge")
    )
    assert difference == pytest.approx(np.mean(np.subtract(stflow, kernel_ridge)), abs=1e-6)


def test_tables_name_the_seed(seeded):
    rows = read_csv(seeded / "per_gene.csv")
    assert list(rows[0])[:4] == ["fold", "seed", "gene", "method"]
    for seed, score in zip(
        (0, 3), report(seeded)["methods"]["stflow"]["pearson"]["seeds"], strict=True
    ):
        own = [r for r in rows if (r["seed"], r["method"]) == (str(seed), "stflow")]
        assert len(own) == 8
        assert np.mean([float(r["pearson"]) for r in own]) == pytest.approx(score)
    history = read_csv(seeded / "history.csv")
    found = {(r["fold"], r["seed"], r["stage"]) for r in history}
    assert found == {
        ("0", "0", "fold 0 seed 0 stflow select"),
        ("0", "0", "fold 0 seed 0 stflow refit"),
        ("0", "3", "fold 0 seed 3 stflow select"),
        ("0", "3", "fold 0 seed 3 stflow refit"),
        ("final", "0", "all slides stflow refit"),
    }


def test_the_same_workdir_with_other_seeds(seeded, trained, tmp_path, capfd):
    """What is there is not fitted again, and reported where its seed is asked for."""
    work = shutil.copytree(seeded, tmp_path / "work")
    before = tiny.contents(work / "fold_0")
    fields = {"methods": METHODS, "fold": 0}
    assert tiny.run(trained.config(**fields, seed=3), work) == 0
    assert before == tiny.contents(work / "fold_0")
    both, one = report(seeded)["methods"], report(work)["methods"]
    for name, metrics in one.items():
        assert metrics["pearson"]["seeds"] == both[name]["pearson"]["seeds"][1:]
        assert metrics["pearson"]["seed_std"] is None
    assert (tiny.place(work, None, "stflow", 3) / "model" / "model.json").exists()
    assert tiny.run(trained.config(methods=("kernel_ridge",), seeds=(5, 0), fold=0), work) == 0
    assert (
        report(work)["methods"]["kernel_ridge"]["pearson"]["seeds"][1]
        == both["kernel_ridge"]["pearson"]["seeds"][0]
    )
    assert json.loads((work / "config.json").read_text())["seeds"] == [0, 3]
    assert "/" in capfd.readouterr().err


def test_a_fold_that_one_seed_lacks(seeded, trained, tmp_path):
    work = shutil.copytree(seeded, tmp_path / "work")
    assert tiny.run(trained.config(methods=("random_forest",), fold=1), work) == 0
    assert tiny.run(trained.config(methods=("random_forest",), fold=0, seeds=(0, 3)), work) == 0
    before = report(seeded)["methods"]["random_forest"]["pearson"]
    cell = report(work)["methods"]["random_forest"]["pearson"]
    assert cell["seeds"] == before["seeds"] and cell["seed_std"] == before["seed_std"]
    assert cell["folds"][0] == before["folds"][0] and len(cell["folds"]) == 2
    assert report(work)["folds"][1]["fold"] == 1


def test_predicting_with_the_first_or_another(seeded, trained, tmp_path, capfd):
    assert stfm.load(seeded)._folder == tiny.place(seeded, None) / "model"
    of_fold = stfm.load(seeded, "kernel_ridge", fold=0, seed=3)
    assert of_fold._folder == tiny.place(seeded, 0, "kernel_ridge", 3) / "model"
    with pytest.raises(InputError, match=r"seed_3.*no trained model, .* of seed 0; set seed=0"):
        stfm.load(seeded, seed=3)
    made = {
        "methods": METHODS,
        "predict__input": str(trained.unseen),
        "predict__output": str(tmp_path / "out.h5ad"),
        "predict__maps": False,
    }
    assert tiny.run(trained.config(**made, seeds=(3,)), seeded, "predict") == 2
    err = capfd.readouterr().err
    assert "no trained model" in err and "of seed 0; set --config.seed=0" in err
    assert tiny.run(trained.config(**made, seeds=(3,), fold=0), seeded, "predict") == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"seeds": ("0", "x")}, ["config.seeds", "'0'", "--config.seeds=0,1,2"]),
        ({"seeds": (1, -1)}, ["config.seeds", "found -1"]),
        ({"seeds": (1, 2, 1)}, ["config.seeds must differ", "1, 2, 1"]),
        ({"seed": -1}, ["config.seed must", "found -1"]),
        ({"seed": 2, "seeds": (1, 2)}, ["config.seed is 2", "--config.seeds=2"]),
    ],
)
def test_seeds_that_are_none(trained, tmp_path, capfd, fields, words):
    assert tiny.run(trained.config(**fields), tmp_path / "work") == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and all(word in err for word in words), err
    assert not (tmp_path / "work").exists()
