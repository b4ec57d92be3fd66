"""The trivial uses of neighbouring sections, against loops and for what they must not see."""

import dataclasses

import numpy as np
import pytest
import tiny
import tiny_stack

from stfm_jax import experiment
from stfm_jax.data.expression import expression
from stfm_jax.data.folds import Fold
from stfm_jax.data.retrieval import Placed, Reach, retrieve
from stfm_jax.experiment import Experiment
from stfm_jax.models.centred_sum import WEIGHTS, CentredSum
from stfm_jax.models.kernel_ridge import KernelRidge
from stfm_jax.models.method import Genes, NotApplicable, Request, Section, gathered
from stfm_jax.models.neighbour_copy import NeighbourCopy, StackSettings
from stfm_jax.models.regression import RegressionSettings
from stfm_jax.ops.metrics import mean_over_genes, pearson
from stfm_jax.problems.problem import Cases
from stfm_jax.problems.table import problem_of
from stfm_jax.regression import features as feature_ops
from stfm_jax.regression import regressors
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.store import Model
from stfm_jax.train.stages import Run, TrainSettings

REACH = Reach(sections=1, candidates=6, kept=4)
NORMALIZATION, AROUND = "log1p", (9,)
SEEN = RegressionSettings(8, AROUND, "slide", NORMALIZATION)
SETTINGS = StackSettings(**dataclasses.asdict(REACH), seen=SEEN)
METHODS = NeighbourCopy(SETTINGS), CentredSum(SETTINGS), KernelRidge(SEEN)


@dataclasses.dataclass(frozen=True)
class Given:
    """Four sections of one stack, the second one held out."""

    train: list
    test: list
    genes: tuple

    def models(self, folder):
        """Methods by name, fitted to the training sections; the held-out one lies beside them."""
        cases = [Section(slide, [*self.train, *self.test]) for slide in self.train]
        run = Run(folder, "fold 0", 0, make_mesh(1), TrainSettings())
        genes = Genes(self.genes, self.genes)
        return {m.name: Model(m, m.fit(cases, genes, run), genes) for m in METHODS}

    def predicted(self, model):
        """Of the test slides, [n, g] each."""
        request = Request(model.genes, 0, 0, 1, make_mesh(1))
        cases = [Section(slide, self.train) for slide in self.test]
        found = [model.method.predict(model.state, case, request) for case in cases]
        assert all(prediction.draws is None for prediction in found)
        return [
            gathered(prediction.mean, slide.num_spots)
            for prediction, slide in zip(found, self.test, strict=True)
        ]


def weight_of(models):
    """The share of the copy in the sum."""
    model = models["centred_sum"]
    weight = model.state.weight
    assert model.method.hyperparameters(model.state) == {"weight": weight}
    return weight


def blurred(slide, seed):
    """With noise in the features, so that neighbours know more."""
    noise = np.random.default_rng(seed).normal(size=slide.features.shape)
    features = slide.features + 2 * slide.features.std() * noise
    return dataclasses.replace(slide, features=features.astype(np.float32))


@pytest.fixture(scope="module")
def given():
    slides = [blurred(s, i) for i, s in enumerate(tiny.slides(registered=True))]
    genes = tuple(tiny_stack.genes(slides))
    return Given([slides[0], slides[2], slides[3]], [slides[1]], genes)


@pytest.fixture(scope="module")
def models(given, tmp_path_factory):
    return given.models(tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="module")
def rows(given, models):
    return {name: given.predicted(model) for name, model in models.items()}


def copy_by_loops(given, transform, slide, measured):
    """The copy [n, g] of what other slides measured around a slide's spots."""
    others = [s for s in measured if s.name != slide.name]
    placed = [
        Placed(s.name, s.registered_um, s.z_um, feature_ops.own_features(transform, s.features))
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


def test_neighbour_copy_equals_a_loop(given, models, rows):
    (copy,), model = rows["neighbour_copy"], models["neighbour_copy"]
    expected = copy_by_loops(given, model.state.transform, given.test[0], given.train)
    np.testing.assert_allclose(copy, expected, atol=1e-5)
    true = expression(given.test[0], given.genes, NORMALIZATION)
    assert mean_over_genes(pearson(copy, true))[0] > 0.2
    (slide,) = given.test
    nearer = {"name": "the same spots", "z_um": slide.z_um + 1.0}
    stranger = dataclasses.replace(slide, **nearer, patient="P2")
    (again,) = dataclasses.replace(given, train=[*given.train, stranger]).predicted(model)
    np.testing.assert_array_equal(again, copy)
    section = dataclasses.replace(slide, **nearer)
    (again,) = dataclasses.replace(given, train=[*given.train, section]).predicted(model)
    assert np.abs(again - copy).max() > 0.1


def test_expression_of_the_test_slide_is_not_looked_at(given, models, rows, tmp_path):
    """Neither when a method is fitted nor when it predicts; not if it lies among the others."""
    (slide,) = given.test
    order = np.random.default_rng(0).permutation(slide.num_spots)
    for changed in (
        dataclasses.replace(slide, counts=None, genes=None),
        dataclasses.replace(slide, counts=slide.counts[order]),
    ):
        other = dataclasses.replace(given, test=[changed])
        again = other.models(tmp_path)
        assert weight_of(again) == weight_of(models)
        beside = dataclasses.replace(other, train=[*given.train, changed])
        for name, values in rows.items():
            for which in (other, beside):
                np.testing.assert_array_equal(which.predicted(again[name])[0], values[0])


def test_centred_sum_is_kernel_ridge_and_a_share_of_the_copy(models, rows):
    (copy,), weight = rows["neighbour_copy"], weight_of(models)
    assert set(rows) == {"neighbour_copy", "centred_sum", "kernel_ridge"}
    assert weight in WEIGHTS and weight > 0
    expected = rows["kernel_ridge"][0] + weight * (copy - copy.mean(axis=0))
    np.testing.assert_allclose(rows["centred_sum"][0], expected, atol=1e-6)


def test_the_share_is_chosen_by_leaving_out_training_slides(given, models, tmp_path):
    """Neither the test slide nor what is predicted there has a say."""
    scores, state = np.zeros(len(WEIGHTS)), models["kernel_ridge"].state
    x = [
        feature_ops.context_features(state.transform, s.features, s.coords_um, AROUND)
        for s in given.train
    ]
    y = [expression(s, given.genes, NORMALIZATION) for s in given.train]
    for i, slide in enumerate(given.train):
        kept = [j for j in range(3) if j != i]
        others = [np.concatenate([of[j] for j in kept]) for of in (x, y)]
        kernel = regressors.predict(regressors.fit("kernel", *others, state.choice), x[i])
        copy = copy_by_loops(given, state.transform, slide, given.train)
        centred = copy - copy.mean(axis=0)
        scores += [mean_over_genes(pearson(kernel + w * centred, y[i]))[0] for w in WEIGHTS]
    assert weight_of(models) == WEIGHTS[np.argmax(scores)]
    elsewhere = dataclasses.replace(given.test[0], features=given.test[0].features[::-1].copy())
    again = dataclasses.replace(given, test=[elsewhere]).models(tmp_path)
    assert weight_of(again) == weight_of(models)


def test_a_copy_that_tells_nothing_gets_no_share(given, models, tmp_path):
    """Each training section's expression at the places of another section's."""
    rng = np.random.default_rng(0)
    mixed = [
        dataclasses.replace(s, registered_um=s.registered_um[rng.permutation(s.num_spots)])
        for s in given.train
    ]
    again = dataclasses.replace(given, train=mixed).models(tmp_path)
    assert weight_of(again) < weight_of(models)


@pytest.mark.parametrize("strangers", [1, 2])
def test_no_rows_where_a_patient_has_no_training_slide(given, models, tmp_path, strangers):
    """Of another stack there is nothing to copy; a row must have all test slides."""
    stranger = dataclasses.replace(given.test[0], patient="P2")
    test = ([stranger] * strangers + given.test)[:2]
    made = tiny_stack.config()
    problem = problem_of(made, METHODS)
    opened = Experiment(made, tmp_path, problem, METHODS, None, make_mesh(1), made.seed)
    train, test = ([Section(s, given.train) for s in part] for part in (given.train, test))
    cases = Cases(Fold((), ()), train, test, models["centred_sum"].genes, given.genes)
    request = Request(models["centred_sum"].genes, 0, 0, 1, make_mesh(1))
    for name in ("neighbour_copy", "centred_sum"):
        method, state = models[name].method, models[name].state
        with pytest.raises(NotApplicable, match="no other section of its stack is measured"):
            method.predict(state, test[0], request)
        assert experiment.predict_cases(opened, models[name], cases) is None
    kernel = experiment.predict_cases(opened, models["kernel_ridge"], cases)
    assert len(kernel.means) == 2 and kernel.draws is None
