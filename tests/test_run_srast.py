"""Super-resolution from slides to split counts, through the command line; and what is refused."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys

import anndata
import launch
import numpy as np
import pytest
import scipy.sparse as sp
import tiny
from bad_input import assert_message

import stfm_jax as stfm
from configs import srast_her2st
from stfm_jax.data.coarsen import by_lattice
from stfm_jax.data.readers import h5ad
from stfm_jax.data.slide import Slide
from stfm_jax.problems import split
from stfm_jax.runtime.files import read_json

pytestmark = pytest.mark.slow
WIDTH = 6


def section(name: str, seed: int) -> Slide:
    """12 x 12 spots of a gradient; features tell each spot's depth."""
    rng = np.random.default_rng(seed)
    at = np.argwhere(np.ones((12, 12)))
    depth = rng.gamma(4.0, 0.25, len(at))
    mean = np.exp(0.15 * at @ rng.normal(size=(2, 16))) * depth[:, None] * 3.0
    features = rng.normal(0, 0.1, (len(at), WIDTH))
    features[:, 0] += np.log(depth)
    return Slide(
        name=name,
        barcodes=np.array([f"{i}x{j}" for i, j in at]),
        coords_um=at * 100.0 + 500.0,
        counts=sp.csr_matrix(rng.poisson(mean).astype(np.float32)),
        genes=np.array([f"g{i}" for i in range(16)]),
        features=features.astype(np.float32),
        encoder="toy",
        patient=name,
    )


OVERRIDES = {
    "devices": 1,
    "data.reader": "anndata",
    "data.num_genes": 4,
    "srast.pool": 8,
    "srast.trained_on": 16,
    "srast.batch": 256,
    "srast.width": 8,
    "train.epochs": 2,
    "sample.draws": 9,
    "sample.evaluations": 3,
    "predict.draws": 2,
}


def config(**changed):
    made = srast_her2st.get_config()
    changed = {k.replace("__", "."): v for k, v in changed.items()}
    made.update_from_flattened_dict(OVERRIDES | changed)
    return made.lock()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("data"), [section(f"P{i}", i) for i in range(3)])


@pytest.fixture(scope="module")
def work(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("srast") / "work"
    assert tiny.run(config(data__dir=str(data)), folder) == 0
    return folder


@pytest.fixture(scope="module")
def low(tmp_path_factory):
    """A sample nobody saw, coarse; it lacks some of the genes and has others."""
    pair = by_lattice(section("new", 9))
    slide = dataclasses.replace(
        pair.low, genes=np.array([f"g{i + 5}" for i in range(16)]), features=None
    )
    path = tmp_path_factory.mktemp("low") / "low.h5ad"
    h5ad.write(slide, path)
    return path


def test_the_report(work):
    report = read_json(work / "metrics.json")
    rows = report["methods"]
    assert {"uniform", "bilinear", "bicubic", "gaussian", "srast", "srast_draw"} <= rows.keys()
    for name, row in rows.items():
        assert row["mass_error"]["mean"] < 1e-6, name
    assert rows["uniform"]["ratio"]["mean"] == 0.0
    for compared in (report["comparisons"], *report["comparisons_by_fold"].values()):
        assert {"pearson", "pearson_log1p", "ratio"} == {name.split(", ")[1] for name in compared}
    assert report["mixing"].keys() == {"expression", "latents", "normed"}
    assert (work / "maps_P0.png").exists() and (work / "latents.png").exists()
    for fold in report["folds"]:
        trained_on = set(
            read_json(tiny.place(work, fold["fold"], "srast") / "model/model.json")["genes"]
        )
        assert not trained_on & set(report["genes"]["by_fold"][str(fold["fold"])])


def test_a_model_that_is_passed_on_splits_the_same(work, low, tmp_path):
    folder = stfm.export(work, tmp_path / "out", method="srast")
    here, there = (stfm.load(w).predict(low, draws=2) for w in (work, folder))
    assert (here.X != there.X).nnz == 0 and set(here.layers) == set(there.layers)
    card = (folder / "README.md").read_text()
    assert "splits the counts of spots" in card and "it sees no image" in card


def test_again_nothing_is_done_and_eval_says_the_same(data, work):
    before, metrics = tiny.contents(work / "fold_0"), read_json(work / "metrics.json")["methods"]
    assert tiny.run(config(data__dir=str(data)), work) == 0
    assert tiny.contents(work / "fold_0") == before
    assert tiny.run(config(data__dir=str(data)), work, "eval") == 0
    assert read_json(work / "metrics.json")["methods"] == metrics


def test_of_a_large_sample_the_middle_is_scored(data, work, tmp_path, monkeypatch):
    copy = shutil.copytree(work, tmp_path / "copy")
    monkeypatch.setattr(split, "SCORED", 12)
    assert tiny.run(config(data__dir=str(data)), copy, "eval") == 0
    for fold in read_json(copy / "metrics.json")["folds"]:
        assert (fold["parents"], fold["spots"]) == ([12], [48])
    pair = split.SplitSettings.of(config()).scored_pair(section("P0", 0))
    far = np.linalg.norm(pair.low.coords_um - 1050.0, axis=1)
    assert pair.low.num_spots == 12 and far.max() < 500.0  # of a tissue 1,200 um wide


def test_limits(work):
    """Weights fitted to the truth split it better than those of other samples."""
    script = tiny.REPOSITORY / "benchmarks/split_limits.py"
    done = subprocess.run(
        [sys.executable, script, f"--workdir={work}"], capture_output=True, text=True, check=True
    )
    rows = [line.rsplit(maxsplit=3) for line in done.stdout.splitlines()[1:]]
    found = {" ".join(row[0].split()): float(row[2]) for row in rows}
    assert len(found) == 3 * 6
    for fold in range(3):
        assert found[f"{fold} weights of truth"] > found[f"{fold} srast"] - 0.002


def test_two_processes_of_two_devices(data, work, low, tmp_path):
    """Training, scores and prediction as on one device; one process writes."""
    again, output, expected = (tmp_path / name for name in ("again", "high.h5ad", "alone.h5ad"))
    fields = OVERRIDES | {"fold": 0, "data.dir": data, "predict.input": low}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    flags += ["--config.devices=0", f"--config.predict.output={output}", f"--workdir={again}"]
    for mode in ("train", "predict"):
        both = launch.start_two("--config=configs/srast_her2st.py", *flags, f"--mode={mode}")
        for code, err in map(launch.ended, both):
            assert code == 0, err
    for method in ("gaussian", "srast"):
        mine, theirs = (
            read_json(tiny.place(path, 0, method) / "scores.json")["scores"]
            for path in (again, work)
        )
        for row, scores in theirs.items():
            assert mine[row] == pytest.approx(scores, abs=5e-3), row
    alone = config(
        fold=0, data__dir=str(data), predict__input=str(low), predict__output=str(expected)
    )
    assert tiny.run(alone, work, "predict") == 0
    mine, theirs = (anndata.read_h5ad(path).X.toarray() for path in (output, expected))
    np.testing.assert_allclose(mine, theirs, rtol=1e-3)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"again", "high.h5ad", "high.png", "alone.h5ad", "alone.png"}


def test_trained_on_simulated_tissue_and_scored_on_one_slide(data, tmp_path, capfd):
    """Which trains nothing; the simulated spots must lie closer than the groups are wide."""
    alone = tiny.write(tmp_path / "one", [section("P0", 0)])
    fields = {
        "data__dir": str(alone),
        "srast__simulated_seeds": (0,),
        "data__tissue__num_sections": 2,
        "data__tissue__spots": 100,
        "data__tissue__num_genes": 40,
        "coarsen__group": "size",
        "coarsen__size_um": 240.0,
    }
    made = config(**fields, data__tissue__pitch_um=300.0)
    assert tiny.run(made, tmp_path / "work") == 2
    words = ["P1_S1", "has one child", "300 um apart", "--config.data.tissue.pitch_um"]
    assert_message(capfd.readouterr().err, words)
    assert tiny.run(config(**fields, data__folds="patient"), tmp_path / "work") == 2
    assert_message(capfd.readouterr().err, ["every slide is tested", "config.data.folds=patient"])
    assert tiny.run(config(**fields, data__tissue__pitch_um=100.0), tmp_path / "work") == 0
    (fold,) = read_json(tmp_path / "work" / "metrics.json")["folds"]
    assert fold["test"] == ["P0"] and len(fold["train"]) == 2


@pytest.mark.parametrize("kind", ["largest_remainder", "multinomial", "real"])
def test_predict_splits_every_count(data, work, low, tmp_path, kind):
    output = tmp_path / "high.h5ad"
    made = config(
        data__dir=str(data), predict__input=str(low), predict__output=str(output),
        predict__whole=kind,
    )  # fmt: skip
    assert tiny.run(made, work, "predict") == 0
    coarse, fine = anndata.read_h5ad(low), anndata.read_h5ad(output)
    assert fine.n_obs == 4 * coarse.n_obs and output.with_suffix(".png").exists()
    row = coarse.obs_names.get_indexer(fine.obs["parent"])
    counts = coarse[:, fine.var_names].X.toarray()
    for values in (fine.X, fine.layers["draw_0"], fine.layers["draw_1"]):
        total = np.zeros(counts.shape)
        np.add.at(total, row, values.toarray())
        np.testing.assert_allclose(total, counts, rtol=1e-6)
        assert values.indptr.dtype == values.indices.dtype == np.int32
    if kind != "real":
        assert fine.layers["draw_0"].dtype == np.int32
        assert (fine.layers["draw_0"] != fine.layers["draw_1"]).nnz > 0
    middle = coarse.obsm["spatial"][row]
    np.testing.assert_allclose(np.abs(fine.obsm["spatial"] - middle), 50.0)
    assert fine.uns["stfm"]["method"] == "srast"


def test_predict_with_the_childrens_own_places_and_images(data, tmp_path, capfd):
    """Children of a file, at the tissue's edge fewer to a parent; their features are used."""
    made = config(data__dir=str(data), srast__image=True, encoder__name="precomputed", fold=0)
    work = tmp_path / "work"
    assert tiny.run(made, work) == 0
    scores = read_json(work / "metrics.json")["methods"]
    assert scores["srast"]["ratio"]["mean"] > scores["gaussian"]["ratio"]["mean"] + 0.3
    pair = by_lattice(section("new", 9).subset(np.arange(5, 144)))
    children = dataclasses.replace(pair.high, parent=pair.low.barcodes[pair.parent])
    h5ad.write(dataclasses.replace(pair.low, features=None), tmp_path / "low.h5ad")
    h5ad.write(children, tmp_path / "children.h5ad")
    fields = {
        "predict.input": str(tmp_path / "low.h5ad"),
        "predict.children": str(tmp_path / "children.h5ad"),
        "predict.output": str(tmp_path / "high.h5ad"),
    }
    made = made.copy_and_resolve_references().unlock()
    made.fold = None
    made.update_from_flattened_dict(fields)
    capfd.readouterr()
    assert tiny.run(made, work, "predict") == 0
    assert "holds counts too" in capfd.readouterr().err
    fine = anndata.read_h5ad(tmp_path / "high.h5ad")
    assert list(fine.obs_names) == list(children.barcodes)


def change(slide: Slide, **fields) -> Slide:
    return dataclasses.replace(slide, **fields)


def bad_children(parent):
    def make(pair):
        high = change(pair.high, counts=None, genes=None, features=None)
        return pair.low, change(high, parent=np.array(parent(pair), str))

    return make


def orphan(pair):
    names = pair.low.barcodes[pair.parent].astype("U9")
    names[3] = "nobody"
    return names


def wrong_mass(pair):
    counts = pair.low.counts.copy()
    counts.data[0] += 1
    high = change(pair.high, parent=pair.low.barcodes[pair.parent], features=None)
    return change(pair.low, counts=counts), high


BAD = {
    "a child without parent": (
        bad_children(orphan),
        ["1 of 144 children", "nobody", "obs['parent']"],
    ),
    "a parent without children": (
        bad_children(lambda p: p.low.barcodes[np.where(p.parent == 4, 0, p.parent)]),
        ["1 of 36 parents have no children", "drop them"],
    ),
    "mass that does not add up": (wrong_mass, ["add up to their parent", "1 of 36 parents"]),
    "children that name no parent": (
        lambda p: (p.low, change(p.high, features=None)),
        ["children.h5ad", "obs['parent']"],
    ),
    "no counts": (
        lambda p: (change(p.low, counts=p.low.counts * 0), None),
        ["low.h5ad", "every count is 0"],
    ),
    "no lattice": (
        lambda p: (
            change(p.low, coords_um=(c := np.random.default_rng(0).uniform(0, 900, (36, 2))),
                   coords_in=c),
            None,
        ),
        ["low.h5ad", "lie on no lattice"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_pairs_are_refused(data, work, tmp_path, capfd, what):
    make, words = BAD[what]
    low, high = make(by_lattice(section("new", 9)))
    h5ad.write(low, tmp_path / "low.h5ad")
    fields = {"predict__input": str(tmp_path / "low.h5ad")}
    if high is not None:
        h5ad.write(high, tmp_path / "children.h5ad")
        fields["predict__children"] = str(tmp_path / "children.h5ad")
    fields |= {"predict__output": str(tmp_path / "high.h5ad"), "data__strict": True}
    made = config(data__dir=str(data), **fields)
    before = tiny.contents(tmp_path)
    capfd.readouterr()
    assert tiny.run(made, work, "predict") == 2
    assert_message(capfd.readouterr().err, words)
    assert tiny.contents(tmp_path) == before


def in_file(path, alter):
    adata = anndata.read_h5ad(path)
    alter(adata)
    adata.write_h5ad(path)


def set_x(value):
    def alter(adata):
        x = adata.X.toarray()
        x[0, 0] = value
        adata.X = sp.csr_matrix(x)

    return alter


def set_place(adata):
    adata.obsm["spatial"][0, 0] = np.nan


def no_gene_varies(adata):
    adata.X = sp.csr_matrix(np.ones(adata.shape, np.float32))


BAD_FILES = {
    "a share of a count": (set_x(0.5), ["non-negative integers", "0.5"]),
    "a negative count": (set_x(-2.0), ["non-negative integers", "-2"]),
    "no place": (set_place, ["1 spots have NaN", "drop them"]),
    "no gene varies": (no_gene_varies, ["no", "varies"]),
}


@pytest.mark.parametrize("mode", ["train", "predict"])
@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_files_are_refused(data, work, low, tmp_path, capfd, what, mode):
    alter, words = BAD_FILES[what]
    fields = {"data__dir": str(data)}
    if mode == "train":
        folder = tiny.write(tmp_path / "slides", [section(f"P{i}", i) for i in range(3)])
        for path in folder.glob("*.h5ad"):
            in_file(path, alter)
        fields["data__dir"] = str(folder)
        target = tmp_path / "work"
    else:
        (tmp_path / "in.h5ad").write_bytes(low.read_bytes())
        in_file(tmp_path / "in.h5ad", alter)
        fields |= {
            "predict__input": str(tmp_path / "in.h5ad"),
            "predict__output": str(tmp_path / "out.h5ad"),
        }
        target = work
    capfd.readouterr()
    assert tiny.run(config(**fields), target, mode) == 2
    assert_message(capfd.readouterr().err, words)
    assert not (tmp_path / "out.h5ad").exists() and not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"coarsen__group": "3x3"}, ["config.coarsen.group", "2x2", "3x3"]),
        ({"coarsen__group": "hex7"}, ["its lattice is square", "hex7"]),
        ({"coarsen__group": "size"}, ["--config.coarsen.size_um"]),
        ({"coarsen__group": "named"}, ["obs['parent']"]),
        (
            {"coarsen__group": "size", "coarsen__size_um": 64.0},
            ["144 parents has one child", "100 um apart", "--config.coarsen.size_um"],
        ),
        ({"srast__width": 9}, ["config.srast.width (9)", "config.srast.heads (2)"]),
        ({"srast__pairing": "optimal"}, ["srast.pairing=optimal", "--config.srast.noise=uniform"]),
        ({"srast__trained_on": 2}, ["none is left to train on", "--config.srast.trained_on"]),
        ({"predict__whole": "halves"}, ["config.predict.whole", "multinomial"]),
    ],
)
def test_bad_settings_are_refused(data, tmp_path, capfd, fields, words):
    capfd.readouterr()
    assert tiny.run(config(data__dir=str(data), **fields), tmp_path / "work") == 2
    assert_message(capfd.readouterr().err, words)
    assert not (tmp_path / "work").exists()
