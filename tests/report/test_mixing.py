"""How far samples share one pool of features, of features that are made up."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

from stfm_jax.data.slide import Slide
from stfm_jax.report import mixing
from stfm_jax.runtime.files import load_arrays


def pair(name, patient, rates, n=40, genes=("A", "B", "C"), seed=0):
    """A sample of n spots; the rates of its genes repeat over the spots."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(np.resize(rates, (n, len(genes))))
    low = Slide(
        name=name, barcodes=np.arange(n).astype(str), coords_um=rng.uniform(size=(n, 2)) * 100.0,
        counts=sp.csr_matrix(counts.astype(np.float32)), genes=np.array(genes), patient=patient,
    )  # fmt: skip
    return SimpleNamespace(low=low)


@pytest.fixture(autouse=True)
def latents(monkeypatch):
    """A sample's latents are its places, far from those of others; normed they are its places."""
    read = []

    def fit(slide, seed):
        read.append((slide.name, seed))
        return 1000.0 * len(read)

    monkeypatch.setattr(mixing.latents, "fit", fit)
    monkeypatch.setattr(mixing.latents, "latents", lambda m, counts, coords: coords + m)
    monkeypatch.setattr(mixing.latents, "normed", lambda m, z: z - m)
    return read


APART = {"a": pair("a", "P1", (50, 5, 5)), "b": pair("b", "P2", (5, 5, 50), seed=1)}


def test_what_lies_apart_is_told_from_what_is_mixed(tmp_path, latents):
    found = mixing.write(tmp_path, APART, 4)
    assert list(found) == ["expression", "latents", "normed"]
    assert found["expression"] > 0.7 and found["latents"] > 0.9 and abs(found["normed"]) < 0.1
    assert (tmp_path / "latents.png").exists() and latents == [("a", 4), ("b", 4)]
    assert mixing.write(tmp_path, APART, 4) == found and len(latents) == 2
    mixing.write(tmp_path, APART, 5)
    assert latents[2:] == [("a", 5), ("b", 5)]


def test_depth_is_no_difference(tmp_path):
    deep = {"a": pair("a", "P1", (50, 5, 5)), "b": pair("b", "P2", (1000, 100, 100), seed=1)}
    assert abs(mixing.write(tmp_path, deep, 0)["expression"]) < 0.3


def test_genes_are_matched_by_name_and_only_shared_ones_count(tmp_path):
    turned = pair("b", "P2", (5, 5, 50, 1), genes=("C", "B", "A", "D"), seed=1)
    same = mixing.write(tmp_path, {"a": APART["a"], "b": turned}, 0)
    assert abs(same["expression"]) < 0.3


def test_samples_of_one_patient_are_told_apart_as_samples(tmp_path):
    one = {name: SimpleNamespace(low=p.low) for name, p in APART.items()}
    one["b"] = pair("b", "P1", (5, 5, 50), seed=1)
    assert mixing.write(tmp_path, one, 0)["latents"] > 0.9
    assert mixing.write(tmp_path / "alone", {"a": APART["a"]}, 0) == {}


def test_few_spots_of_large_samples_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(mixing.latents, "MAX_SPOTS", 30)
    monkeypatch.setattr(mixing.latents, "some_spots", lambda coords, seed: np.arange(30))
    monkeypatch.setattr(mixing, "SPOTS", 10)
    mixing.write(tmp_path, APART, 0)
    arrays = load_arrays(tmp_path / "latents.npz")
    assert list(arrays["label"]) == ["P1"] * 10 + ["P2"] * 10
    normed = arrays["features"]["normed"]
    for places, name in ((normed[:10], "a"), (normed[10:], "b")):
        index = [np.abs(APART[name].low.coords_um - p).sum(axis=1).argmin() for p in places]
        np.testing.assert_allclose(APART[name].low.coords_um[index], places, atol=1e-3)
        assert len(set(index)) == 10 and max(index) < 30


def test_expression_is_counts_in_ten_thousand_on_a_log_scale(tmp_path):
    """As large as the matrix it is made of, whose largest singular values the scores have."""
    mixing.write(tmp_path, APART, 0)
    counts = np.concatenate([p.low.counts.toarray() for p in APART.values()])
    logs = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    found = np.linalg.norm(load_arrays(tmp_path / "latents.npz")["features"]["expression"], axis=0)
    np.testing.assert_allclose(found, np.linalg.svd(logs)[1][: len(found)], rtol=1e-4)
