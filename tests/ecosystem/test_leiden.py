"""Leiden's clusters against a pathologist's labels, where igraph is installed."""

import numpy as np
import optional
import pytest

from stfm_jax.score import domains

pytestmark = pytest.mark.ecosystem
optional.require("igraph", "test-ecosystem")


@pytest.mark.parametrize("regions", [2, 4, 7])
def test_as_many_clusters_as_labels_are_found(regions):
    rng = np.random.default_rng(0)
    which = np.arange(280) % regions
    expr = (4 * rng.normal(size=(regions, 12)))[which] + rng.normal(size=(280, 12))
    names = np.array([f"region {i}" for i in which])
    found = domains.scores([expr], [names])
    assert found["ari_leiden"] > 0.95
    assert domains.scores([expr], [names]) == found, "no draw of chance is left"
    assert abs(domains.scores([rng.permutation(expr)], [names])["ari_leiden"]) < 0.1
    assert domains.scores([np.ones_like(expr)], [names])["ari_leiden"] == 0.0
