"""What regressors see: scaling by slide or by training set, neighbourhoods with ties kept."""

import numpy as np
import pytest

from stfm_jax.data import feature_store
from stfm_jax.errors import InputError
from stfm_jax.regression.features import (
    CLIP,
    columns_of,
    context_features,
    context_reader,
    fit_transform,
    narrowed,
    own_features,
    standardized_features,
    window_mean,
)

F = 8


def slides(seed=0, stain=3.0):
    """Two slides whose features differ by a stain: an offset and a scale per feature."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(F, F))
    first, second = (rng.normal(size=(n, F)) @ mixing for n in (120, 80))
    return [first.astype(np.float32), (stain + 2.0 * second).astype(np.float32)]


def lattice(side=9):
    return 100.0 * np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)


def rotated(coords, degrees):
    a = np.deg2rad(degrees)
    return coords @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


def test_each_slide_is_standardised_by_itself():
    transform = fit_transform(slides(), "slide", F)
    for features in slides(seed=1, stain=-70.0):
        x = standardized_features(transform, features)
        np.testing.assert_allclose(x.mean(axis=0), 0.0, atol=1e-4)
        np.testing.assert_allclose(x.std(axis=0), 1.0, atol=1e-3)
        assert x.dtype == np.float32


def test_staining_is_taken_out():
    features = slides()[0]
    transform = fit_transform(slides(), "slide", 5)
    stained = 7.0 + np.linspace(0.5, 3.0, F, dtype=np.float32) * features
    for function in (standardized_features, own_features):
        a, b = function(transform, features), function(transform, stained)
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_training_moments_are_used_where_asked():
    training = slides()
    transform = fit_transform(training, "training", F)
    pooled = np.concatenate(training)
    new = slides(seed=1)[0]
    expected = (new - pooled.mean(axis=0)) / pooled.std(axis=0)
    np.testing.assert_allclose(standardized_features(transform, new), expected, atol=1e-4)


@pytest.mark.parametrize("standardize", ["slide", "training"])
def test_principal_axes_keep_all_distances_when_none_is_dropped(standardize):
    transform = fit_transform(slides(), standardize, F)
    np.testing.assert_allclose(transform.components.T @ transform.components, np.eye(F), atol=1e-5)
    standardized = [standardized_features(transform, x) for x in slides()]
    scores = np.concatenate([own_features(transform, x) for x in slides()])
    covariance = np.cov(scores.T)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3)
    assert (np.diff(np.diag(covariance)) <= 1e-6).all()  # widest axis first
    norms = np.linalg.norm(np.concatenate(standardized), axis=1)
    np.testing.assert_allclose(np.linalg.norm(scores, axis=1), norms, rtol=1e-4)


def test_axes_are_at_most_what_there_is():
    assert fit_transform(slides(), "slide", 256).components.shape == (F, F)
    few = [slides()[0][:5]]
    assert fit_transform(few, "slide", 256).components.shape == (F, 4)


def test_constant_features_and_odd_patches_stay_finite():
    first, second = slides()
    first[:, 2] = second[:, 2] = 3.25
    first[7, 0] = 1e6
    transform = fit_transform([first, second], "slide", F)
    x = standardized_features(transform, first)
    assert np.isfinite(x).all() and np.abs(x).max() == CLIP
    np.testing.assert_array_equal(x[:, 2], 0.0)


def test_bad_input():
    with pytest.raises(InputError, match="slide, training, found 'none'"):
        fit_transform(slides(), "none", F)
    transform = fit_transform(slides(), "slide", F)
    with pytest.raises(ValueError, match=f"width {F} as fitted, found 3"):
        own_features(transform, slides()[0][:, :3])


def brute_window(values, coords, size):
    distance = np.linalg.norm(coords[:, None] - coords[None], axis=-1)
    limit = np.sort(distance, axis=1)[:, min(size, len(values)) - 1] * (1 + 1e-4)
    return np.stack([values[row <= r].mean(axis=0) for row, r in zip(distance, limit, strict=True)])


@pytest.mark.parametrize("size", [1, 2, 6, 8, 9, 25, 81, 500])
def test_windows_on_a_lattice_are_tie_complete(size):
    values = np.random.default_rng(0).normal(size=(81, 3)).astype(np.float32)
    means = window_mean(values, rotated(lattice(), 31.0), size)
    np.testing.assert_allclose(means, brute_window(values, lattice(), size), atol=1e-5)


def test_context_is_own_and_neighbourhoods():
    transform = fit_transform(slides(), "slide", 5)
    features = slides()[0][:81]
    context = context_features(transform, features, lattice(), (9, 25))
    own = own_features(transform, features)
    assert context.shape == (81, 15) and context.dtype == np.float32
    np.testing.assert_array_equal(context[:, :5], own)
    np.testing.assert_allclose(context[:, 5:10], brute_window(own, lattice(), 9), atol=1e-4)
    np.testing.assert_allclose(context[:, 10:], brute_window(own, lattice(), 25), atol=1e-4)
    np.testing.assert_array_equal(context_features(transform, features, lattice(), ()), own)


def test_blocks_of_any_size_give_the_same(monkeypatch):
    features, coords = slides()[0][:81], lattice()
    transform = fit_transform(slides(), "slide", 5)
    whole = context_features(transform, features, coords, (9, 500))
    smooth = window_mean(features, coords, 9)
    monkeypatch.setattr(feature_store, "BLOCK", 7)
    context = context_features(transform, features, coords, (9, 500))
    np.testing.assert_allclose(context, whole, atol=1e-5)
    np.testing.assert_array_equal(window_mean(features, coords, 9), smooth)
    some = context_reader(transform, features, coords, (9, 500))(np.array([80, 2]))
    np.testing.assert_allclose(some, whole[[80, 2]], atol=1e-5)


def test_context_turns_with_the_slide_and_permutes_with_the_spots():
    transform = fit_transform(slides(), "slide", 5)
    features = slides()[0][:81]
    base = context_features(transform, features, lattice(), (8, 20))
    turned = context_features(transform, features, rotated(lattice(), 37.0) + 1e4, (8, 20))
    np.testing.assert_allclose(turned, base, atol=1e-5)
    order = np.random.default_rng(0).permutation(81)
    permuted = context_features(transform, features[order], lattice()[order], (8, 20))
    np.testing.assert_allclose(permuted, base[order], atol=1e-4)


def of_two_encoders(n=60):
    rng = np.random.default_rng(5)
    return [rng.normal(size=(n, 4)).astype(np.float32) * 3, rng.normal(size=(n, 7)) + 2]


def test_axes_of_each_encoder_are_its_own():
    one, two = of_two_encoders()
    both = fit_transform([np.concatenate([one, two], axis=1)], "slide", 3, widths=(4, 7))
    alone = [fit_transform([x], "slide", 3) for x in (one, two)]
    assert both.components.shape == (11, 6) and list(both.axes) == [3, 3]
    np.testing.assert_array_equal(both.components[:4, :3], alone[0].components)
    np.testing.assert_array_equal(both.components[4:, 3:], alone[1].components)
    assert not both.components[:4, 3:].any() and not both.components[4:, :3].any()
    columns = columns_of(both, 12)
    assert [list(part) for part in columns] == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
    assert columns_of(alone[0], 12) == []


@pytest.mark.parametrize("kept", [0, 1])
def test_a_transform_of_one_encoder_of_two(kept):
    parts = of_two_encoders()
    both = fit_transform([np.concatenate(parts, axis=1)], "training", 3, widths=(4, 7))
    alone = fit_transform([parts[kept]], "training", 3)
    narrow = narrowed(both, [kept])
    coords = np.random.default_rng(0).normal(size=(60, 2))
    np.testing.assert_allclose(
        context_features(narrow, parts[kept], coords, (9,)),
        context_features(alone, parts[kept], coords, (9,)),
        atol=1e-6,
    )
