"""Runs with networks from folders and with several encoders, through the command line."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from pathlib import Path

import anndata
import encoder_folders as folders
import h5py
import numpy as np
import pytest
import tiny
import tiny_stack
from bad_input import World, assert_message, write_her2st

import stfm_jax as stfm
from stfm_jax import encoders
from stfm_jax.data import embeddings, feature_blocks
from stfm_jax.data.readers import h5ad, her2st

ONE, TWO = "one_100um", "two_cls_112um_0123456789abcdef"
METHODS = ("mean", "ridge", "ridge_reduced", "kernel_ridge", "anchor", "stflow")


def with_encoders(slide, *names):
    """The tiny slide, its features as two encoders would see them, or one."""
    rng = np.random.default_rng(7)
    seen = {ONE: slide.features[:, :7], TWO: slide.features @ rng.normal(size=(tiny.WIDTH, 5))}
    return feature_blocks.joined(slide, {name: seen[name].astype(np.float32) for name in names})


@dataclasses.dataclass(frozen=True)
class Runs:
    """The same slides with features of both encoders, and of each alone."""

    root: Path
    unseen: h5ad.Slide

    def work(self, *names) -> Path:
        return self.root / "-".join(names)

    def config(self, *names, methods=METHODS):
        folder = str(self.root / "data" / "-".join(names))
        quick = {"fold": 0, "train__select": False, "train__epochs": 1, "sample__draws": 2}
        return tiny.config(data__dir=folder, methods=methods, **quick)

    def predicted(self, method, *given, of=(ONE, TWO)):
        """What a workdir predicts of the unseen slide, with the features that are given."""
        path = self.root / f"given-{'-'.join(given)}.h5ad"
        h5ad.write(with_encoders(self.unseen, *given), path)
        return stfm.load(self.work(*of), method).predict(path, draws=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    root = tmp_path_factory.mktemp("encoders")
    *trained_on, unseen = tiny.slides()
    made = Runs(root, unseen)
    for names in ((ONE, TWO), (ONE,), (TWO,)):
        slides = [with_encoders(slide, *names) for slide in trained_on]
        tiny.write(root / "data" / "-".join(names), slides)
        methods = METHODS if len(names) > 1 else METHODS[:4]
        assert tiny.run(made.config(*names, methods=methods), made.work(*names)) == 0
    return made


@pytest.mark.parametrize("method", ["ridge", "ridge_reduced", "kernel_ridge"])
def test_predictions_are_averaged_over_encoders(runs, method):
    both = runs.predicted(method, ONE, TWO)
    each = [runs.predicted(method, name, of=(name,)).X for name in (ONE, TWO)]
    np.testing.assert_allclose(both.X, np.mean(each, axis=0), atol=1e-4)
    assert both.uns["encoder"] == f"{ONE}+{TWO}"
    folds = [tiny.points(runs.work(*names), 0)[method] for names in ((ONE, TWO), (ONE,), (TWO,))]
    np.testing.assert_allclose(folds[0], np.mean(folds[1:], axis=0), atol=1e-4)


@pytest.mark.parametrize("method", ["mean", "ridge", "ridge_reduced", "kernel_ridge"])
@pytest.mark.parametrize("given", [ONE, TWO])
def test_where_one_is_missing_the_other_predicts(runs, method, given, caplog):
    one = runs.predicted(method, given)
    alone = runs.predicted(method, given, of=(given,))
    np.testing.assert_allclose(one.X, alone.X, atol=1e-4)
    assert one.uns["encoder"] == given
    (other,) = {ONE, TWO} - {given}
    assert f"has no features of {other}; predicted with those of {given} alone" in caplog.text


def test_the_anchor_can_do_without_and_the_network_says_that_it_cannot(runs):
    assert np.isfinite(runs.predicted("anchor", TWO).X).all()
    assert np.isfinite(runs.predicted("stflow", ONE, TWO).X).all()
    with pytest.raises(stfm.InputError) as error:
        runs.predicted("stflow", TWO)
    assert_message(
        f"error: {error.value}\n",
        [f"no features of {ONE}", "stflow sees the features of its encoders together", "ridge"],
    )


def test_features_of_neither_are_refused(runs, tmp_path):
    slide = dataclasses.replace(runs.unseen, encoder="three_50um")
    h5ad.write(slide, tmp_path / "in.h5ad")
    with pytest.raises(stfm.InputError, match=r"made by 'three_50um', .* on 'one_100um' and"):
        stfm.load(runs.work(ONE, TWO), "ridge").predict(tmp_path / "in.h5ad")


def test_a_model_of_one_takes_its_own_of_several(runs):
    both = runs.predicted("ridge", ONE, TWO, of=(TWO,))
    np.testing.assert_array_equal(both.X, runs.predicted("ridge", TWO, of=(TWO,)).X)


def test_short_names_are_taken_at_their_word(runs, tmp_path, caplog):
    h5ad.write(with_encoders(runs.unseen, ONE, TWO), tmp_path / "in.h5ad")
    given = anndata.read_h5ad(tmp_path / "in.h5ad")
    del given.uns["encoders"]
    model = stfm.load(runs.work(ONE, TWO), "ridge")
    np.testing.assert_array_equal(model.predict(given).X, runs.predicted("ridge", ONE, TWO).X)
    assert "does not say how 'two' was embedded (uns['encoders']); taking it to be" in caplog.text


def test_embeddings_of_several_in_files_of_their_own(runs, tmp_path):
    bare, paths = dataclasses.replace(runs.unseen, features=None, encoder=None), []
    h5ad.write(bare, tmp_path / "in.h5ad")
    for name, features in feature_blocks.by_encoder(with_encoders(runs.unseen, ONE, TWO)).items():
        paths.append(str(tmp_path / f"{name}.h5"))
        embeddings.write(paths[-1], features, bare.coords_in, bare.barcodes, name)
    model = stfm.load(runs.work(ONE, TWO), "ridge")
    found = model.predict(tmp_path / "in.h5ad", embeddings=",".join(paths[::-1]))
    np.testing.assert_array_equal(found.X, runs.predicted("ridge", ONE, TWO).X)
    alone = model.predict(tmp_path / "in.h5ad", embeddings=paths[1])
    np.testing.assert_array_equal(alone.X, runs.predicted("ridge", TWO).X)


def test_what_the_model_and_its_card_say(runs, tmp_path):
    about = json.loads(
        (tiny.place(runs.work(ONE, TWO), None, "ridge") / "model/model.json").read_text()
    )
    assert (about["encoder"], about["features"], about["widths"]) == (f"{ONE}+{TWO}", 12, [7, 5])
    folder = stfm.export(runs.work(ONE, TWO), tmp_path / "out", method="kernel_ridge")
    assert f"`{ONE}` and `{TWO}`, 12 features" in (folder / "README.md").read_text()
    h5ad.write(with_encoders(runs.unseen, TWO), tmp_path / "in.h5ad")
    passed_on = stfm.load(folder).predict(tmp_path / "in.h5ad")
    np.testing.assert_array_equal(passed_on.X, runs.predicted("kernel_ridge", TWO).X)


@pytest.mark.slow
def test_methods_for_stacks_see_them_side_by_side(tmp_path):
    sections = [with_encoders(slide, ONE, TWO) for slide in tiny.slides(registered=True)]
    folder, work = tiny.write(tmp_path / "data", sections), tmp_path / "work"
    methods = ("neighbour_copy", "centred_sum", "holotea")
    made = tiny_stack.config(data__dir=str(folder), methods=methods, fold=0)
    assert tiny.run(made, work) == 0
    for method in ("centred_sum", "holotea"):
        predicted = stfm.load(work, method).predict(folder, sections=("S2",), draws=2)
        assert np.isfinite(predicted.X).all()
    h5ad.write(with_encoders(tiny.slides(registered=True)[0], ONE), folder / "P1_S1.h5ad")
    with pytest.raises(stfm.InputError, match="holotea sees the features of its encoders together"):
        stfm.load(work, "holotea").predict(folder, sections=("S2",))


# --- encoders that embed here ---------------------------------------------------------------------


def images(tmp_path, trained, **fields) -> dict:
    """Two sections with images, a downloaded encoder, and both encoders named."""
    made = World(tmp_path, trained).her2st()
    folder = folders.timm_vit(tmp_path / "downloaded")
    named = {"encoder__name": "stain_texture,mine", "encoder__weights": str(folder)}
    return made | named | {"data__num_genes": 8, "methods": ("ridge", "ridge_smooth")} | fields


def test_a_network_beside_the_descriptor(trained, tmp_path, capfd):
    fields, work = images(tmp_path, trained), tmp_path / "work"
    identity = encoders.load("mine", tmp_path / "downloaded").identity
    assert tiny.run(tiny.config(**fields), work) == 0
    err = capfd.readouterr().err
    assert "um a pixel, mine sees 0.5: they are enlarged" in err
    for encoder in ("stain_texture_100um", identity):
        with h5py.File(work / "embeddings" / encoder / "A2.h5") as file:
            assert file.attrs["encoder"] == encoder
    about = json.loads((tiny.place(work, None, "ridge") / "model" / "model.json").read_text())
    assert about["encoder"] == f"stain_texture_100um+{identity}"


def test_an_image_is_embedded_by_what_the_model_was_trained_on(trained, tmp_path, capfd):
    fields, work = images(tmp_path, trained), tmp_path / "work"
    assert tiny.run(tiny.config(**fields), work) == 0
    h5ad.write(her2st.read(tmp_path / "data", "A1"), tmp_path / "in.h5ad")
    given = {
        "predict__input": str(tmp_path / "in.h5ad"),
        "predict__output": str(tmp_path / "out.h5ad"),
        "predict__image": str(tmp_path / "data" / "ST-imgs" / "A1.jpg"),
        "predict__method": "ridge",
    }
    assert tiny.run(tiny.config(**fields, **given), work, "predict") == 0
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert out.uns["encoder"].startswith("stain_texture_100um+mine_cls_16um_")
    # One of the two embedded before, the other from the image.
    stored = work / "embeddings" / encoders.load("mine", tmp_path / "downloaded").identity / "A1.h5"
    written = anndata.read_h5ad(tmp_path / "in.h5ad")
    with h5py.File(stored) as file:
        written.obsm["features_mine"] = file["features"][()]
        written.uns["encoders"] = {"mine": file.attrs["encoder"]}
    written.write_h5ad(tmp_path / "in.h5ad")
    assert tiny.run(tiny.config(**fields, **given), work, "predict") == 0
    np.testing.assert_allclose(anndata.read_h5ad(tmp_path / "out.h5ad").X, out.X, atol=1e-4)
    image = given["predict__image"]
    passed_on = stfm.load(stfm.export(work, tmp_path / "passed_on", method="ridge"))
    found = passed_on.predict(given["predict__input"], image)
    np.testing.assert_allclose(found.X, out.X, atol=1e-4)
    bare = anndata.read_h5ad(tmp_path / "in.h5ad")
    del bare.obsm["features_mine"]
    with pytest.raises(stfm.InputError, match="names 'mine', which is not built in"):
        passed_on.predict(bare, image)
    found = passed_on.predict(bare, image, weights=tmp_path / "downloaded")
    np.testing.assert_allclose(found.X, out.X, atol=1e-4)
    folders.timm_vit(tmp_path / "downloaded", seed=1)
    bare.write_h5ad(tmp_path / "in.h5ad")
    capfd.readouterr()
    assert tiny.run(tiny.config(**fields, **given), work, "predict") == 2
    assert_message(
        capfd.readouterr().err,
        [
            "the image: would be embedded by 'mine_cls",
            "trained on 'stain_texture_100um' and 'mine_cls",
        ],
    )


def test_other_weights_make_other_embeddings_and_are_told_by_the_model(trained, tmp_path, capfd):
    fields, work = images(tmp_path, trained), tmp_path / "work"
    assert tiny.run(tiny.config(**fields), work) == 0
    folders.timm_vit(tmp_path / "downloaded", seed=1)
    capfd.readouterr()
    assert tiny.run(tiny.config(**fields), work, "eval") == 2
    assert_message(capfd.readouterr().err, ["features were made by", "mine_cls", "embed the slide"])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"encoder__weights": ""}, ["names 'mine'", "encoder.weights=mine=FOLDER"]),
        ({"encoder__name": "stain_texture,uni2-h"}, ["weights of UNI2-h", "of another shape"]),
        ({"encoder__pool": "mean"}, ["encoder.pool", "cls, cls_mean"]),
        ({"encoder__name": "stain_texture"}, ["encoder.weights", "one network only"]),
        ({"encoder__weights": "/none"}, ["/none", "file or folder of weights"]),
    ],
)
def test_bad_settings(trained, tmp_path, capfd, changed, words):
    fields = images(tmp_path, trained) | changed
    assert tiny.run(tiny.config(**fields), tmp_path / "work") == 2
    assert_message(capfd.readouterr().err, words)
    assert not (tmp_path / "work").exists()


def test_export_takes_one_encoder(trained, tmp_path, capfd):
    assert tiny.run(tiny.config(**images(tmp_path, trained)), tmp_path / "work", "export") == 2
    assert_message(capfd.readouterr().err, ["--mode=export", "one encoder", "stain_texture,mine"])


@pytest.mark.slow
def test_killed_while_embedding_it_goes_on_where_it_was(trained, tmp_path):
    write_her2st(tmp_path / "data", "A3")
    fields = images(tmp_path, trained, encoder__name="mine")
    del fields["methods"]
    work, whole = tmp_path / "work", tmp_path / "whole"
    assert tiny.run(tiny.config(**fields), whole, "embed") == 0
    argv = [*tiny.arguments(work, **fields), "--mode=embed"]
    process = tiny.start(*argv)
    while not list(work.rglob("*.partial")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    process = tiny.start(*argv)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert not list(work.rglob("*.partial"))
    for path in whole.rglob("*.h5"):
        with h5py.File(path) as one, h5py.File(work / path.relative_to(whole)) as other:
            np.testing.assert_allclose(one["features"][()], other["features"][()], atol=1e-5)
