"""What predictions are good for, by the command line: added genes, programmes, domains."""

from __future__ import annotations

import csv
import json
import shutil

import anndata
import numpy as np
import pytest
import tiny
import tiny_stack

import stfm_jax as stfm
from stfm_jax.data.expression import expression
from stfm_jax.data.readers import h5ad
from stfm_jax.runtime.files import load_arrays, read_json

FIELDS = {
    "methods": ("ridge", "stflow"),
    "data__genes": ("GENE030", "GENE002", "GENE025"),
    "data__labels_key": "annotation",
    "train__epochs": 1,
    "sample__draws": 99,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three slides; of the second a pathologist told left from right."""
    folder = tiny.write(tmp_path_factory.mktemp("slides"), tiny.slides(3))
    adata = anndata.read_h5ad(folder / "P1_S2.h5ad")
    x = adata.obsm["spatial"][:, 0]
    adata.obs["annotation"] = np.where(x > np.median(x), "right", "left")
    adata.write_h5ad(folder / "P1_S2.h5ad")
    return folder


LISTS = {"even": range(2, 31, 2), "added": (30, 2, 25), "few": (2, 30), "absent": (31, 32, 33)}


@pytest.fixture(scope="module")
def fields(tmp_path_factory, data):
    """Of an experiment with added genes and a file of programmes."""
    path = tmp_path_factory.mktemp("lists") / "lists.gmt"
    listed = {name: "\t".join(f"GENE{i:03d}" for i in genes) for name, genes in LISTS.items()}
    path.write_text("".join(f"{name}\ta list\t{genes}\n" for name, genes in listed.items()))
    return FIELDS | {"data__dir": str(data), "data__programmes": str(path)}


@pytest.fixture(scope="module")
def work(tmp_path_factory, fields):
    """The experiment, done."""
    workdir = tmp_path_factory.mktemp("downstream") / "W"
    assert tiny.run(tiny.config(**fields), workdir) == 0
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
def test_programmes_are_scored_on_the_panel_and_the_added_genes(work, data):
    """Mean z-scores by hand, from the counts of the training slides and what was kept."""
    fold, truth, predicted, scores = about(work)
    genes = [*fold["genes"], *fold["added_genes"]]
    train = [h5ad.read(data / f"{name}.h5ad") for name in fold["train"]]
    expr = np.concatenate([expression(slide, genes, "log1p") for slide in train])
    both = (
        (np.concatenate([arrays[a], arrays[b]], axis=1) - expr.mean(axis=0)) / expr.std(axis=0)
        for arrays, a, b in ((predicted, "mean", "mean_added"), (truth, "expr", "expr_added"))
    )
    z = dict(zip(("predicted", "true"), both, strict=True))
    row, found = scores["scores"]["stflow"], {}
    for name in ("even", "added"):
        there = np.isin(genes, [f"GENE{i:03d}" for i in LISTS[name]])
        spots = (values[:, there].mean(axis=1) for values in z.values())
        found[f"programmes:{name}"] = np.corrcoef(*spots)[0, 1]
    assert {k: v for k, v in row.items() if k.startswith("programmes:")} == pytest.approx(found)
    assert row["programmes"] == pytest.approx(np.mean(list(found.values())))
    assert "programmes:even" in scores["scores"]["stflow_draw"]


@pytest.mark.slow
def test_domains_are_scored_where_a_slide_has_labels(work):
    rows = [about(work, fold)[3]["scores"] for fold in range(3)]
    labelled = [about(work, fold)[0]["test"] == ["P1_S2"] for fold in range(3)]
    assert labelled.count(True) == 1
    for here, row in zip(labelled, rows, strict=True):
        assert ("ari" in row["stflow"]) == ("ari_measured" in row["stflow"]) == here
        assert "ari" not in row["stflow_draw"]


@pytest.mark.slow
def test_labels_of_slides_that_are_given_in_python(data, tmp_path):
    slides = {path.stem: anndata.read_h5ad(path) for path in data.glob("*.h5ad")}
    made = tiny.config(methods=("mean",), data__labels_key="annotation", data__genes=("GENE030",))
    stfm.fit(made, slides, tmp_path / "W")
    cells = json.loads((tmp_path / "W" / "metrics.json").read_text())["methods"]["mean"]
    assert sum(value is not None for value in cells["ari"]["folds"]) == 1


@pytest.mark.slow
def test_programmes_of_too_few_genes_are_named_once(fields, tmp_path, capfd):
    assert tiny.run(tiny.config(**{**fields, "methods": ("mean",)}), tmp_path / "W") == 0
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "programmes" in line)
    assert line.endswith("fewer than 3 genes of these programmes, not in every fold: few, absent")


@pytest.mark.slow
def test_the_panel_is_what_it_is_without_them(work, fields, tmp_path):
    plain = fields | {"data__genes": (), "methods": ("ridge",), "fold": 0}
    assert tiny.run(tiny.config(**plain), tmp_path / "W") == 0
    alone = read_json(tmp_path / "W" / "fold_0" / "fold.json")
    assert alone["genes"] == about(work)[0]["genes"] and "added_genes" not in alone


@pytest.mark.slow
def test_no_score_of_a_stack_is_moved_by_them(data, tmp_path):
    """What is copied of neighbouring sections hangs on no other gene."""
    found = []
    for name, genes in (("without", ()), ("with", FIELDS["data__genes"])):
        made = {"methods": ("neighbour_copy",), "data__genes": genes, "fold": 0}
        work = tmp_path / name
        assert tiny.run(tiny_stack.config(data__dir=str(data), **made), work) == 0
        path = tiny.place(work, 0, "neighbour_copy") / "scores.json"
        found.append(read_json(path)["scores"]["neighbour_copy"])
    assert "consistency" in found[0] and found[1].items() > found[0].items()
    assert {*found[1]} - {*found[0]} == {f"pearson:{gene}" for gene in FIELDS["data__genes"]}


@pytest.mark.slow
def test_workdirs_from_before_go_on_and_others_are_refused(work, data, tmp_path, capfd):
    """A config.json that does not name the field is of an experiment that added none."""
    made = {"data__dir": str(data), "methods": ("ridge",), "fold": 0}
    old = tmp_path / "old"
    assert tiny.run(tiny.config(**made), old) == 0
    config = read_json(old / "config.json")
    for name in ("genes", "programmes", "labels_key"):
        del config["data"][name]
    (old / "config.json").write_text(json.dumps(config))
    model = tiny.place(old, 0, "ridge") / "model" / "state.npz"
    kept = model.stat().st_mtime_ns
    assert tiny.run(tiny.config(**made), old) == 0 and model.stat().st_mtime_ns == kept
    for workdir in (old, shutil.copytree(work, tmp_path / "W")):
        fields = {**FIELDS, **made, "data__genes": ("GENE003",)}
        assert tiny.run(tiny.config(**fields), workdir) == 2
        assert "data.genes is" in capfd.readouterr().err
