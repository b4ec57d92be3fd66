"""Scores of children's counts, of a few parents whose figures are plain."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from stfm_jax.data.coarsen import by_lattice
from stfm_jax.data.slide import Slide
from stfm_jax.ops import metrics
from stfm_jax.score import split

PARENT = np.array([0, 0, 0, 0, 1, 1, 2])
PAIR = SimpleNamespace(parent=PARENT, num_children=np.array([4, 2, 1]))
COUNTS = np.array([[8.0, 4.0], [5.0, 0.0], [9.0, 9.0]])
CHILDREN = np.array([[8, 1], [0, 1], [0, 1], [0, 1], [4, 0], [1, 0], [9, 9]], float)


def square(side, seed=0):
    """Children on a square lattice, in whole groups of four or cut ones at the edge."""
    rng = np.random.default_rng(seed)
    places = np.argwhere(np.ones((side, side))) * 100.0
    return by_lattice(
        Slide(
            name="s", barcodes=np.arange(len(places)).astype(str), coords_um=places,
            counts=rng.poisson(4.0, (len(places), 3)).astype(np.float32),
            genes=np.array(["A", "B", "C"]),
        )
    )  # fmt: skip


def test_ratios_are_shares_less_an_even_one():
    found = split.ratios(PAIR, COUNTS, CHILDREN)
    np.testing.assert_allclose(found[:4, 0], [0.75, -0.25, -0.25, -0.25])
    np.testing.assert_allclose(found[4:6, 0], [0.3, -0.3])
    assert np.isnan(found[:, 1]).all(), "4 counts and none are too few, and one child is no split"
    assert np.isnan(found[6, 0])
    assert not np.isnan(split.ratios(PAIR, COUNTS + 1.0, CHILDREN)[:4]).any()


def test_the_largest_error_of_mass_is_relative_where_there_is_any():
    assert split.mass_error(PAIR, COUNTS, CHILDREN) == 0.0
    lost, made = CHILDREN.copy(), CHILDREN.copy()
    lost[0, 0] -= 2.0  # of 8
    made[4, 1] += 0.5  # of none
    assert split.mass_error(PAIR, COUNTS, lost) == pytest.approx(0.25)
    assert split.mass_error(PAIR, COUNTS, made) == pytest.approx(0.5)
    one = np.where(COUNTS == 4.0, 1.0, COUNTS)
    assert split.mass_error(PAIR, one, CHILDREN) == pytest.approx(3.0)  # 4 for 1


@pytest.mark.parametrize(("side", "known"), [(6, False), (7, True)])
def test_maps_are_compared_from_the_windows_size_on(side, known):
    pair = square(side)
    true = pair.high.counts.toarray()
    found = split.ssim(pair.high.coords_um, true, true)
    assert found == (pytest.approx(1.0) if known else None)
    scattered = np.random.default_rng(0).uniform(0, 700, (60, 2))
    assert split.ssim(scattered, np.ones((60, 1)), np.ones((60, 1))) is None


def test_a_map_of_the_right_places_is_more_alike():
    pair = square(10)
    true = pair.high.counts.toarray()
    rng = np.random.default_rng(1)
    near, far = true + rng.normal(0, 0.3, true.shape), rng.permutation(true)
    of = (split.ssim(pair.high.coords_um, each, true) for each in (near, far))
    assert next(of) > 0.9 > 0.3 > next(of)
    constant = np.column_stack([true[:, 0], np.full(100, 2.0)])  # left out, as it does not vary
    assert split.ssim(pair.high.coords_um, constant, constant) == pytest.approx(1.0)


def test_scores_of_two_samples_are_taken_together_gene_by_gene():
    pairs = [square(8, seed) for seed in (0, 1)]
    low = [pair.low.counts.toarray() for pair in pairs]
    true = [pair.high.counts.toarray() for pair in pairs]
    rng = np.random.default_rng(2)
    guess = [np.maximum(t + rng.normal(0, 1.0, t.shape), 0.0) for t in true]
    found = split.score(pairs, low, guess, true)
    pooled = np.concatenate(guess), np.concatenate(true)
    assert found["pearson"] == pytest.approx(metrics.pearson(*pooled).mean())
    logs = [np.log1p(each) for each in pooled]
    assert found["pearson_log1p"] == pytest.approx(metrics.pearson(*logs).mean())
    errors = np.sqrt(((pooled[0] - pooled[1]) ** 2).mean(axis=0))
    assert found["rmse"] == pytest.approx(errors.mean())
    assert found["mass_error"] == max(map(split.mass_error, pairs, low, guess))
    assert 0.3 < found["ratio"] < found["pearson"] < 1.0
    perfect = split.score(pairs, low, true, true)
    for name in ("pearson", "pearson_log1p", "ratio", "ssim", "moran"):
        assert perfect[name] == pytest.approx(1.0), name
    assert perfect["rmse"] == perfect["mass_error"] == 0.0


def test_draws_are_scored_one_by_one_and_as_an_ensemble():
    pair = square(8)
    low, true = pair.low.counts.toarray(), pair.high.counts.toarray()
    draws = np.random.default_rng(3).poisson(true, (120, *true.shape)).astype(float)
    found = split.score_draws([pair], [low], [draws], [true], 0)
    singles = [split.score([pair], [low], [draw], [true]) for draw in draws[:4]]
    assert found["rmse"] == pytest.approx(np.mean([one["rmse"] for one in singles]))
    assert found["crps"] == pytest.approx(metrics.crps(draws, true).mean())
    assert found["coverage80"] > 0.9  # of what the draws are made around
    assert "coverage80" not in split.score_draws([pair], [low], [draws[:20]], [true], 0)
