"""HoloTea by run.py on a tiny stack, from sections to a volume, and what it must refuse."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import anndata
import numpy as np
import pytest
import tiny
import tiny_stack
from bad_input import assert_refused, edit, narrower, other_encoder, without_features

import stfm_jax as stfm
from stfm_jax.data.readers import h5ad
from stfm_jax.score import expression as evaluate
from stfm_jax.train import loop

pytestmark = [
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Transforming to str index"),
]
POINTS = {
    "mean",
    "ridge",
    "kernel_ridge",
    "anchor",
    "neighbour_copy",
    "centred_sum",
    "stflow",
    "holotea_he",
    "holotea",
}
DRAWS = {"anchor_residual", "stflow_draw", "holotea_he_draw", "holotea_draw"}
ANGLES = (0.4, -0.9, 2.5, 1.2)  # by which the sections are turned, and the third turned over
# Little to compile: no noise in training, and the base's prior; the slow test has all of it.
QUICK = {
    "fold": 1,
    "train__select": False,
    "train__epochs": 1,
    "stack__epochs": 1,
    "stack__prior": "base",
    "model__dropout": 0.0,
    "model__feature_noise": 0.0,
    "model__feature_dropout": 0.0,
    "model__image_dropout": 0.0,
    "model__image_noise": 0.0,
}


def moved(slides):
    """Sections as they come from the bench: turned, shifted, one turned over."""
    out = []
    for i, (slide, angle) in enumerate(zip(slides, ANGLES, strict=True)):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        if i == 2:
            turn = turn @ np.diag([1.0, -1.0])
        coords = slide.coords_um @ turn.T + [500.0 * i, 100.0]
        out.append(dataclasses.replace(slide, coords_um=coords, coords_in=coords))
    return out


@dataclasses.dataclass(frozen=True)
class Stacked:
    """A finished experiment on four sections; tests copy what they change."""

    data: Path
    workdir: Path
    settings: dict

    def config(self, **overrides):
        return tiny_stack.config(**{**self.settings, "data__dir": str(self.data), **overrides})

    @property
    def sections(self) -> Path:
        return self.workdir / "sections" / "P1"


def experiment(root: Path, settings: dict) -> Stacked:
    tiny.write(root / "data", moved(tiny.slides()))
    made = Stacked(root / "data", root / "work", settings)
    assert tiny.run(made.config(), made.workdir) == 0
    return made


@pytest.fixture(scope="module")
def stacked(tmp_path_factory) -> Stacked:
    return experiment(tmp_path_factory.mktemp("stack"), QUICK)


@pytest.fixture(scope="module")
def written(stacked) -> dict:
    return json.loads((stacked.workdir / "metrics.json").read_text())


def rows(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def points(stacked) -> dict[str, np.ndarray]:
    """What fold 1 predicted for its test section, by row; and `expr`."""
    return tiny.points(stacked.workdir, 1)


# Training and its report


def test_every_row_is_scored(stacked, written):
    methods = written["methods"]
    assert set(methods) >= POINTS | DRAWS
    for name, scores in methods.items():
        assert {"pearson", "moran", "consistency", "crps"} <= set(scores), name
        assert all(np.isfinite(entry["folds"]).all() for entry in scores.values()), name
    (fold,) = written["folds"]
    assert fold["lacks"] == {}
    assert fold["test"] == ["P1_S2"] and fold["train"] == ["P1_S1", "P1_S3", "P1_S4"]
    assert 0 <= fold["hyperparameters"]["centred_sum"]["weight"] <= 1.5
    assert {"holotea - holotea_he", "holotea - centred_sum"} <= set(written["comparisons"])
    assert {p.name for p in stacked.workdir.glob("*.png")} == {
        "registration_P1.png",
        "maps_P1_S2.png",
    }


def test_scores_are_those_of_the_saved_predictions(stacked, written):
    """And consistency that with the copy of the neighbours."""
    predicted, slide = points(stacked), h5ad.read(stacked.data / "P1_S2.h5ad")
    genes = written["genes"]["by_fold"]["1"]
    columns = [list(slide.genes).index(gene) for gene in genes]
    true = np.log1p(slide.counts.toarray()[:, columns])
    np.testing.assert_allclose(predicted["expr"], true, rtol=1e-6)
    around = [predicted["neighbour_copy"]]
    test = evaluate.TestSet(("S2",), [slide.coords_um], [true], around)
    for name in POINTS:
        expected = evaluate.score_point([predicted[name]], test)
        for metric in ("pearson", "mse", "consistency"):
            got = written["methods"][name][metric]["folds"][0]
            assert got == pytest.approx(expected[metric], abs=1e-5), (name, metric)


def test_rows_differ_by_what_they_see(stacked, written):
    """Images of neighbours have no part in the mean, of a frozen base; in draws they have."""
    predicted, scores = points(stacked), written["methods"]
    for one, other in (("holotea", "stflow"), ("stflow", "anchor")):
        assert np.abs(predicted[one] - predicted[other]).max() > 1e-3, (one, other)
    np.testing.assert_array_equal(predicted["holotea_he"], predicted["stflow"])
    crps = [scores[f"{name}_draw"]["crps"]["mean"] for name in ("holotea", "holotea_he", "stflow")]
    assert len(set(crps)) == 3


def test_how_sections_fit_is_told(stacked):
    table = rows(stacked.workdir / "registration.csv")
    pairs = [("P1_S1", "P1_S2"), ("P1_S2", "P1_S3"), ("P1_S3", "P1_S4")]
    assert [(row["fixed"], row["moving"]) for row in table] == pairs
    for row in table:
        assert float(row["dz_um"]) == 16.0
        assert float(row["overlap"]) > 0.8 and 0 <= float(row["residual_um"]) < 100


def test_stages_of_the_base_and_of_what_stands_on_it(stacked):
    stages = [(row["fold"], row["stage"]) for row in rows(stacked.workdir / "history.csv")]
    assert stages == [
        ("1", "fold 1 stflow refit"),
        ("1", "fold 1 holotea refit"),
        ("final", "all slides stflow refit"),
        ("final", "all slides holotea refit"),
    ]
    for name in ("stflow", "holotea"):
        path = tiny.place(stacked.workdir, None, name) / "model" / "model.json"
        model = json.loads(path.read_text())
        assert (model["method"], model["epochs"]) == (name, 1)


def test_every_section_is_left_as_an_input_file(stacked):
    names = [f"P1_S{i}.h5ad" for i in (1, 2, 3, 4)]
    assert sorted(p.name for p in stacked.sections.iterdir()) == names
    for i, name in enumerate(names):
        ours, theirs = (h5ad.read(folder / name) for folder in (stacked.sections, stacked.data))
        assert (ours.patient, ours.section, ours.z_um) == ("P1", f"S{i + 1}", 16.0 * i)
        assert (theirs.patient, theirs.section, theirs.z_um) == ("P1", f"S{i + 1}", 16.0 * i)
        assert ours.registered_um is None and ours.encoder == tiny.ENCODER
        for field in ("barcodes", "coords_um", "features", "genes"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
        assert (ours.counts != theirs.counts).nnz == 0


def test_a_finished_workdir_reports_and_exits_0(stacked, tmp_path, capsys):
    copy = shutil.copytree(stacked.workdir, tmp_path / "work")
    (copy / "metrics.json").unlink()
    with mock.patch.object(loop, "train_step", side_effect=AssertionError("trained again")):
        assert tiny.run(stacked.config(), copy) == 0
    assert "centred_sum" in capsys.readouterr().err
    again, before = ((w / "metrics.json").read_text() for w in (copy, stacked.workdir))
    assert again == before


def test_a_lost_model_is_made_again_from_its_stages(stacked, written, tmp_path):
    """What was fitted and trained is the same the second time; nothing is trained."""
    copy = shutil.copytree(stacked.workdir, tmp_path / "work")
    for name in ("stflow", "holotea"):
        shutil.rmtree(tiny.place(copy, 1, name) / "model")
    for path in copy.glob("fold_1/*/seed_0/scores.json"):
        path.unlink()
    with mock.patch.object(loop, "train_step", side_effect=AssertionError("trained again")):
        assert tiny.run(stacked.config(), copy) == 0
    again = json.loads((copy / "metrics.json").read_text())
    assert again["methods"] == written["methods"]


# Two patients


@pytest.fixture(scope="module")
def patients(tmp_path_factory) -> Path:
    """Two sections each of two patients."""
    made = [
        dataclasses.replace(slide, patient=patient)
        for slide, patient in zip(moved(tiny.slides()), ("A", "A", "B", "B"), strict=True)
    ]
    return tiny.write(tmp_path_factory.mktemp("patients"), made)


def test_rows_that_have_no_neighbour_are_marked(patients, tmp_path, capsys):
    """Folds by patient leave HoloTea nothing that STFlow has not: log, table and file say so."""
    asked = ("ridge", "neighbour_copy", "stflow", "holotea_he", "holotea")
    fields = {**QUICK, "fold": 0, "methods": asked, "data__dir": str(patients)}
    assert tiny.run(tiny_stack.config(**fields), tmp_path / "work") == 0
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if "is predicted without, or left out" in line]
    (warned,) = [line for line in lines if "fold 0: P1_S1, P1_S2: no other section" in line]
    assert "is measured (neighbour_copy, holotea)" in warned and "is seen (holotea_he)" in warned
    table = {line.split("  ")[0] for line in said.splitlines()}
    assert {"ridge", "stflow", "neighbour_copy [1]", "holotea [1]", "holotea_draw [1]"} <= table
    assert {"holotea_he [2]", "holotea_he_draw [2]"} <= table
    assert "[1] no other section of its stack is measured: neighbour_copy in fold 0; " in said
    written = json.loads((tmp_path / "work" / "metrics.json").read_text())
    lacks = written["folds"][0]["lacks"]
    assert set(lacks) == {"neighbour_copy", "holotea", "holotea_he"}
    assert set(lacks["holotea"]) == {"P1_S1", "P1_S2"}
    assert "neighbour_copy" not in written["methods"]
    scores = written["methods"]
    assert scores["holotea"]["pearson"] == scores["stflow"]["pearson"], "nothing is seen"


def test_a_section_left_out_of_every_stack_has_its_neighbours(patients, tmp_path, capsys):
    """And the table has the score within each of the slides."""
    fields = {"methods": ("ridge", "neighbour_copy", "centred_sum"), "data__dir": str(patients)}
    made = tiny_stack.config(**fields, data__folds="section")
    assert tiny.run(made, tmp_path / "work") == 0
    said = capsys.readouterr().err
    assert "left out" not in said.replace("left out,", "") and "pearson_slide" in said
    written = json.loads((tmp_path / "work" / "metrics.json").read_text())
    tests = [fold["test"] for fold in written["folds"]]
    assert tests == [["P1_S1", "P1_S3"], ["P1_S2", "P1_S4"]]
    assert all(fold["lacks"] == {} for fold in written["folds"])
    for name in fields["methods"]:
        assert {"consistency", "pearson_slide"} <= set(written["methods"][name])


# Prediction of a volume


def predicted(stacked, output: Path, **fields) -> anndata.AnnData:
    fields = {"predict__input": str(stacked.sections), "predict__sections": ("S2",), **fields}
    made = stacked.config(predict__output=str(output), **fields)
    assert tiny.run(made, stacked.workdir, "predict") == 0
    return anndata.read_h5ad(output)


@pytest.fixture(scope="module")
def generated(stacked, tmp_path_factory):
    """The second section from the others by the model of the fold that never saw it."""
    output = tmp_path_factory.mktemp("generated") / "volume.h5ad"
    barcode = h5ad.read(stacked.sections / "P1_S2.h5ad").barcodes[7]
    return predicted(stacked, output, predict__why=f"S2:{barcode}"), output


@pytest.mark.parametrize("method", ["holotea", "holotea_he"])
def test_a_model_that_is_passed_on_generates_the_same(stacked, tmp_path, method):
    """Also where it is told of sections that it was trained on."""
    folder = stfm.export(stacked.workdir, tmp_path / "out", method=method)
    assert {p.name for p in folder.iterdir()} == {"README.md", "config.json", "final"}
    models = stfm.load(stacked.workdir, method), stfm.load(folder)
    here, there = (m.predict(stacked.sections, sections=("S2",), draws=2) for m in models)
    np.testing.assert_array_equal(there.X, here.X)
    np.testing.assert_array_equal(there.layers["std"], here.layers["std"])


def test_the_volume_keeps_the_contract(stacked, generated):
    adata, output = generated
    sections = [h5ad.read(stacked.sections / f"P1_S{i}.h5ad") for i in (1, 2, 3, 4)]
    path = tiny.place(stacked.workdir, 1, "holotea") / "model" / "model.json"
    assert list(adata.var_names) == json.loads(path.read_text())["genes"]
    assert list(adata.obs["section"].cat.categories) == ["S1", "S2", "S3", "S4"]
    new = (adata.obs["section"] == "S2").to_numpy()
    np.testing.assert_array_equal(adata.obs["measured"], ~new)
    for section in sections:
        here = (adata.obs["section"] == section.section).to_numpy()
        np.testing.assert_array_equal(adata.obs["barcode"][here], section.barcodes)
        np.testing.assert_array_equal(adata.obsm["spatial"][here], section.coords_in)
        assert (adata.obs["z_um"][here] == section.z_um).all()
        if section.section != "S2":
            columns = [list(section.genes).index(gene) for gene in adata.var_names]
            true = np.log1p(section.counts.toarray()[:, columns])
            for values in (adata.X, adata.layers["q10"], adata.layers["q90"]):
                np.testing.assert_allclose(values[here], true, rtol=1e-6)
    spread = adata.layers["std"]  # none where all draws are 0
    assert (spread[new] > 0).mean() > 0.9 and not spread[~new].any()
    np.testing.assert_array_equal(adata.obsm["spatial3d"][:, 2], adata.obs["z_um"])
    assert (adata.layers["q10"] <= adata.layers["q90"]).all() and adata.X.min() >= 0
    assert adata.uns["normalization"] == "log1p" and adata.uns["encoder"] == tiny.ENCODER
    assert adata.uns["stfm"]["method"] == "holotea" and adata.uns["stfm"]["draws"] == 3
    assert adata.uns["stfm"]["checkpoint"].endswith("fold_1/holotea/seed_0/model")
    beside = {p.name for p in output.parent.iterdir()}
    assert beside > {f"volume{end}" for end in (".h5ad", ".png", ".html", "_why.csv", "_why.png")}
    assert all(name.startswith("volume") for name in beside)


def test_sections_lie_in_the_volume_as_they_grew(generated):
    """But for one motion of the whole stack."""
    adata, _ = generated
    true = np.concatenate([s.registered_um for s in tiny.slides(registered=True)])
    places = adata.obsm["spatial3d"][:, :2]
    a, b = true - true.mean(axis=0), places - places.mean(axis=0)
    left, _, right = np.linalg.svd(a.T @ b)
    off = np.linalg.norm(a @ (left @ right) - b, axis=1)
    assert np.sqrt((off**2).mean()) < 60.0  # of spots 200 um apart


def test_the_generated_section_is_what_the_fold_was_scored_on(stacked, generated):
    adata, _ = generated
    here = (adata.obs["section"] == "S2").to_numpy()
    np.testing.assert_allclose(adata.X[here], points(stacked)["holotea"], atol=1e-5)


def test_counts_of_a_generated_section_are_not_looked_at(stacked, generated, tmp_path, capsys):
    """A section without any is generated alike, unasked; what it holds is compared."""
    shutil.copytree(stacked.sections, tmp_path / "in")
    edit(
        tmp_path / "in" / "P1_S2.h5ad", lambda a: anndata.AnnData(obs=a.obs, obsm=a.obsm, uns=a.uns)
    )
    capsys.readouterr()
    fields = {"predict__input": str(tmp_path / "in"), "predict__html": False}
    bare = predicted(stacked, tmp_path / "volume.h5ad", predict__sections=(), **fields)
    assert "Pearson" not in capsys.readouterr().err
    adata, _ = generated
    np.testing.assert_array_equal(bare.obs["measured"], adata.obs["measured"])
    np.testing.assert_array_equal(bare.X, adata.X)
    np.testing.assert_array_equal(bare.layers["std"], adata.layers["std"])
    assert not (tmp_path / "volume.html").exists()


def test_one_file_of_all_sections_is_as_good_as_a_folder(stacked, generated, tmp_path):
    """Though names and barcodes are others then: what was trained on is known again."""
    parts = [anndata.read_h5ad(p) for p in sorted(stacked.sections.iterdir())]
    for part in parts:
        part.obs["z_um"] = part.uns["z_um"]
        part.obs_names = part.obs["section"].astype(str) + "-" + part.obs_names
    anndata.concat(parts, uns_merge="same").write_h5ad(tmp_path / "stack.h5ad")
    fields = {"predict__input": str(tmp_path / "stack.h5ad"), "predict__html": False}
    one = predicted(stacked, tmp_path / "volume.h5ad", **fields)
    np.testing.assert_array_equal(one.obs["measured"], generated[0].obs["measured"])
    np.testing.assert_allclose(one.obsm["spatial3d"], generated[0].obsm["spatial3d"], atol=1e-6)
    np.testing.assert_allclose(one.X, generated[0].X, atol=1e-5)


def test_the_model_of_all_says_what_it_was_trained_on(stacked, generated, tmp_path, capsys):
    capsys.readouterr()
    final = predicted(stacked, tmp_path / "volume.h5ad", fold=None, predict__html=False)
    err = capsys.readouterr().err
    assert "was trained on this section" in err and "gene-wise Pearson" in err
    assert final.uns["stfm"]["checkpoint"].endswith("final/holotea/seed_0/model")
    assert np.abs(final.X - generated[0].X).max() > 1e-3


def test_why_names_the_spots_it_was_told_of(stacked, generated):
    _, output = generated
    table = rows(output.with_name("volume_why.csv"))
    assert 1 < len(table) <= 6 and [int(row["rank"]) for row in table] == list(
        range(1, len(table) + 1)
    )
    assert {row["section"] for row in table} <= {"P1_S1", "P1_S3", "P1_S4"}
    weights = [float(row["weight"]) for row in table]
    assert weights == sorted(weights, reverse=True) and sum(weights) == pytest.approx(1, abs=1e-4)
    assert {row["has_expression"] for row in table} == {"True"}
    for row in table:
        section = h5ad.read(stacked.sections / f"{row['section']}.h5ad")
        assert row["barcode"] in section.barcodes
        assert float(row["dz_um"]) == section.z_um - 16.0
        assert np.hypot(float(row["dx_um"]), float(row["dy_um"])) < 800


@pytest.mark.slow
def test_everything_at_once(tmp_path):
    """Selection, noise, and the prior that knows the stack: as a real run, but small."""
    made = experiment(tmp_path, {"fold": 1})  # the rest as in tiny_stack
    scores = json.loads((made.workdir / "metrics.json").read_text())["methods"]
    assert set(scores) >= POINTS | DRAWS
    for name in DRAWS:
        assert all(np.isfinite(entry["folds"]).all() for entry in scores[name].values()), name
    history = rows(made.workdir / "history.csv")
    stages = list(dict.fromkeys(row["stage"] for row in history if row["fold"] == "1"))
    kinds = ("stflow select", "stflow refit", "holotea select", "holotea refit")
    assert stages == [f"fold 1 {kind}" for kind in kinds]
    selected = [row for row in history if row["stage"] == "fold 1 holotea select"]
    assert [float(row["validation"]) < 0 for row in selected] == [True, True]  # minus the loss
    assert (made.workdir / "learning_curve.png").exists()
    adata = predicted(made, tmp_path / "volume.h5ad")
    new = ~adata.obs["measured"].to_numpy()
    assert (adata.layers["std"][new] > 0).mean() > 0.9 and not adata.layers["std"][~new].any()
    np.testing.assert_allclose(adata.X[new], points(made)["holotea"], atol=1e-5)


# Bad input


def set_height(value):
    def change(adata):
        adata.uns["z_um"] = value

    return change


def without_height(adata):
    del adata.uns["z_um"]


def ten_times(adata):
    adata.obsm["spatial"] = 10 * adata.obsm["spatial"]


def of_another_patient(adata):
    adata.obs["patient"] = "P2"


def placed(offset):
    """At a place in the frame of the stack."""

    def change(adata):
        places = adata.obsm["spatial"] - adata.obsm["spatial"].mean(axis=0) + offset
        heights = np.full(adata.n_obs, adata.uns["z_um"])
        adata.obsm["spatial3d"] = np.column_stack([places, heights])

    return change


def half_the_genes(adata):
    return adata[:, :12].copy()


def said_to_be_measured(adata):
    bare = anndata.AnnData(obs=adata.obs, obsm=dict(adata.obsm), uns=dict(adata.uns))
    bare.obs["measured"] = True
    return bare


def changed(folder: Path, changes: dict) -> None:
    """Edits some sections of a folder; None: the section is taken out."""
    for name, change in changes.items():
        path = folder / f"P1_{name}.h5ad"
        if change is None:
            path.unlink()
        else:
            edit(path, change)


APART = {f"S{i}": placed([9000.0 * i, 0.0]) for i in (1, 2, 3, 4)}
ALONE = dict.fromkeys(("S1", "S3", "S4"))
SWAPPED = {"S2": set_height(32.0), "S3": set_height(16.0)}
CASES = [
    # name, what is done to the sections, fields, words of the message when trained, when predicted
    (
        "one section",
        ALONE,
        {},
        ["one slide alone cannot be split"],
        ["'P1'", "expected two sections or more, found 'P1_S2' alone", "obs['patient']"],
    ),
    (
        "equal heights",
        {"S3": set_height(16.0)},
        {},
        *[["'P1'", "'P1_S2' and 'P1_S3' both at 16 um", "z_um"]] * 2,
    ),
    (
        "heights against the labels",
        SWAPPED,
        {},
        *[["expected the numbers of the sections to go up or down", "S1 (0), S3 (16), S2 (32)"]]
        * 2,
    ),
    (
        "a height absent",
        {"S3": without_height},
        {},
        *[["P1_S3", "has no z_um, but 'P1_S1'", "section_spacing_um"]] * 2,
    ),
    (
        "a spacing that is none",
        dict.fromkeys(("S1", "S2", "S3", "S4"), without_height),
        {"data__section_spacing_um": 0.0},
        ["config.data.section_spacing_um", "above 0, found 0.0"],
        None,  # another config, another workdir
    ),
    (
        "sections that do not overlap",
        APART,
        {},
        *[["'P1_S1' and 'P1_S2'", "found 0%", "residual of", "um", "obsm['spatial3d']"]] * 2,
    ),
    (
        "places for some sections",
        {"S2": placed([0.0, 0.0])},
        {},
        *[["for all sections or for none", "'P1_S2' but not for 'P1_S1'"]] * 2,
    ),
    (
        "mixed units",
        {"S3": ten_times},
        {},
        *[["'P1_S3'", "spots lie 2000 apart", "in micrometres", "um_per_px"]] * 2,
    ),
    (
        "a section without features",
        {"S3": without_features},
        {},
        ["P1_S3", "has no features", "--config.encoder"],
        ["P1_S3", "has no features", tiny.ENCODER, "every section"],
    ),
    (
        "a section of another encoder",
        {"S3": other_encoder},
        {},
        ["features must come from one encoder", "uni_v1 in P1_S3"],
        ["P1_S3", "made by 'uni_v1'", f"trained on '{tiny.ENCODER}'"],
    ),
    (
        "features of another width",
        {"S3": narrower},
        {},
        ["equally wide", "5 in P1_S3"],
        ["P1_S3", "5 wide", "trained on 12"],
    ),
    (
        "sections of two patients",
        {"S4": of_another_patient},
        {},
        ["'P2'", "expected two sections or more, found 'P1_S4' alone"],
        ["sections of one stack", "2 patients ('P1', 'P2')"],
    ),
    (
        "a measured section lacking genes",
        {"S3": half_the_genes},
        {},
        ["P1_S3", "of 8 genes found"],
        ["P1_S3", "is measured, but not for all 8 genes", "without counts"],
    ),
    (
        "measured, without counts",
        {"S3": said_to_be_measured},
        {},
        ["P1_S3", "raw counts are needed"],
        ["P1_S3", "obs['measured'] says", "no counts above 0"],
    ),
    (
        "an unknown section",
        {},
        {"predict__sections": ("S2", "S9")},
        None,
        ["'S9'", "S1, S2, S3, S4"],
    ),
    (
        "nothing to generate",
        {},
        {"predict__sections": ()},
        None,
        ["every section is measured", "--config.predict.sections"],
    ),
    (
        "why of no section",
        {},
        {"predict__why": "S9:6x4"},
        None,
        ["config.predict.why", "SECTION:BARCODE", "'S9:6x4'", "S1, S2, S3, S4"],
    ),
    (
        "why without a barcode",
        {},
        {"predict__why": "S2"},
        None,
        ["config.predict.why", "no spot ''"],
    ),
    (
        "why of no spot",
        {},
        {"predict__why": "S2:99x99"},
        None,
        ["config.predict.why", "'S2' has no spot '99x99'", "look like"],
    ),
    (
        "an image",
        {},
        {"predict__image": "slide.jpg"},
        None,
        ["obsm['features']", "--config.predict.image"],
    ),
    ("a single draw", {}, {"predict__draws": 1}, None, ["config.predict.draws must be at least 2"]),
    (
        "output among the sections",
        {},
        {"predict__output": "IN/volume.h5ad"},
        None,
        ["--config.predict.output", "volume.h5ad", "choose another folder"],
    ),
    (
        "no folder",
        {},
        {"predict__input": "nowhere"},
        None,
        ["nowhere", "no such file"],
    ),
    (
        "an empty folder",
        dict.fromkeys(("S1", "S2", "S3", "S4")),
        {},
        None,
        ["one .h5ad or .zarr for each"],
    ),
]


def to_train(changes, fields):
    def make(world):
        shutil.copytree(world.trained.data, world.data)
        changed(world.data, changes)
        settings = {**tiny_stack.SETTINGS, **world.trained.settings}
        return {**settings, "data__dir": str(world.data), **fields}

    return make


def to_predict(changes, fields):
    def make(world):
        shutil.copytree(world.trained.workdir, world.work)
        given = shutil.copytree(world.trained.sections, world.root / "in")
        changed(given, changes)
        made = {
            **tiny_stack.SETTINGS,
            **world.trained.settings,
            "data__dir": str(world.trained.data),
            "predict__input": str(given),
            "predict__output": str(world.root / "volume.h5ad"),
            "predict__sections": ("S2",),
            **fields,
        }
        output = made["predict__output"].replace("IN", str(given))
        return {**made, "predict__output": output}

    return make


BOTH = [
    (mode, make(changes, fields), words, f"{mode}: {name}")
    for name, changes, fields, *messages in CASES
    for mode, make, words in zip(
        ("train", "predict"), (to_train, to_predict), messages, strict=True
    )
    if words is not None
]


@pytest.mark.parametrize(
    ("mode", "make", "words"), [case[:3] for case in BOTH], ids=[case[3] for case in BOTH]
)
def test_bad_input(stacked, tmp_path, capfd, mode, make, words):
    assert_refused(mode, make, words, stacked, tmp_path, capfd)


def test_a_missing_plotly_is_told_before_the_work(stacked, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    make = to_predict({}, {})
    assert_refused("predict", make, ["plotly", "stfm_jax[html]"], stacked, tmp_path, capfd)


def test_nothing_is_drawn_before_all_stacks_are_registered(stacked, tmp_path, capfd):
    """The second patient's sections do not overlap."""

    def make(world):
        folder = shutil.copytree(stacked.data, world.data)
        changed(folder, {name: change for name, change in APART.items() if name in ("S3", "S4")})
        for name in ("S3", "S4"):
            edit(folder / f"P1_{name}.h5ad", of_another_patient)
        settings = {**tiny_stack.SETTINGS, **stacked.settings, "fold": None}
        return {**settings, "data__dir": str(folder)}

    words = ["'P1_S3' and 'P1_S4'", "found 0%"]
    assert_refused("train", make, words, stacked, tmp_path, capfd)
