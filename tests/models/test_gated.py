"""Which fit predicts a slide, and that the log says so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny

from stfm_jax.models import gated
from stfm_jax.models.method import Genes, Request, Section, gathered
from stfm_jax.models.regression import RegressionSettings, features_of
from stfm_jax.regression import distance, regressors
from stfm_jax.regression.features import window_mean
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.train.stages import Run, TrainSettings

SETTINGS = RegressionSettings(components=tiny.WIDTH, context=(9,))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A method, its state, a slide, and the genes."""
    *train, test = tiny.slides()
    genes = Genes(tuple(train[0].genes[:6]), ())
    method = gated.Gated(SETTINGS)
    run = Run(tmp_path_factory.mktemp("run"), "fold 0", 0, make_mesh(1), TrainSettings())
    return method, method.fit([Section(slide) for slide in train], genes, run), test, genes


def predicted(fitted, slide, state=None):
    method, own, _, genes = fitted
    request = Request(genes, seed=0, draws=0, mean_draws=0, mesh=make_mesh(1))
    found = method.predict(own if state is None else state, Section(slide), request)
    return gathered(found.mean, slide.num_spots)


def parts(fitted, slide):
    """Both fits' predictions."""
    _, state, _, _ = fitted
    x = features_of(SETTINGS, state.transform, slide, True)
    rough = regressors.predict(state.far, x)
    return gated._near(state.near, x), (rough + window_mean(rough, slide.coords_um, 9)) / 2


def test_a_further_section_is_near(fitted, caplog):
    slide = fitted[2]
    near, far = parts(fitted, slide)
    np.testing.assert_allclose(predicted(fitted, slide), near, atol=1e-6)
    assert np.abs(near - far).max() > 0.1 and not caplog.records


def test_a_stranger_is_told(fitted, caplog):
    """Whose features go together otherwise: they vary where those of training slides hardly do."""
    slide = fitted[2]
    minor = np.linalg.svd(slide.features - slide.features.mean(axis=0))[2][-3:]
    odd = np.random.default_rng(0).normal(size=(slide.num_spots, 3)) @ minor
    stranger = dataclasses.replace(slide, features=odd.astype(np.float32))
    np.testing.assert_allclose(predicted(fitted, stranger), parts(fitted, stranger)[1], atol=1e-6)
    assert "times as far from the training slides" in caplog.text and "100 %" in caplog.text


def test_between_both_have_a_share(fitted, monkeypatch):
    slide = fitted[2]
    near, far = parts(fitted, slide)
    monkeypatch.setattr(distance, "nearness", lambda *_: 0.25)
    np.testing.assert_allclose(predicted(fitted, slide), 0.25 * near + 0.75 * far, atol=1e-5)


def test_the_fit_for_strangers_has_few_axes(fitted):
    _, state, _, _ = fitted
    assert np.linalg.matrix_rank(state.far.weights, tol=1e-5) == gated.FAR_AXES
