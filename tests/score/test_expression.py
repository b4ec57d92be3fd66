"""Scores of a fold's test slides."""

from __future__ import annotations

import numpy as np
import pytest

from stfm_jax.score import expression as score


def made(rng, spots, offset):
    true = rng.normal(size=(spots, 3)) + offset
    return 0.5 * true + rng.normal(size=true.shape), true


def test_pearson_slide_is_the_mean_of_each_slides_own():
    rng = np.random.default_rng(0)
    (a, true_a), (b, true_b) = made(rng, 40, 0.0), made(rng, 70, 0.0)
    found = score.pearson_slide([a, b], [true_a, true_b])
    by_hand = [
        np.mean([np.corrcoef(p[:, g], y[:, g])[0, 1] for p, y in ((a, true_a), (b, true_b))])
        for g in range(3)
    ]
    np.testing.assert_allclose(found, by_hand, atol=1e-12)


def test_what_slides_differ_by_counts_in_pearson_alone():
    """Offsets of the slides, foreseen: no credit within a slide; of one slide both are the same."""
    rng = np.random.default_rng(1)
    parts = [(rng.normal(size=(60, 4)) + i, rng.normal(size=(60, 4)) + i) for i in (0, 20)]
    prediction, true = (list(each) for each in zip(*parts, strict=True))
    coords = [rng.uniform(0, 1000, (60, 2)) for _ in parts]
    both = score.score_point(prediction, score.TestSet(("a", "b"), coords, true))
    assert both["pearson"] > 0.9 and abs(both["pearson_slide"]) < 0.3
    one = score.score_point(prediction[:1], score.TestSet(("a",), coords[:1], true[:1]))
    assert one["pearson_slide"] == one["pearson"]


def test_constant_genes_are_left_out_slide_by_slide():
    rng = np.random.default_rng(2)
    (a, true_a), (b, true_b) = made(rng, 40, 0.0), made(rng, 40, 0.0)
    true_a[:, 0] = 2.0  # scored in b alone
    true_a[:, 1] = true_b[:, 1] = 0.0  # nowhere
    a[:, 2] = 1.0  # a prediction without variation scores 0
    found = score.pearson_slide([a, b], [true_a, true_b])
    assert found[0] == pytest.approx(np.corrcoef(b[:, 0], true_b[:, 0])[0, 1])
    assert np.isnan(found[1])
    assert found[2] == pytest.approx(0.5 * np.corrcoef(b[:, 2], true_b[:, 2])[0, 1])
    coords = [rng.uniform(0, 1000, (40, 2)) for _ in "ab"]
    test = score.TestSet(("a", "b"), coords, [true_a, true_b])
    assert score.score_point([a, b], test)["pearson_slide"] == pytest.approx(np.nanmean(found))


def test_width_over_the_genes_own():
    """A gene whose draws are as wide as it is, one half as wide, and one that is mostly 0."""
    rng = np.random.default_rng(0)
    true = np.concatenate([rng.normal(size=(400, 2)), np.zeros((400, 1))], axis=1)
    draws = rng.normal(size=(300, 400, 3)) * [1.0, 0.5, 1.0]
    assert score.relative_width(draws, true) == pytest.approx(0.75, abs=0.06)


def test_genes_that_are_scored_apart_are_in_no_mean():
    """Whatever is behind the panel, and of draws too; each has a Pearson of its own."""
    rng = np.random.default_rng(3)
    true = [rng.normal(size=(n, 5)).astype(np.float32) for n in (50, 40)]
    draws = [y + rng.normal(size=(99, *y.shape)).astype(np.float32) for y in true]
    coords = [rng.uniform(0, 1000, (len(y), 2)) for y in true]
    more = {"around": [rng.normal(size=y.shape) for y in true]}
    apart = score.TestSet(("a", "b"), coords, true, panel=3, apart={"G1": 1, "G4": 4}, **more)
    more = {"around": [each[:, :3] for each in more["around"]]}
    panel = score.TestSet(("a", "b"), coords, [y[:, :3] for y in true], **more)
    found, alone = score.score_draws(draws, apart, 0), [d[..., :3] for d in draws]
    assert found.items() >= score.score_draws(alone, panel, 0).items()
    point = [d[0] for d in draws]
    found = score.score_point(point, apart)
    assert found.items() > score.score_point([p[:, :3] for p in point], panel).items()
    pooled = np.concatenate(point), np.concatenate(true)
    for gene, column in apart.apart.items():
        by_hand = np.corrcoef(*(values[:, column] for values in pooled))[0, 1]
        assert found[f"pearson:{gene}"] == pytest.approx(by_hand, abs=1e-6)


def test_programmes_are_the_mean_over_slides_and_lists():
    rng = np.random.default_rng(4)
    true = [rng.normal(size=(n, 4)) for n in (60, 50)]
    prediction = [y + rng.normal(size=y.shape) for y in true]
    coords = [rng.uniform(0, 1000, (len(y), 2)) for y in true]
    lists = {"a": np.array([1.0, 0.5, 0.25, 0.0]), "b": np.array([0.0, 0.0, 1.0, 2.0])}
    test = score.TestSet(("s", "t"), coords, true, panel=3, programmes=lists)
    found = score.score_point(prediction, test)
    by_hand = {
        name: np.mean(
            [np.corrcoef(p @ w, y @ w)[0, 1] for p, y in zip(prediction, true, strict=True)]
        )
        for name, w in lists.items()
    }
    assert {name: found[f"programmes:{name}"] for name in lists} == pytest.approx(by_hand)
    assert found["programmes"] == pytest.approx(np.mean(list(by_hand.values())))
    even = [np.tile(y.mean(axis=0), (len(y), 1)).astype(np.float32) for y in true]
    assert score.score_point(even, test)["programmes"] == 0.0


def test_reliability_is_what_central_intervals_cover():
    """Draws of the right width cover what they say; of few draws nothing is said."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(500, 4))
    draws = [rng.normal(size=(199, 200, 4)), rng.normal(size=(199, 300, 4))]
    found = score.reliability(draws, true, 0)
    np.testing.assert_allclose(found["levels"], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    np.testing.assert_allclose(found["covered"], found["levels"], atol=0.03)
    narrow = score.reliability([0.5 * each for each in draws], true, 0)["covered"]
    assert (narrow < found["covered"]).all()
    assert score.reliability([each[:98] for each in draws], true, 0) == {}


def test_a_slide_of_one_spot_is_scored_with_the_others():
    rng = np.random.default_rng(0)
    (a, true_a), (b, true_b) = made(rng, 40, 0.0), made(rng, 1, 0.0)
    coords = [rng.uniform(0, 1000, (40, 2)), np.zeros((1, 2))]
    test = score.TestSet(("a", "b"), coords, [true_a, true_b])
    found = score.score_point([a, b], test)
    assert found["pearson"] > 0.2 and found["pearson_slide"] > 0.2
    assert np.isnan(found["moran"])  # a spot alone has none
