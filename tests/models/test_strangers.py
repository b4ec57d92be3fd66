"""The fit for strangers, how a slide stands to the training slides, and that the log says so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny

from stfm_jax.models import regression, strangers
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
    in_units, scale = regression.scaled(seen)
    fits = {kind: regression.fitted(kind, slides, in_units) for kind in ("kernel", "ridge")}
    return strangers.fit(slides, in_units, scale, fits), in_units, scale


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
    assert given.share == 1.0 and not given.is_stranger and not caplog.records
    spots = given.of_spots()
    assert spots.shape == (test.num_spots,) and 0.3 < np.median(spots) < 2.0


def test_a_stranger_is_told(trained, caplog):
    found, seen, *_, test = trained
    given = standing(found, seen, stranger(test))
    assert given.share == 0.0 and given.is_stranger and given.ratio > given.stranger > given.usual
    assert "times as far from the training slides" in caplog.text and "100 %" in caplog.text


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
