"""The trivial uses of neighbouring sections, against loops and for what they must not see."""

import dataclasses

import numpy as np
import pytest
import tiny
import tiny_stack

from stfm_jax.data.expression import expression
from stfm_jax.data.retrieval import Placed, Reach, retrieve
from stfm_jax.models.baselines import regression, stack
from stfm_jax.ops.metrics import mean_over_genes, pearson
from stfm_jax.regression import features as feature_ops
from stfm_jax.regression import regressors

REACH = Reach(sections=1, candidates=6, kept=4)
NORMALIZATION, AROUND = "log1p", (9,)


@dataclasses.dataclass(frozen=True)
class Given:
    """Four sections of one stack, the second one held out, and what is fitted on the others."""

    train: list
    test: list
    genes: list
    transform: feature_ops.FeatureTransform
    kernel: list
    choice: regressors.Choice

    def rows(self, **changed):
        given = dataclasses.replace(self, **changed)
        return stack.predictions(
            given.train,
            given.test,
            given.genes,
            NORMALIZATION,
            given.transform,
            AROUND,
            REACH,
            given.kernel,
            given.choice,
        )


def blurred(slide, seed):
    """With noise in the features, so that neighbours know more."""
    noise = np.random.default_rng(seed).normal(size=slide.features.shape)
    features = slide.features + 2 * slide.features.std() * noise
    return dataclasses.replace(slide, features=features.astype(np.float32))


@pytest.fixture(scope="module")
def given():
    slides = [blurred(s, i) for i, s in enumerate(tiny.slides(registered=True))]
    genes = tiny_stack.genes(slides)
    train, test = [slides[0], slides[2], slides[3]], [slides[1]]
    transform = feature_ops.fit_transform([s.features for s in train], "slide", 8)
    points, choices = regression.predictions(train, test, genes, NORMALIZATION, transform, AROUND)
    kernel = points["kernel_ridge"]
    return Given(train, test, genes, transform, kernel, choices["kernel_ridge"])


@pytest.fixture(scope="module")
def rows(given):
    return given.rows()


def copy_by_loops(given, slide, measured):
    """The copy [n, g] of what other slides measured around a slide's spots."""
    others = [s for s in measured if s.name != slide.name]
    placed = [
        Placed(
            s.name, s.registered_um, s.z_um, feature_ops.own_features(given.transform, s.features)
        )
        for s in (slide, *others)
    ]
    found = retrieve(placed, 0, range(1, len(placed)), REACH)
    expr = [expression(s, given.genes, NORMALIZATION) for s in others]
    out = np.zeros((slide.num_spots, len(given.genes)))
    for i in range(slide.num_spots):
        for section, spot, weight in zip(
            found.section[i], found.spot[i], found.weight[i], strict=True
        ):
            out[i] += weight * expr[section - 1][spot]
    return out


def test_neighbour_copy_equals_a_loop(given, rows):
    (copy,) = rows[0]["neighbour_copy"]
    np.testing.assert_allclose(copy, copy_by_loops(given, given.test[0], given.train), atol=1e-5)
    true = expression(given.test[0], given.genes, NORMALIZATION)
    assert mean_over_genes(pearson(copy, true))[0] > 0.2
    stranger = dataclasses.replace(given.test[0], name="same place", patient="P2")
    again, _ = given.rows(train=[*given.train, stranger])
    np.testing.assert_array_equal(again["neighbour_copy"][0], copy)


def test_expression_of_the_test_slide_is_not_looked_at(given, rows):
    (slide,) = given.test
    order = np.random.default_rng(0).permutation(slide.num_spots)
    for changed in (
        dataclasses.replace(slide, counts=None, genes=None),
        dataclasses.replace(slide, counts=slide.counts[order]),
    ):
        again, weight = given.rows(test=[changed])
        assert weight == rows[1]
        for name, values in rows[0].items():
            np.testing.assert_array_equal(again[name][0], values[0])


def test_centred_sum_is_kernel_ridge_and_a_share_of_the_copy(given, rows):
    (copy,), weight = rows[0]["neighbour_copy"], rows[1]
    assert set(rows[0]) == {"neighbour_copy", "centred_sum"}
    assert weight in stack.WEIGHTS and weight > 0
    expected = given.kernel[0] + weight * (copy - copy.mean(axis=0))
    np.testing.assert_allclose(rows[0]["centred_sum"][0], expected, atol=1e-6)


def test_the_share_is_chosen_by_leaving_out_training_slides(given, rows):
    """Neither the test slide nor what is predicted there has a say."""
    scores = np.zeros(len(stack.WEIGHTS))
    x = [
        feature_ops.context_features(given.transform, s.features, s.coords_um, AROUND)
        for s in given.train
    ]
    y = [expression(s, given.genes, NORMALIZATION) for s in given.train]
    for i, slide in enumerate(given.train):
        kept = [j for j in range(3) if j != i]
        others = [np.concatenate([of[j] for j in kept]) for of in (x, y)]
        kernel = regressors.predict(regressors.fit("kernel", *others, given.choice), x[i])
        copy = copy_by_loops(given, slide, given.train)
        centred = copy - copy.mean(axis=0)
        scores += [mean_over_genes(pearson(kernel + w * centred, y[i]))[0] for w in stack.WEIGHTS]
    assert rows[1] == stack.WEIGHTS[np.argmax(scores)]
    elsewhere = dataclasses.replace(given.test[0], features=given.test[0].features[::-1].copy())
    assert given.rows(test=[elsewhere], kernel=[-given.kernel[0]])[1] == rows[1]


def test_a_copy_that_tells_nothing_gets_no_share(given, rows):
    """Each training section's expression at the places of another section's."""
    rng = np.random.default_rng(0)
    mixed = [
        dataclasses.replace(s, registered_um=s.registered_um[rng.permutation(s.num_spots)])
        for s in given.train
    ]
    assert given.rows(train=mixed)[1] < rows[1]


@pytest.mark.parametrize("strangers", [1, 2])
def test_no_rows_where_a_patient_has_no_training_slide(given, strangers):
    """Of another stack there is nothing to copy; a row must have all test slides."""
    stranger = dataclasses.replace(given.test[0], patient="P2")
    test = ([stranger] * strangers + given.test)[:2]
    rows, weight = given.rows(test=test, kernel=given.kernel * 2)
    assert rows == {} and np.isnan(weight)
