"""What predictions are good for, by the command line: genes that are added to the panel."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import tiny

import stfm_jax as stfm
from stfm_jax.runtime.files import load_arrays, read_json

FIELDS = {
    "methods": ("ridge", "stflow"),
    "data__genes": ("GENE030", "GENE002", "GENE025"),
    "train__epochs": 1,
    "sample__draws": 99,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("slides"), tiny.slides(3))


@pytest.fixture(scope="module")
def work(tmp_path_factory, data):
    """An experiment with added genes, done."""
    workdir = tmp_path_factory.mktemp("added") / "W"
    assert tiny.run(tiny.config(data__dir=str(data), **FIELDS), workdir) == 0
    return workdir


def about(work, fold=0) -> tuple[dict, dict, dict, dict]:
    """fold.json, truth.npz, and of STFlow predictions.npz and scores.json."""
    place, own = work / f"fold_{fold}", tiny.place(work, fold)
    arrays = load_arrays(place / "truth.npz"), load_arrays(own / "predictions.npz")
    return read_json(place / "fold.json"), *arrays, read_json(own / "scores.json")


def pearson(genes, predicted, true) -> dict[str, float]:
    columns = zip(genes, predicted.T, true.T, strict=True)
    return {gene: np.corrcoef(*both)[0, 1] for gene, *both in columns}


@pytest.mark.slow
def test_added_genes_are_scored_apart_from_the_panel(work):
    fold, truth, predicted, scores = about(work)
    assert len(fold["genes"]) == 8 and fold["added_genes"]
    assert {*FIELDS["data__genes"]} <= {*fold["genes"], *fold["added_genes"]}
    assert not {*fold["genes"]} & {*fold["added_genes"]}
    for values in (truth["expr"], predicted["mean"], predicted["one_draw"]):
        assert values.shape[1] == 8
    by_hand = pearson(fold["genes"], predicted["mean"], truth["expr"])
    panel = np.mean(list(by_hand.values()))
    by_hand |= pearson(fold["added_genes"], predicted["mean_added"], truth["expr_added"])
    row = scores["scores"]["stflow"]
    assert row["pearson"] == pytest.approx(panel, abs=1e-5)
    found = {name.partition(":")[2]: v for name, v in row.items() if name.startswith("pearson:")}
    assert list(found) == list(FIELDS["data__genes"])
    assert found == pytest.approx({gene: by_hand[gene] for gene in found}, abs=1e-5)
    assert {*found} == {
        name[8:] for name in scores["scores"]["stflow_draw"] if name.startswith("pearson:")
    }


@pytest.mark.slow
def test_they_are_marked_in_the_table_of_genes_and_summed_up_in_the_report(work):
    rows = list(csv.DictReader((work / "per_gene.csv").open()))
    for fold in range(3):
        added = about(work, fold)[0]["added_genes"]
        here = [r for r in rows if r["fold"] == str(fold) and r["method"] == "ridge"]
        assert [r["gene"] for r in here if r["added"] == "True"] == added
        assert len(here) == 8 + len(added)
    cells = json.loads((work / "metrics.json").read_text())["methods"]["ridge"]
    assert len(cells["pearson:GENE002"]["folds"]) == 3 and "std" in cells["pearson:GENE002"]


@pytest.mark.slow
def test_they_are_predicted_with_the_panel(work):
    genes = stfm.load(work).genes
    assert len(genes) >= 8 and {*FIELDS["data__genes"]} <= {*genes}


@pytest.mark.slow
def test_the_panel_is_what_it_is_without_them(work, data, tmp_path):
    plain = FIELDS | {"data__genes": (), "methods": ("ridge",), "fold": 0}
    assert tiny.run(tiny.config(data__dir=str(data), **plain), tmp_path / "W") == 0
    alone = read_json(tmp_path / "W" / "fold_0" / "fold.json")
    assert alone["genes"] == about(work)[0]["genes"] and "added_genes" not in alone


@pytest.mark.slow
def test_workdirs_from_before_go_on_and_others_are_refused(work, data, tmp_path, capfd):
    """A config.json that does not name the field is of an experiment that added none."""
    made = {"data__dir": str(data), "methods": ("ridge",), "fold": 0}
    old = tmp_path / "old"
    assert tiny.run(tiny.config(**made), old) == 0
    config = read_json(old / "config.json")
    del config["data"]["genes"]
    (old / "config.json").write_text(json.dumps(config))
    model = tiny.place(old, 0, "ridge") / "model" / "state.npz"
    kept = model.stat().st_mtime_ns
    assert tiny.run(tiny.config(**made), old) == 0 and model.stat().st_mtime_ns == kept
    for workdir in (old, shutil.copytree(work, tmp_path / "W")):
        fields = {**FIELDS, **made, "data__genes": ("GENE003",)}
        assert tiny.run(tiny.config(**fields), workdir) == 2
        assert "data.genes is" in capfd.readouterr().err
