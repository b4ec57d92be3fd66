"""Which fit predicts a slide, and that the log says so."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from stfm_jax.models import gated, strangers
from stfm_jax.models.method import Genes, Request, Section, gathered
from stfm_jax.models.regression import RegressionSettings, features_of
from stfm_jax.regression import distance, regressors, trees
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
    far = strangers.far_mean(state.strangers, state.transform, slide, (1.0,))
    return gated.near_mean(state.near, x), far


def test_a_further_section_is_predicted_by_the_flexible_fit(fitted):
    slide = fitted[2]
    near, far = parts(fitted, slide)
    np.testing.assert_allclose(predicted(fitted, slide), near, atol=1e-6)
    assert np.abs(near - far).max() > 0.1


def test_the_flexible_fit_is_the_mean_of_three(fitted):
    _, state, slide, _ = fitted
    x = features_of(SETTINGS, state.transform, slide, True)
    three = [regressors.predict(state.near.kernel, x), regressors.predict(state.near.ridge, x)]
    three.append(trees.predict(state.near.trees, x))
    np.testing.assert_allclose(parts(fitted, slide)[0], np.mean(three, axis=0), atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_others_have_a_share_of_it(fitted, monkeypatch, share):
    slide = fitted[2]
    near, far = parts(fitted, slide)
    monkeypatch.setattr(distance, "nearness", lambda *_: share)
    wanted = share * near + (1 - share) * far
    np.testing.assert_allclose(predicted(fitted, slide), wanted, atol=1e-5)
