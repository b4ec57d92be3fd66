"""The modes of run.py on a tiny experiment, and the contract of what they write."""

from __future__ import annotations

import csv
import json
import shutil
from unittest import mock

import anndata
import h5py
import numpy as np
import pytest
import tiny

import stfm_jax as stfm
from stfm_jax.data.readers import h5ad
from stfm_jax.data.readers.h5ad_elements import layer_names
from stfm_jax.data.simulate import TissueParams, volume
from stfm_jax.models.stflow.method import STFlowMethod
from stfm_jax.ops import metrics
from stfm_jax.runtime.files import read_json
from stfm_jax.score import expression as evaluate

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
METHODS = {
    "mean",
    "ridge",
    "ridge_smooth",
    "ridge_context",
    "kernel_ridge",
    "anchor",
    "anchor_residual",
    "stflow",
    "stflow_draw",
}
METRICS = {
    "pearson",
    "pearson_spot",
    "spearman",
    "mse",
    "mae",
    "gene_structure",
    "moran",
    "crps",
}


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_json_has_the_shape_of_the_contract(trained):
    written = trained.metrics
    assert set(written["methods"]) >= METHODS
    for method, scores in written["methods"].items():
        assert set(scores) >= METRICS, method
        for metric, entry in scores.items():
            assert set(entry) == {"mean", "std", "folds", "seeds", "seed_std"}, (method, metric)
            assert len(entry["folds"]) == 3
    pearson = written["methods"]["ridge"]["pearson"]
    assert pearson["mean"] == pytest.approx(np.mean(pearson["folds"]))
    assert pearson["std"] == pytest.approx(np.std(pearson["folds"], ddof=1))
    assert written["config"]["train"]["epochs"] == 3
    names = sorted(path.stem for path in trained.data.glob("*.h5ad"))
    assert [fold["test"] for fold in written["folds"]] == [[name] for name in names]
    assert all(sorted(f["train"] + f["test"]) == names for f in written["folds"])
    assert [len(genes) for genes in written["genes"]["by_fold"].values()] == [8, 8, 8]


def test_scores_are_those_of_the_saved_predictions(trained):
    """Pearson recomputed from the predictions and from the counts in the input files."""
    for i, fold in enumerate(trained.metrics["folds"]):
        slide = h5ad.read(trained.data / f"{fold['test'][0]}.h5ad")
        genes = trained.metrics["genes"]["by_fold"][str(i)]
        columns = [list(slide.genes).index(gene) for gene in genes]
        true = np.log1p(slide.counts.toarray()[:, columns])
        stored = tiny.points(trained.workdir, i)
        np.testing.assert_allclose(stored["expr"], true, rtol=1e-6)
        for method in ("stflow", "ridge", "mean"):
            predicted = stored[method]
            scores = evaluate.score_point(
                [predicted], evaluate.TestSet(("x",), [slide.coords_um], [true])
            )
            got = trained.metrics["methods"][method]["pearson"]["folds"][i]
            assert got == pytest.approx(scores["pearson"], abs=1e-6)
            by_hand = np.mean(
                [np.corrcoef(predicted[:, g], true[:, g])[0, 1] for g in range(8)]
                if method != "mean"
                else [0.0]
            )
            assert got == pytest.approx(by_hand, abs=1e-5)


def test_tables_and_pictures(trained):
    per_gene = rows(trained.workdir / "per_gene.csv")
    assert {"fold", "gene", "method", "pearson"} <= set(per_gene[0])
    stflow = [row for row in per_gene if row["method"] == "stflow" and row["fold"] == "0"]
    assert [row["gene"] for row in stflow] == trained.metrics["genes"]["by_fold"]["0"]
    mean = np.mean([float(row["pearson"]) for row in stflow])
    assert mean == pytest.approx(trained.metrics["methods"]["stflow"]["pearson"]["folds"][0])
    history = rows(trained.workdir / "history.csv")
    select = [row for row in history if row["stage"] == "fold 1 stflow select"]
    assert [int(row["epoch"]) for row in select] == [1, 2, 3]
    assert all(float(row["train_loss"]) > 0 and row["validation"] for row in select)
    assert {row["fold"] for row in history} == {"0", "1", "2", "final"}
    pictures = {path.name for path in trained.workdir.glob("*.png")}
    assert pictures == {"learning_curve.png"} | {f"maps_P1_S{i}.png" for i in (1, 2, 3)}
    assert json.loads((trained.workdir / "config.json").read_text())["model"]["width"] == 16
    hidden = [p for p in trained.workdir.rglob("*") if p.name.startswith(".")]
    assert not hidden


def test_a_finished_workdir_reports_and_exits_0(trained, tmp_path, capsys):
    """Nothing is trained again; a lost report is written again, word for word."""
    copy = shutil.copytree(trained.workdir, tmp_path / "work")
    (copy / "metrics.json").unlink()
    before = tiny.contents(copy)
    assert tiny.run(trained.config(), copy) == 0
    assert "stflow" in capsys.readouterr().err
    assert (copy / "metrics.json").read_text() == (trained.workdir / "metrics.json").read_text()
    changed = {name for name, time in tiny.contents(copy).items() if before.get(name) != time}
    assert {name.split(".")[-1] for name in changed} <= {"json", "csv", "png"}
    assert not {name for name in changed if "/" in name}


def test_one_fold_alone_scores_as_it_does_among_all(trained, tmp_path):
    """--config.fold; same seed, same data: the same numbers in another workdir."""
    argv = tiny.arguments(tmp_path / "work", data__dir=trained.data)
    assert tiny.command(*argv, "--config.fold=1") == 0
    one = json.loads((tmp_path / "work" / "metrics.json").read_text())
    assert [fold["fold"] for fold in one["folds"]] == [1]
    for method, scores in trained.metrics["methods"].items():
        for metric, entry in scores.items():
            assert one["methods"][method][metric]["folds"] == [entry["folds"][1]], (method, metric)
    assert sorted(p.name for p in (tmp_path / "work").glob("fold_*")) == ["fold_1"]


def test_a_method_that_is_added_is_the_workdirs_too(trained, tmp_path):
    """The last that came predicts, whatever the order of a command that adds none."""
    work = shutil.copytree(trained.workdir, tmp_path / "work")
    before = read_json(work / "config.json")["methods"]
    assert tiny.run(trained.config(methods=("random_forest",)), work) == 0
    assert read_json(work / "config.json")["methods"] == [*before, "random_forest"]
    assert stfm.load(work).method == "random_forest"
    assert tiny.run(trained.config(methods=("ridge",)), work) == 0
    assert stfm.load(work).method == "random_forest"


def test_a_comma_makes_a_tuple_of_every_field(trained, tmp_path):
    argv = tiny.arguments(tmp_path / "work", data__dir=trained.data)
    flags = ("--config.methods=mean, ridge_smooth", "--config.coarsen.shift=1,2")
    assert tiny.command(*argv, *flags, "--config.data.sections=C1,D1", "--config.fold=1") == 0
    written = json.loads((tmp_path / "work" / "metrics.json").read_text())
    assert list(written["methods"]) == ["mean", "ridge_smooth"]
    config = written["config"]
    assert config["coarsen"]["shift"] == [1, 2] and config["data"]["sections"] == ["C1", "D1"]


@pytest.mark.slow
def test_another_seed_gives_other_numbers(trained, tmp_path):
    assert tiny.run(trained.config(seed=1, fold=1), tmp_path) == 0
    got = json.loads((tmp_path / "metrics.json").read_text())["methods"]["stflow"]["pearson"]
    assert got["folds"] != [trained.metrics["methods"]["stflow"]["pearson"]["folds"][1]]


def test_eval_scores_the_saved_models_again(trained, tmp_path):
    copy = shutil.copytree(trained.workdir, tmp_path / "work")
    for path in (copy / "metrics.json", copy / "fold_0" / "fold.json"):
        path.unlink()
    assert tiny.run(trained.config(), copy, "eval") == 0
    again = json.loads((copy / "metrics.json").read_text())
    assert again["methods"] == trained.metrics["methods"]


def test_draws_for_the_mean_are_those_of_the_config(trained, tmp_path):
    copy = shutil.copytree(trained.workdir, tmp_path / "work")
    written = json.loads((copy / "config.json").read_text())
    written["sample"]["mean_draws"] = 3
    (copy / "config.json").write_text(json.dumps(written))
    whole = STFlowMethod.predict
    with mock.patch.object(STFlowMethod, "predict", autospec=True, side_effect=whole) as predict:
        assert tiny.run(trained.config(sample__mean_draws=3), copy, "eval") == 0
    asked = [call.args[3] for call in predict.call_args_list]
    assert [(a.seed, a.draws, a.mean_draws) for a in asked] == [(0, 11, 3)] * 3


def test_without_a_refit_the_selected_parameters_are_the_model(trained, tmp_path):
    """But for the model of all slides, which has no slide left to select by."""
    assert tiny.run(trained.config(fold=0, train__refit=False), tmp_path) == 0
    folder = tiny.place(tmp_path, 0)
    assert not (folder / "refit").exists()
    chosen = json.loads((folder / "select" / "done.json").read_text())["best_epoch"]
    for place in (folder, tiny.place(tmp_path, None)):
        model = json.loads((place / "model" / "model.json").read_text())
        assert model["epochs"] == chosen
    stages = {row["stage"] for row in rows(tmp_path / "history.csv")}
    assert stages == {"fold 0 stflow select", "all slides stflow refit"}


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory):
    """The unseen slide, its counts, and the prediction from its features alone."""
    folder = tmp_path_factory.mktemp("predicted")
    given = anndata.read_h5ad(trained.unseen)
    counts = given.to_df()
    del given.obs["patient"]
    bare = anndata.AnnData(obs=given.obs, obsm=dict(given.obsm), uns=dict(given.uns))
    bare.write_h5ad(folder / "in.h5ad")
    made = trained.config(
        predict__input=str(folder / "in.h5ad"), predict__output=str(folder / "out.h5ad")
    )
    assert tiny.run(made, trained.workdir, "predict") == 0
    return given, counts, anndata.read_h5ad(folder / "out.h5ad"), folder


def test_predicted_slide_keeps_the_contract(trained, predicted):
    given, _, out, folder = predicted
    final = tiny.place(trained.workdir, None) / "model" / "model.json"
    final = json.loads(final.read_text())
    assert list(out.var_names) == final["genes"] and out.n_vars == 8
    assert list(out.obs_names) == list(given.obs_names)
    np.testing.assert_array_equal(out.obsm["spatial"], given.obsm["spatial"])
    assert out.obsm["spatial_um"].shape == (given.n_obs, 2)
    assert set(layer_names(out)) == {"std", "q10", "q90"}
    for values in (out.X, *out.layers.values()):
        assert values.shape == (given.n_obs, 8) and np.isfinite(values).all() and values.min() >= 0
    assert (out.layers["q10"] <= out.layers["q90"]).all()
    assert out.uns["normalization"] == "log1p" and out.uns["spatial_unit"] == "um"
    assert out.uns["encoder"] == tiny.ENCODER
    provenance = out.uns["stfm"]
    assert {"version", "method", "checkpoint", "config", "draws"} <= set(provenance)
    assert json.loads(provenance["config"])["model"]["width"] == 16
    assert provenance["checkpoint"].endswith("final/stflow/seed_0/model")
    assert {p.name for p in folder.iterdir()} == {
        "in.h5ad",
        "out.h5ad",
        "out.png",
        "out_report.html",
    }


def test_prediction_knows_the_slide_it_has_not_seen(predicted):
    _, counts, out, _ = predicted
    true = np.log1p(counts[list(out.var_names)].to_numpy())
    assert metrics.mean_over_genes(metrics.pearson(np.asarray(out.X), true))[0] > 0.15


def test_predict_can_take_a_folds_model_and_other_draws(trained, predicted, tmp_path):
    """fold and predict.* may change without another workdir; the mean is not a matter of draws."""
    *_, out, folder = predicted
    for fold, name in ((None, "final"), (2, "fold_2")):
        made = trained.config(
            fold=fold,
            predict__draws=3,
            predict__input=str(folder / "in.h5ad"),
            predict__output=str(tmp_path / f"{name}.h5ad"),
        )
        assert tiny.run(made, trained.workdir, "predict") == 0
        other = anndata.read_h5ad(tmp_path / f"{name}.h5ad")
        assert other.uns["stfm"]["draws"] == 3
        assert other.uns["stfm"]["checkpoint"].endswith(f"{name}/stflow/seed_0/model")
        same = list(other.var_names) == list(out.var_names) and np.allclose(other.X, out.X)
        assert same == (fold is None)


def test_embed_writes_beside_the_results_and_never_into_the_data(tmp_path, capsys):
    """Images of simulated tissue, in the HEST embedding format; training takes them from there."""
    made = tiny.config(
        data__reader="simulated",
        data__tissue__num_sections=2,
        data__tissue__spots=30,
        data__tissue__num_genes=30,
        encoder__name="stain_texture",
        encoder__patch_um=64.0,
    )
    assert tiny.run(made, tmp_path / "work", "embed") == 0
    files = sorted((tmp_path / "work").rglob("*.h5"))
    assert [p.relative_to(tmp_path / "work").as_posix() for p in files] == [
        f"embeddings/stain_texture_64um/P1_S{i}.h5" for i in (1, 2)
    ]
    slide = volume(TissueParams(num_sections=2, spots=30, num_genes=30), seed=0).slides[0]
    with h5py.File(files[0]) as file:
        assert file.attrs["encoder"] == "stain_texture_64um"
        assert file["features"].shape[0] == slide.num_spots and file["features"].shape[1] > 10
        np.testing.assert_array_equal(file["barcodes"][:, 0].astype(str), slide.barcodes)
        assert np.isfinite(file["features"][()]).all()
    before = tiny.contents(tmp_path)
    capsys.readouterr()
    assert tiny.run(made, tmp_path / "work", "embed") == 0
    assert tiny.contents(tmp_path) == before
    assert "embeddings of 2 slides by stain_texture_64um are in" in capsys.readouterr().err


def test_embed_says_where_there_is_nothing_to_embed(trained, tmp_path, capsys):
    assert tiny.run(trained.config(), tmp_path / "work", "embed") == 0
    assert "nothing to embed: the files of 3 slides hold" in capsys.readouterr().err
    assert tiny.run(trained.config(methods=("mean",)), tmp_path / "bare", "embed") == 0
    assert "nothing to embed: the methods look at no image" in capsys.readouterr().err
