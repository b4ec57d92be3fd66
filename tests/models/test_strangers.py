"""The fit for strangers, how a slide stands to the training slides, and that the log says so."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import tiny

from stfm_jax.models import regression, strangers
from stfm_jax.models.method import Genes, Prediction, Request, gathered, whole
from stfm_jax.models.regression import RegressionSettings
from stfm_jax.regression import targets
from stfm_jax.regression.features import own_features, window_mean

SETTINGS = RegressionSettings(components=tiny.WIDTH, context=(9,))


def stranger(slide):
    """Whose features go together otherwise: they vary where those of training slides hardly do."""
    minor = np.linalg.svd(slide.features - slide.features.mean(axis=0))[2][-3:]
    odd = np.random.default_rng(0).normal(size=(slide.num_spots, 3)) @ minor
    return dataclasses.replace(slide, features=odd.astype(np.float32))


def fitted(slides, genes):
    """Strangers, and what they were fitted to."""
    seen = regression.seen_of(SETTINGS, slides, genes, True, 0)
    return strangers.fit(slides, seen, ("kernel", "ridge")), *regression.scaled(seen)


@pytest.fixture(scope="module")
def trained():
    *train, test = tiny.slides()
    return (*fitted(train, train[0].genes[:6]), train, test)


def standing(found, seen, slide, familiar=False):
    return strangers.standing(found, SETTINGS, seen.transform, slide, familiar)


def test_the_far_fit_is_a_reduced_rank_ridge_half_smoothed(trained):
    found, seen, scale, train, test = trained
    x = np.concatenate([own_features(seen.transform, slide.features) for slide in train])
    z = np.concatenate(seen.y)
    centred = x - x.mean(axis=0)
    inverse = np.linalg.inv(centred.T @ centred + 6.0 * len(x) * np.eye(x.shape[1]))
    weights = inverse @ centred.T @ (z - z.mean(axis=0))
    _, singular, right = np.linalg.svd(centred @ weights, full_matrices=False)
    rank = np.searchsorted(np.cumsum(singular**2) / np.sum(singular**2), 0.9) + 1
    onto = right[:rank].T @ right[:rank]
    own = own_features(seen.transform, test.features)
    rough = targets.back((own - x.mean(axis=0)) @ weights @ onto, scale).astype(np.float32)
    wanted = (rough + window_mean(rough, test.coords_um, 9)) / 2
    given = strangers.far_mean(found, seen.transform, test, (1.0,))
    np.testing.assert_allclose(given, wanted, atol=1e-4)
    assert rank < z.shape[1]


def test_a_further_section_of_the_patient_is_near(trained, caplog):
    found, seen, *_, test = trained
    given = standing(found, seen, test)
    assert given.share == 1.0 and not given.is_stranger
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    spots = given.of_spots()
    assert spots.shape == (test.num_spots,) and 0.3 < np.median(spots) < 2.0


def test_a_stranger_is_told(trained, caplog):
    found, seen, *_, test = trained
    given = standing(found, seen, stranger(test))
    assert given.share == 0.0 and given.is_stranger and given.ratio > given.stranger > given.usual
    assert "times as far from the training slides" in caplog.text and "100 %" in caplog.text


def test_another_look_is_told_and_nothing_else(trained, caplog):
    """Another stain moves all features; a regression on standardised ones does not mind."""
    found, seen, *_, test = trained
    stained = dataclasses.replace(test, features=test.features + 5.0 * test.features.std())
    given = standing(found, seen, stained)
    assert given.is_stranger and given.share == 1.0
    assert "0 % of its mean" in caplog.text


def by_patients(slides):
    return [dataclasses.replace(s, patient=f"P{i // 2}") for i, s in enumerate(slides)]


def test_several_patients_say_how_much_of_the_flexible_fit_stays():
    """The share of least squared error on patients left out, told from a search."""
    slides = by_patients(tiny.slides(6))
    found, seen, _ = fitted(slides, slides[0].genes[:6])
    x, z = seen.pooled
    near = 0.0
    for kind in ("kernel", "ridge"):
        fit = regression.fitted(kind, slides, seen)
        near = near + regression.unseen(kind, slides, seen, fit) / 2
    far = np.zeros_like(z)
    for group in range(3):
        rest = seen.groups != group
        part = strangers._shrunk(x[rest][:, : tiny.WIDTH], z[rest])
        left = seen.groups == group
        far[left] = x[left][:, : tiny.WIDTH] @ part.weights + part.bias
    bounds = np.cumsum([s.num_spots for s in slides])[:-1]
    far = np.concatenate(
        [
            (v + window_mean(v, s.coords_um, 9)) / 2
            for v, s in zip(np.split(far.astype(np.float32), bounds), slides, strict=True)
        ]
    )
    shares = np.linspace(0, 1, 1001)
    errors = [np.mean((w * near + (1 - w) * far - z) ** 2) for w in shares]
    assert float(found.share) == pytest.approx(shares[np.argmin(errors)], abs=2e-3)


def test_slides_of_a_training_patient_keep_the_flexible_fit():
    slides = by_patients(tiny.slides(6))
    found, seen, _ = fitted(slides, slides[0].genes[:6])
    found = found._replace(share=np.float32(0.4))
    assert standing(found, seen, slides[0], familiar=True).share == 1.0
    assert standing(found, seen, slides[0]).share == pytest.approx(0.4)


def test_one_training_slide_has_blocks_for_units():
    slide, other = tiny.slides(2)
    found, seen, _ = fitted([slide], slide.genes[:6])
    assert found.of["0"].reference.units == 5
    assert standing(found, seen, stranger(other)).share < standing(found, seen, other).share == 1.0


def test_offsets_between_patients():
    """Three patients, one of two slides, two genes; by hand."""
    y = [np.full((5, 2), 0.0), np.full((5, 2), 2.0), np.full((7, 2), 4.0), np.full((3, 2), 1.0)]
    y = [part * [1.0, 2.0] for part in y]
    found = strangers.offset_between(y, ["a", "a", "b", "c"], np.array([1.0, 2.0]))
    others = [[4.0, 1.0], [0.0, 2.0, 1.0], [0.0, 2.0, 4.0]]
    squares = [
        np.mean((np.array(own) - np.mean(rest)) ** 2)
        for own, rest in zip([[0.0, 2.0], [4.0], [1.0]], others, strict=True)
    ]
    # Both genes have the same offset in units of their spread, so shrinking changes nothing.
    np.testing.assert_allclose(found, np.sqrt(np.mean(squares)) * np.array([1.0, 2.0]))


def test_one_patients_offset_is_a_sixfold_change(trained):
    """What log1p of a gene's mean changes by, to first order."""
    found, _, scale, *_ = trained
    small = 1e-4
    change = (np.log1p(np.expm1(scale.mean) * np.exp(small)) - scale.mean) / small
    np.testing.assert_allclose(found.offset, np.log(6.0) * change, rtol=1e-3)


def flow_prediction(n, g, draws, calls):
    rng = np.random.default_rng(1)
    mean = rng.normal(3.0, 1.0, size=(n, g)).astype(np.float32)
    each = [mean + rng.normal(size=(n, g)).astype(np.float32) for _ in range(draws)]

    def flow():
        calls.append(1)
        return Prediction(whole(mean), map(whole, each))

    return mean, flow


@pytest.mark.parametrize("share, asked", [(0.0, 0), (0.5, 1), (1.0, 1)])
def test_a_flow_stands_back(trained, share, asked):
    found, seen, _, _, test = trained
    n, g, draws, calls = test.num_spots, 6, 400, []
    mean, flow = flow_prediction(n, g, draws, calls)
    found = found._replace(offset=np.full(g, 0.3, np.float32), freedom=1e6)  # almost normal
    given = standing(found, seen, test)._replace(shares=(share,))
    request = Request(Genes((), ()), 0, draws, 1, None)
    made = strangers.stood_back(found, given, seen.transform, test, flow, request)
    far = strangers.far_mean(found, seen.transform, test, (1.0,))
    wanted = np.maximum(share * mean + (1 - share) * far, 0.0)
    np.testing.assert_allclose(gathered(made.mean, n), wanted, atol=1e-5)
    sampled = np.stack([gathered(draw, n) for draw in made.draws])
    assert len(calls) == asked and sampled.shape == (draws, n, g)
    deep = wanted.min(axis=0) > 0  # genes whose draws are hardly clipped
    variance = (share * 1.0 + (1 - share) * np.diag(found.residual) + 0.3**2)[deep]
    np.testing.assert_allclose(sampled.var(axis=0).mean(axis=0)[deep], variance, rtol=0.25)
    # The offset is one number a draw and gene: it stays in the mean over the slide.
    over_slide = sampled.mean(axis=1).std(axis=0)[deep]
    np.testing.assert_allclose(over_slide, 0.3, atol=0.08)


def test_a_familiar_slide_has_no_offset(trained):
    found, seen, _, _, test = trained
    n, draws = test.num_spots, 40
    _, flow = flow_prediction(n, 6, draws, [])
    found = found._replace(offset=np.full(6, 5.0, np.float32))
    given = standing(found, seen, test, familiar=True)._replace(shares=(0.5,))
    request = Request(Genes((), ()), 0, draws, 1, None)
    made = strangers.stood_back(found, given, seen.transform, test, flow, request)
    sampled = np.stack([gathered(draw, n) for draw in made.draws])
    assert sampled.mean(axis=1).std(axis=0).max() < 0.5
