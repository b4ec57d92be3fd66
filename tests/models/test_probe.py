"""HEST's probe is scikit-learn's pipeline, and has its fault."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stfm_jax.data.expression import expression
from stfm_jax.models import probe, table
from stfm_jax.models.method import Genes, Request, Section, gathered
from stfm_jax.ops import metrics
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.train.stages import Run, TrainSettings

GENES = 8


def predicted(name: str, folder) -> tuple[np.ndarray, np.ndarray, list, tuple[str, ...]]:
    """What a method trained on all but the first slide says of that; its truth; slides; genes."""
    held, *train = tiny.slides()
    genes = tuple(map(str, held.genes[:GENES]))
    genes = Genes(genes, genes)
    method, settings = table.build(name, tiny.config()), TrainSettings.of(tiny.config())
    run = Run(folder, name, 0, make_mesh(1), settings)
    state = method.fit([Section(slide) for slide in train], genes, run)
    found = method.predict(state, Section(held), Request(genes, 0, 2, 2, make_mesh(1)))
    true = expression(held, genes.scored, "log1p")
    return gathered(found.mean, held.num_spots), true, [held, *train], genes.scored


@pytest.mark.parametrize("components", [4, 256])
def test_it_is_the_pipeline(components, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "COMPONENTS", components)
    ours, _, (held, *train), genes = predicted("probe", tmp_path)
    axes = min(components, tiny.WIDTH)
    ridge = Ridge(100 / (axes * GENES), fit_intercept=False, solver="lsqr", tol=1e-10)
    pipeline = make_pipeline(StandardScaler(), PCA(axes), ridge)
    pipeline.fit(
        np.concatenate([slide.features for slide in train]).astype(np.float64),
        np.concatenate([expression(slide, genes, "log1p") for slide in train]),
    )
    theirs = pipeline.predict(held.features.astype(np.float64))
    assert theirs.std() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_it_correlates_and_lies_about_zero(tmp_path):
    """As its docstring says of Pearson and of the squared error."""
    ours, true, *_ = predicted("probe", tmp_path)
    theirs, *_ = predicted("ridge", tmp_path)
    pearson = [metrics.mean_over_genes(metrics.pearson(x, true))[0] for x in (ours, theirs)]
    assert pearson[0] > 0.3 and pearson[0] > pearson[1] - 0.1
    assert np.abs(ours.mean()) < 0.2 < 1.0 < true.mean()
    assert metrics.mse(ours, true).mean() > 2 * metrics.mse(theirs, true).mean()


def test_boosted_trees_learn(tmp_path):
    found, true, *_ = predicted("boosted_trees", tmp_path)
    assert metrics.mean_over_genes(metrics.pearson(found, true))[0] > 0.25
