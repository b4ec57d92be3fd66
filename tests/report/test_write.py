"""The report of a workdir whose scores and predictions are made up: every figure by hand."""

import csv
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from stfm_jax import layout
from stfm_jax.report import write as report
from stfm_jax.runtime.files import save_arrays, write_csv, write_json

GENES = ("G1", "G2")
COORDS = np.stack(np.meshgrid(np.arange(6.0), np.arange(4.0)), axis=-1).reshape(-1, 2) * 100.0
RIDGE = SimpleNamespace(name="ridge", draws_as=None, compared_with=())
FLOW = SimpleNamespace(name="flow", draws_as="flow_sample", compared_with=("ridge", "absent"))
METHODS = (RIDGE, FLOW)


class Problem:
    """As those of stfm_jax.problems, on two scales; keeps what it was given to draw."""

    shown, of_slides, explained, unit = ("pearson", "pearson_slide"), ("pearson_slide",), "Of", " u"

    def __init__(self, compares_folds=False):
        self.compares_folds, self.pictures = compares_folds, []

    def extras(self, workdir, dataset):
        return {"extra": 7}

    def views(self, dataset, fold, truth, values):
        return {"": values, " at G1": values[:, :1]}

    def measured(self, truth):
        return truth["expr"]

    def picture(self, workdir, dataset, fold, truth, rows):
        self.pictures.append((fold["fold"], sorted(rows)))

    def remarks(self, extras):
        return [f"extra {extras['extra']}"]


def truth(fold):
    return np.random.default_rng(fold).normal(size=(24, 2))


def add_row(workdir, fold, name, seed, pearson, noise=None, **more):
    """What a method leaves; its prediction is the truth and noise."""
    folder = layout.method_folder(layout.fold_folder(workdir, fold), name, seed)
    scores = {name: {"pearson": pearson, "pearson_slide": pearson / 2}}
    if name == "flow":
        scores["flow_sample"] = {"pearson": pearson / 4}
    row = {"scores": scores, "epochs": None, "hyperparameters": {}, "lacks": {}} | more
    row["per_gene"] = [{"fold": fold, "method": name, "gene": gene} for gene in GENES]
    write_json(folder / "scores.json", row)
    if noise is not None:
        off = np.random.default_rng([fold, seed]).normal(size=(24, 2)) * noise
        save_arrays(folder / "predictions.npz", {"mean": truth(fold) + off})


@pytest.fixture
def workdir(tmp_path):
    for fold, test in ((0, ["A"]), (1, ["B", "C"])):
        place = layout.fold_folder(tmp_path, fold)
        about = {"fold": fold, "train": ["D"], "test": test, "genes": GENES}
        spots = [24] if len(test) == 1 else [12, 12]
        about |= {"constant_genes": ["G9"] * (2 * fold), "spots": spots}
        write_json(place / "fold.json", about)
        save_arrays(place / "truth.npz", {"expr": truth(fold), "coords_um": COORDS})
    add_row(tmp_path, 0, "ridge", 3, 0.4, 1.0, hyperparameters={"alpha": 2.0})
    add_row(tmp_path, 1, "ridge", 3, 0.6, 1.0)
    lacks = {"lacks": {"B": "no image"}, "epochs": 5}
    add_row(tmp_path, 0, "flow", 3, 0.5, 0.3, epochs=4)
    add_row(tmp_path, 1, "flow", 3, 0.9, 0.2, **lacks)
    return tmp_path


def written(workdir, caplog, seeds=(3,), problem=None, methods=METHODS):
    config = ConfigDict({"seed": 0, "seeds": seeds})
    dataset = SimpleNamespace(folds=[0, 1, 2], folds_from="by patient", slides={})
    with caplog.at_level(logging.INFO, "stfm_jax"):
        report.write(workdir, config, problem or Problem(), dataset, methods)
    return json.loads((workdir / "metrics.json").read_text()), caplog.messages[-1].splitlines()


def explained(said):
    (line,) = (line for line in said if line.startswith("Of"))
    return line


def difference(fold, seed=3, genes=(0, 1)):
    """In the mean correlation of the genes, of flow and ridge as `workdir` has them."""
    off, true = np.random.default_rng([fold, seed]).normal(size=(24, 2)), truth(fold)
    flow, ridge = (
        np.mean([np.corrcoef((true + noise * off)[:, g], true[:, g])[0, 1] for g in genes])
        for noise in (0.2 if fold else 0.3, 1.0)
    )
    return flow - ridge


def test_scores_of_folds_and_of_draws(workdir, caplog):
    found, said = written(workdir, caplog)
    assert found["methods"]["ridge"]["pearson"]["mean"] == pytest.approx(0.5)
    assert found["methods"]["flow_sample"]["pearson"]["folds"] == pytest.approx([0.125, 0.225])
    assert found["folds_in_split"] == 3 and found["seeds"] == [3] and found["extra"] == 7
    assert found["genes"]["constant_by_fold"] == {"0": [], "1": ["G9", "G9"]}
    zero, one = found["folds"]
    assert zero["epochs"] == 4 and one["epochs"] == 5 and "genes" not in zero
    assert zero["hyperparameters"] == {"ridge": {"alpha": 2.0}} and one["hyperparameters"] == {}
    assert zero["lacks"] == {} and one["lacks"] == {"flow": {"B": "no image"}}
    rows = list(csv.DictReader((workdir / "per_gene.csv").open()))
    assert [(r["fold"], r["seed"], r["method"], r["gene"]) for r in rows[:3]] == [
        ("0", "3", "ridge", "G1"), ("0", "3", "ridge", "G2"), ("0", "3", "flow", "G1"),
    ]  # fmt: skip
    assert len(rows) == 8
    assert any(line.startswith("flow [1]") for line in said)
    assert "[1] no image: flow in fold 1. Such" in "\n".join(said)
    assert "2 constant genes left out" in explained(said) and said[-1] == "extra 7"


def test_differences_are_of_the_same_folds(workdir, caplog):
    problem = Problem(compares_folds=True)
    found, said = written(workdir, caplog, problem=problem)
    assert list(found["comparisons"]) == ["flow - ridge", "flow - ridge at G1"]
    at_one = found["comparisons_by_fold"]["1"]["flow - ridge at G1"]["difference"]
    assert at_one == pytest.approx(difference(1, genes=(0,)), abs=1e-6)
    by_fold = [found["comparisons_by_fold"][f]["flow - ridge"]["difference"] for f in ("0", "1")]
    np.testing.assert_allclose(by_fold, [difference(0), difference(1)], atol=1e-6)
    whole = found["comparisons"]["flow - ridge"]
    assert whole["difference"] == pytest.approx(np.mean(by_fold), abs=1e-6)
    assert whole["low"] < whole["difference"] < whole["high"]
    assert said[-3].startswith(f"flow - ridge: {whole['difference']:+.4f} u, 95 % of spatial")
    assert problem.pictures == [(0, ["flow", "ridge"]), (1, ["flow", "ridge"])]


def test_nothing_is_compared_where_a_fold_has_but_one_of_two(workdir, caplog):
    layout.method_folder(layout.fold_folder(workdir, 1), "ridge", 3).joinpath(
        "predictions.npz"
    ).unlink()
    found, _ = written(workdir, caplog)
    assert found["comparisons"] == {} and "comparisons_by_fold" not in found


def test_differences_are_means_over_the_seeds_that_both_have(workdir, caplog):
    add_row(workdir, 0, "flow", 5, 0.7, 0.3)
    add_row(workdir, 0, "ridge", 5, 0.2, 1.0)
    add_row(workdir, 1, "flow", 5, 0.1, 0.3)  # whose ridge is missing
    found, said = written(workdir, caplog, seeds=(3, 5))
    expected = (difference(0) + difference(0, 5)) / 2, difference(1)
    whole = found["comparisons"]["flow - ridge"]["difference"]
    assert whole == pytest.approx(np.mean(expected), abs=1e-6)
    assert found["methods"]["flow"]["pearson"]["folds"] == pytest.approx([0.6, 0.5])
    assert found["folds"][0]["epochs"] == 4  # of the first seed
    assert "over 2 of 3 folds / spread over 2 seeds" in "\n".join(said)


def test_within_slides_is_shown_where_a_fold_has_several(workdir, caplog):
    _, said = written(workdir, caplog)
    assert "pearson_slide" in said[1] and "pearson_slide: within each test slide" in explained(said)
    (workdir / "fold_1" / "fold.json").rename(workdir / "kept.json")
    about = json.loads((workdir / "kept.json").read_text()) | {"test": ["B"], "spots": [24]}
    write_json(workdir / "fold_1" / "fold.json", about | {"constant_genes": []})
    _, said = written(workdir, caplog)
    assert "pearson_slide" not in said[1] and "within each" not in explained(said)
    assert "no gene was constant" in explained(said)


def test_the_curve_is_of_the_last_method_and_the_first_seed(workdir, caplog, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        report.plots, "learning_curve", lambda rows, marked: drawn.append((rows, marked))
    )
    monkeypatch.setattr(report.plots, "save", lambda figure, path: None)
    for fold, name, seed, best in ((0, "ridge", 3, 1), (0, "flow", 3, 2), (None, "flow", 3, 6),
                                   (0, "flow", 5, 9), (0, "old", 3, 8)):  # fmt: skip
        folder = layout.method_folder(layout.fold_folder(workdir, fold), name, seed)
        for stage in ("select", "refit"):
            rows = [{"stage": stage, "epoch": epoch} for epoch in range(2)]
            write_csv(folder / stage / "history.csv", rows)
        write_json(folder / "select" / "done.json", {"best_epoch": best})
    written(workdir, caplog, seeds=(3, 5))
    rows = list(csv.DictReader((workdir / "history.csv").open()))
    order = list(dict.fromkeys((r["fold"], r["seed"], r["method"], r["stage"]) for r in rows))
    stages = ("select", "refit")
    assert order == [
        (*of, stage)
        for of in (("0", "3", "old"), ("0", "3", "ridge"), ("0", "3", "flow"), ("0", "5", "flow"),
                   ("final", "3", "flow"))
        for stage in stages
    ]  # fmt: skip
    ((shown, marked),) = drawn
    assert {(r["fold"], r["method"], r["seed"], r["stage"]) for r in shown} == {
        (0, "flow", 3, "select"), ("final", "flow", 3, "select"),
    }  # fmt: skip
    assert marked == {"0": 2, "None": 6}


def test_folds_without_a_row_are_left_out(workdir, caplog):
    write_json(workdir / "fold_2" / "fold.json", {"fold": 2})
    found, _ = written(workdir, caplog)
    assert [fold["fold"] for fold in found["folds"]] == [0, 1]
    found, _ = written(workdir, caplog, methods=(RIDGE,))
    assert list(found["methods"]) == ["ridge"] and found["comparisons"] == {}
