"""Prediction into a file: features in memory or in a file, blocks of any size, nothing left."""

from __future__ import annotations

import dataclasses

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import tiny

from stfm_jax.data import embeddings, feature_store
from stfm_jax.errors import InputError
from stfm_jax.models import strangers
from stfm_jax.models.method import Section, gathered
from stfm_jax.models.stflow import memory, whole_slide
from stfm_jax.ops import metrics
from stfm_jax.plots import slides as plots
from stfm_jax.predict import budget, draw_store, library
from stfm_jax.predict import slide as predict
from stfm_jax.predict.file import check_options
from stfm_jax.regression import regressors
from stfm_jax.runtime import memory as memory_free
from stfm_jax.trained import load_model

GIB = 1 << 30


@pytest.fixture(scope="module")
def model(trained):
    return load_model(trained.config(), trained.workdir)[0]


@pytest.fixture
def chunked(monkeypatch):
    """Even 50 spots are predicted as a large slide, in many blocks and chunks."""
    monkeypatch.setattr(whole_slide, "pays", lambda spots: spots > 10)
    monkeypatch.setattr(whole_slide, "CHUNK", 16)
    monkeypatch.setattr(whole_slide, "BLOCK", 16)
    monkeypatch.setattr(feature_store, "BLOCK", 16)
    monkeypatch.setattr(regressors, "BLOCK", 7)
    monkeypatch.setattr(predict, "NUMBERS_AT_ONCE", 3 * 8 * 5)
    monkeypatch.setattr(draw_store, "IN_MEMORY", 0)


def configured(trained, folder, **overrides):
    fields = {
        "predict__input": str(trained.unseen),
        "predict__output": str(folder / "out.h5ad"),
        "predict__draws": 3,
    }
    return trained.config(**fields | overrides)


def predicted(trained, model, folder, change=lambda slide: slide, **overrides):
    config = configured(trained, folder, **overrides)
    model, slide = predict.read_input(config, model)
    predict.predict(model, change(slide), config, folder / "model")
    return anndata.read_h5ad(folder / "out.h5ad")


def in_memory(slide):
    return dataclasses.replace(slide, features=np.asarray(slide.features))


def assert_same(one, other, atol=1e-5):
    assert list(one.obs_names) == list(other.obs_names)
    np.testing.assert_allclose(one.X, other.X, atol=atol)
    for name, values in one.layers.items():
        np.testing.assert_allclose(values, other.layers[name], atol=atol)


@pytest.fixture(scope="module")
def one_call(trained, model, tmp_path_factory):
    """The prediction of the slide in one call, from features in memory."""
    return predicted(trained, model, tmp_path_factory.mktemp("one"), in_memory)


@pytest.mark.parametrize("token_context", [True, False])
def test_blocks_are_what_prepare_gives(trained, model, monkeypatch, token_context):
    settings = dataclasses.replace(model.method.settings, token_context=token_context)
    flow, fitted = settings.flow(len(model.genes.targets)), model.state.fitted
    _, slide = predict.read_input(configured(trained, trained.workdir), model)
    whole = flow.prepare(in_memory(slide), fitted)
    monkeypatch.setattr(feature_store, "BLOCK", 16)
    order = np.random.default_rng(0).permutation(slide.num_spots)
    for features in (slide.features, np.asarray(slide.features)):
        given = dataclasses.replace(slide, features=features).subset(order)
        seen = set()
        for spots, own, anchor in flow.prepare_blocks(given, fitted):
            seen.update(spots.tolist())
            assert len(spots) <= 16
            np.testing.assert_allclose(own, whole.features[order[spots]], atol=1e-4)
            np.testing.assert_allclose(anchor, whole.anchor[order[spots]], atol=1e-4)
        assert seen == set(range(slide.num_spots))


@pytest.mark.parametrize("change", [lambda slide: slide, in_memory])
def test_chunks_and_blocks_give_what_one_call_does(
    trained, model, one_call, chunked, tmp_path, change
):
    assert_same(predicted(trained, model, tmp_path, change), one_call, atol=1e-4)
    assert {p.name for p in tmp_path.iterdir()} == {"out.h5ad", "out.png"}


def test_features_from_an_embedding_file(trained, model, one_call, chunked, tmp_path):
    """In another order than the slide's; spots without one are not predicted."""
    _, slide = predict.read_input(configured(trained, tmp_path), model)
    order = np.random.default_rng(0).permutation(slide.num_spots)
    some = slide.subset(order)
    path = tmp_path / "embedded.h5"
    embeddings.write(path, np.asarray(some.features), some.coords_um, some.barcodes, tiny.ENCODER)
    given = anndata.read_h5ad(trained.unseen)
    del given.obsm["features"]
    given.write_h5ad(tmp_path / "bare.h5ad")
    fields = {
        "predict__input": str(tmp_path / "bare.h5ad"),
        "predict__embeddings": str(path),
    }
    assert_same(predicted(trained, model, tmp_path, **fields), one_call, atol=1e-4)
    embeddings.write(
        path, np.asarray(some.features)[:40], some.coords_um[:40], some.barcodes[:40], tiny.ENCODER
    )
    fewer = predicted(trained, model, tmp_path, **fields)
    assert list(fewer.obs_names) == [b for b in slide.barcodes if b in some.barcodes[:40]]
    with pytest.raises(InputError, match=r"predict\.image or from --config\.predict\.embeddings"):
        read = configured(trained, tmp_path, **fields, predict__image="slide.jpg")
        check_options(read.predict)


def test_output_opens_backed_and_holds_the_spread_of_the_draws(trained, model, chunked, tmp_path):
    out = predicted(trained, model, tmp_path)
    backed = anndata.read_h5ad(tmp_path / "out.h5ad", backed="r")
    np.testing.assert_array_equal(backed.X[:], out.X)
    np.testing.assert_array_equal(backed[:5].to_memory().X, out.X[:5])
    backed.file.close()
    with h5py.File(tmp_path / "out.h5ad") as file:
        for name in ("X", "layers/std", "layers/q10", "layers/q90"):
            assert dict(file[name].attrs) == {"encoding-type": "array", "encoding-version": "0.2.0"}
            assert file[name].dtype == np.float32
    config = configured(trained, tmp_path)
    _, slide = predict.read_input(config, model)
    request = predict.request_of(model, config)
    case = Section(slide, familiar=model.familiar(slide))
    found = model.method.predict(model.state, case, request)
    draws = np.stack([gathered(draw, slide.num_spots) for draw in found.draws])
    np.testing.assert_allclose(out.layers["std"], draws.std(axis=0, ddof=1), atol=1e-5)
    np.testing.assert_allclose(out.layers["q90"], metrics.quantiles(draws, 0.9), atol=1e-5)
    assert out.layers["std"].mean() > 0.05
    np.testing.assert_allclose(out.obs["distance"], found.standing.of_spots(), rtol=1e-5)
    about = out.uns["stfm"]
    assert about["distance_ratio"] < about["distance_usual"] < about["distance_stranger"]
    assert about["flexible_share"] == 1.0 and about["familiar_patient"]
    assert about["library"] == library.trained_on(model) > 1
    rows = pd.read_csv(trained.workdir / "per_gene.csv")
    rows = rows[(rows["method"] == "stflow") & (rows["gene"] == out.var_names[0])]
    assert out.var["expected_pearson"].iloc[0] == pytest.approx(rows["pearson"].mean())


def test_a_stranger_is_predicted_by_the_fit_for_strangers(trained, model, chunked, tmp_path):
    def strange(slide):
        """Features that vary where those of training slides hardly do."""
        features = np.asarray(slide.features)
        minor = np.linalg.svd(features - features.mean(axis=0))[2][-3:]
        odd = np.random.default_rng(0).normal(size=(slide.num_spots, 3)) @ minor
        return dataclasses.replace(slide, features=odd.astype(np.float32), patient="P9")

    out = predicted(trained, model, tmp_path, strange, predict__draws=40)
    about = out.uns["stfm"]
    assert about["distance_ratio"] > about["distance_stranger"] and about["flexible_share"] == 0.0
    _, slide = predict.read_input(configured(trained, tmp_path), model)
    found, transform = model.state.strangers, model.state.fitted.transform
    far = strangers.far_mean(found, transform, strange(slide), (1.0,))
    np.testing.assert_allclose(out.X, np.maximum(far, 0.0), atol=1e-5)
    deep = out.X.min(axis=0) > 1.0  # whose draws are hardly clipped
    assert (out.layers["std"].mean(axis=0)[deep] > np.sqrt(np.diag(found.residual))[deep]).all()


def test_another_library_size(trained, model, tmp_path):
    """Counts twice as deep: expm1 of the mean and of the quantiles doubles."""
    plain = predicted(trained, model, tmp_path)
    twice = {"predict__library": 2 * library.trained_on(model)}
    out = predicted(trained, model, tmp_path, **twice)
    for name in (None, "q90"):
        ratio = np.expm1(out.layers[name] if name else out.X)
        given = np.expm1(plain.layers[name] if name else plain.X)
        np.testing.assert_allclose(ratio, 2 * given, rtol=1e-3, atol=1e-4)
    assert out.uns["stfm"]["library"] == twice["predict__library"]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"predict__library": 0.0}, "must be positive, found 0.0"),
        ({"predict__library": 9.0, "data__normalization": "log1p_cp10k"}, "no library size"),
    ],
)
def test_library_sizes_that_cannot_be(trained, model, tmp_path, given, message):
    with pytest.raises(InputError, match=message):
        predicted(trained, model, tmp_path, **given)
    assert not list(tmp_path.iterdir())


def test_a_model_that_does_not_know_its_library_size(trained, model, tmp_path):
    old = dataclasses.replace(model, slides={"a": {"spots": 3, "patient": ""}})
    with pytest.raises(InputError, match="does not say what library sizes"):
        predicted(trained, old, tmp_path, predict__library=9.0)


def test_an_error_in_a_draw_leaves_nothing(trained, model, chunked, tmp_path, monkeypatch):
    def broken(*arguments):
        yield next(whole(*arguments))
        assert len(list(tmp_path.iterdir())) == 1  # the output to be; the draws have no name
        raise RuntimeError("power cut")

    whole = whole_slide.sample
    monkeypatch.setattr(whole_slide, "sample", broken)
    with pytest.raises(RuntimeError, match="power cut"):
        predicted(trained, model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_map_of_many_spots_shows_some(trained, model, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(predict, "SHOWN", 20)
    monkeypatch.setattr(plots, "spatial_maps", lambda *a, **k: shown.update(k, coords=a[0], m=a[1]))
    monkeypatch.setattr(plots, "save", lambda *_: None)
    out = predicted(trained, model, tmp_path)
    assert shown["coords"].shape == (20, 2) and shown["m"].shape == (20, 8)
    assert f"20 of {out.n_obs} spots" in shown["title"]


@pytest.mark.parametrize("in_memory", [0, 1 << 20])
def test_draw_store(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(draw_store, "IN_MEMORY", in_memory)
    draws = np.random.default_rng(0).normal(size=(4, 30, 3)).astype(np.float32)
    with draw_store.DrawStore(tmp_path, 30, 3) as store:
        for draw in draws:
            store.append(draw.astype(np.float64))
        assert not list(tmp_path.iterdir())
        for first, last in ((0, 30), (7, 8), (25, 30)):
            np.testing.assert_array_equal(store.read(first, last), draws[:, first:last])
        with pytest.raises(ValueError, match=r"shape \(30, 3\), found \(3, 30\)"):
            store.append(draws[0].T)


def too_large(message):
    return pytest.raises(InputError, match=message)


def test_a_slide_that_does_not_fit_is_refused(trained, model, tmp_path, monkeypatch):
    """What is needed, what there is, which option needs less; and what it names would fit."""
    config = configured(trained, tmp_path, predict__draws=64)
    _, slide = predict.read_input(config, model)

    def asked(draws):
        return dataclasses.replace(predict.request_of(model, config), draws=draws)

    def check(draws=64, embeds=False):
        budget.check(model, slide, asked(draws), tmp_path / "new" / "folder", embeds)

    check()
    n = slide.num_spots
    monkeypatch.setattr(
        budget, "available_memory", lambda: budget.memory(model, n, asked(9), False)
    )
    with too_large(rf"P1_S4.*to predict {n} spots needs about .* GiB of memory, .* GiB are free"):
        check()
    with too_large(r"lower --config\.predict\.draws from 64 to 9, or use a machine"):
        check()
    check(draws=9)
    with pytest.raises(InputError, match=r"--config\.predict\.draws from 64 to 9"):
        predict.read_input(config, model)
    monkeypatch.setattr(whole_slide, "pays", lambda spots: spots > 10)
    check()  # draws are not held
    with too_large(r"--config\.predict\.embeddings=FILE\.h5"):
        check(embeds=True)
    monkeypatch.setattr(budget, "available_memory", lambda: memory.BASE)
    with too_large(r"GiB are free; use a machine with more memory\."):
        check()
    monkeypatch.undo()
    free = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr(budget.shutil, "disk_usage", lambda _: free)
    with too_large(r"64 draws of .* spots need about .* beside --config\.predict\.output.*lower"):
        check()


def test_estimates_grow_with_what_is_asked(trained, model, tmp_path):
    request = predict.request_of(model, configured(trained, tmp_path))

    def needed(spots, draws, held=False):
        return budget.memory(model, spots, dataclasses.replace(request, draws=draws), held)

    assert needed(10**6, 8) == needed(10**6, 800)
    assert needed(10**3, 8) < needed(10**3, 800)
    assert needed(10**6, 8, held=True) - needed(10**6, 8) == 4 * 10**6 * tiny.WIDTH
    assert budget.disk(10**6, 50, 8) > 12 * 4 * 50 * 10**6


def test_free_memory(tmp_path):
    assert 0 < memory_free.available_memory() < 1 << 50
    for name, text in (
        ("memory.max", str(8 * GIB)),
        ("memory.current", str(5 * GIB)),
        ("memory.stat", f"anon 7\ninactive_file {GIB}\n"),
    ):
        (tmp_path / name).write_text(text)
    assert memory_free._cgroup(tmp_path) == [4 * GIB]
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_free._cgroup(tmp_path) == []
