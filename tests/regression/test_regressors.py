"""Ridge and kernel ridge against scikit-learn, and what choosing by group may not exploit."""

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from stfm_jax.regression import regressors
from stfm_jax.regression.regressors import Choice, Kernel, Linear

NAN = float("nan")


def problem(n=150, f=12, g=4, seed=0, noise=0.3):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, f)) + 2.0).astype(np.float32)
    w = np.random.default_rng(1).normal(size=(f, g))
    y = np.sin(x @ w / 3) + 5.0 + noise * rng.normal(size=(n, g))
    return x, y.astype(np.float32)


@pytest.mark.parametrize("shape", [(150, 12), (20, 40)])  # more spots than features, and fewer
@pytest.mark.parametrize("alpha", [0.01, 30.0])
def test_ridge_equals_sklearn(shape, alpha):
    x, y = problem(*shape)
    new = problem(33, shape[1], seed=5)[0]
    ours = regressors.fit("ridge", x, y, Choice(alpha, NAN, 0.0))
    assert isinstance(ours, Linear)
    theirs = Ridge(alpha).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(regressors.predict(ours, new), theirs.predict(new), atol=1e-4)
    np.testing.assert_allclose(ours.weights, theirs.coef_.T, atol=1e-4)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.1, 0.05), (3.0, 0.01)])
def test_kernel_equals_sklearn(alpha, gamma):
    x, y = problem()
    new = problem(33, seed=5)[0]
    ours = regressors.fit("kernel", x, y, Choice(alpha, gamma, 0.0))
    assert isinstance(ours, Kernel)
    theirs = KernelRidge(alpha=alpha, kernel="rbf", gamma=gamma).fit(x, y - y.mean(axis=0))
    expected = theirs.predict(new) + y.mean(axis=0)
    np.testing.assert_allclose(regressors.predict(ours, new), expected, atol=1e-3)


def test_what_was_measured_can_be_computed_from_an_exact_kernel():
    """So it is individual-level data, as `individual_data` says; a ridge's weights are not."""
    x, y = problem()
    ours = regressors.fit("kernel", x, y, Choice(0.5, 0.05, 0.0))
    recovered = regressors.predict(ours, ours.landmarks) + 0.5 * ours.weights
    np.testing.assert_allclose(recovered, y, atol=1e-3)
    assert set(regressors.individual_data(ours)) == {"landmarks", "weights"}
    assert not regressors.individual_data(regressors.fit("ridge", x, y, Choice(0.5, NAN, 0.0)))


def test_blocks_of_a_long_prediction_fit_together():
    x, y = problem()
    kernel = regressors.fit("kernel", x, y, Choice(1.0, 0.05, 0.0))
    long = np.tile(x, (60, 1))  # 9,000 spots: two blocks
    once = regressors.predict(kernel, x)
    np.testing.assert_allclose(regressors.predict(kernel, long), np.tile(once, (60, 1)), atol=1e-5)


def test_nystroem_approximates_the_exact_solution(monkeypatch):
    x, y = problem(n=500, f=3, noise=0.1)
    new, truth = problem(n=200, f=3, seed=5, noise=0.0)
    choice = Choice(0.1, 0.1, 0.0)
    exact = regressors.predict(regressors.fit("kernel", x, y, choice), new)
    errors = []
    for landmarks in (8, 40, 160):
        monkeypatch.setattr(regressors, "MAX_LANDMARKS", landmarks)
        fitted = regressors.fit("kernel", x, y, choice)
        assert fitted.landmarks.shape == (landmarks, 3)
        errors.append(np.abs(regressors.predict(fitted, new) - exact).mean())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1 * np.abs(exact - truth).mean()


def test_landmarks_are_drawn_by_the_seed(monkeypatch):
    monkeypatch.setattr(regressors, "MAX_LANDMARKS", 20)
    x, y = problem()
    a, b, c = (
        regressors.fit("kernel", x, y, Choice(1.0, 0.05, 0.0), seed).landmarks for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_constant_predicts_its_mean():
    regressor = regressors.constant(np.array([1.0, 2.0]), 5)
    np.testing.assert_array_equal(regressors.predict(regressor, np.ones((3, 5))), [[1, 2]] * 3)


def planted_leak(seed=0, groups=4, per_group=40):
    """Features that name the group, whose means differ at random: no use for another group.

    Only the first feature generalises. A fit that mixes groups scores high with little
    regularisation; left-out groups demand much.
    """
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), per_group)
    signal = rng.normal(size=(len(group), 1))
    names = np.eye(groups)[group] * 3.0 + 0.1 * rng.normal(size=(len(group), groups))
    offsets = 4.0 * rng.normal(size=(groups, 3))[group]
    x = np.concatenate([signal, names], axis=1).astype(np.float32)
    y = (signal + offsets + 0.5 * rng.normal(size=offsets.shape)).astype(np.float32)
    return x, y, group


@pytest.mark.parametrize("kind", ["ridge", "kernel"])
def test_choose_leaves_whole_groups_out(kind):
    x, y, group = planted_leak()
    rng = np.random.default_rng(1)
    honest = regressors.choose(kind, x, y, group)
    mixed = regressors.choose(kind, x, y, rng.permutation(group))
    # Within a left-out group the signal alone correlates: 1 / sqrt(1 + .25).
    assert honest.score < 0.91 < 0.95 < mixed.score
    oof = regressors.out_of_fold(kind, x, y, group, honest)
    leaked = regressors.out_of_fold(kind, x, y, rng.permutation(group), mixed)
    between = [
        np.corrcoef(*(np.stack([a[group == i].mean(0) for i in range(4)]).ravel() for a in (p, y)))
        for p in (oof, leaked)
    ]
    # The leaked prediction knows the groups' means; the honest one cannot.
    assert between[1][0, 1] > 0.9 > 0.3 > between[0][0, 1]


@pytest.mark.parametrize("kind", ["ridge", "kernel"])
def test_out_of_fold_never_sees_the_group(kind):
    """Other targets in a group change the predictions of all groups but this one."""
    x, y = problem(90)
    group = np.repeat(np.arange(3), 30)
    choice = Choice(1.0, 0.05, 0.0)
    base = regressors.out_of_fold(kind, x, y, group, choice)
    other = y.copy()
    other[group == 1] += np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    changed = regressors.out_of_fold(kind, x, other, group, choice)
    np.testing.assert_array_equal(changed[group == 1], base[group == 1])
    assert np.abs(changed - base)[group != 1].max() > 0.05


@pytest.mark.parametrize("kind", ["ridge", "kernel"])
def test_choose_reports_the_score_of_what_it_chose(kind):
    """The search's shared eigendecomposition gives what separate fits give."""
    x, y = problem(120)
    group = np.arange(120) % 3
    choice = regressors.choose(kind, x, y, group)
    oof = regressors.out_of_fold(kind, x, y, group, choice)
    scores = [
        np.mean([np.corrcoef(oof[group == i, j], y[group == i, j])[0, 1] for j in range(4)])
        for i in range(3)
    ]
    assert choice.score == pytest.approx(np.mean(scores), abs=1e-4)
    assert np.isnan(choice.gamma) == (kind == "ridge")
    worst = choice._replace(alpha=1e4)
    worse = regressors.out_of_fold(kind, x, y, group, worst)
    assert ((worse - y) ** 2).mean() > ((oof - y) ** 2).mean()


def test_noise_asks_for_more_regularisation():
    group = np.arange(150) % 5
    clean, noisy = (
        regressors.choose("ridge", *problem(noise=noise, seed=3), group).alpha
        for noise in (0.01, 6.0)
    )
    assert noisy > clean


def test_groups_are_slides_or_blocks_of_one():
    coords = [np.random.default_rng(i).uniform(size=(30, 2)) for i in range(7)]
    groups = regressors.leave_out_groups([30] * 3, coords[:3])
    np.testing.assert_array_equal(groups, np.repeat([0, 1, 2], 30))
    many = regressors.leave_out_groups([30] * 7, coords).reshape(7, 30)
    assert set(many.ravel()) == set(range(5)) and (many == many[:, :1]).all()
    blocks = regressors.leave_out_groups([30], coords[:1])
    assert set(blocks) == set(range(5))
    centres = np.stack([coords[0][blocks == b].mean(axis=0) for b in range(5)])
    nearest = np.linalg.norm(coords[0][:, None] - centres[None], axis=-1).argmin(axis=1)
    np.testing.assert_array_equal(nearest, blocks)  # compact, not scattered


@pytest.mark.parametrize("kind", ["ridge", "kernel"])
def test_a_regressor_for_each_encoder_and_the_mean_of_what_they_say(kind):
    x, y = problem()
    new, groups = problem(33, seed=5)[0], np.arange(150) // 30
    columns = [np.array([0, 3, 4]), np.array([1, 2, 5, 6, 7, 8, 9, 10, 11])]
    choices = regressors.choose_each(kind, x, y, groups, columns)
    both = regressors.fit(kind, x, y, choices)
    singles, out = [], []
    for part in columns:
        choice = regressors.choose(kind, x[:, part], y, groups)
        singles.append(regressors.fit(kind, x[:, part], y, choice))
        out.append(regressors.out_of_fold(kind, x[:, part], y, groups, choice))
    said = [regressors.predict(r, new[:, part]) for r, part in zip(singles, columns, strict=True)]
    np.testing.assert_allclose(regressors.predict(both, new), np.mean(said, axis=0), rtol=1e-6)
    unseen = regressors.out_of_fold(kind, x, y, groups, choices)
    np.testing.assert_allclose(unseen, np.mean(out, axis=0), rtol=1e-6)
    assert regressors.num_genes(both) == regressors.num_genes(singles[0]) == 4
    assert len(regressors.individual_data(both)) == 2 * (2 if kind == "kernel" else 0)
    second = regressors.narrowed(both, [1], [np.arange(9)])
    np.testing.assert_array_equal(regressors.predict(second, new[:, columns[1]]), said[1])


def test_one_encoder_is_chosen_for_as_ever():
    x, y = problem()
    groups = np.arange(150) // 30
    assert regressors.choose_each("ridge", x, y, groups, []) == pytest.approx(
        regressors.choose("ridge", x, y, groups), nan_ok=True
    )


@pytest.mark.parametrize("kind", ["ridge", "kernel"])
def test_what_all_expression_has_more_a_prediction_has_more(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    y = np.sin(x[:, :2])
    choice = regressors.Choice(0.1, 0.3, np.nan)
    low, high = (regressors.fit(kind, x, y + level, choice, 0) for level in (0.0, 10.0))
    new = rng.normal(size=(20, 3)).astype(np.float32)
    found = regressors.predict(high, new) - regressors.predict(low, new)
    np.testing.assert_allclose(found, 10.0, atol=1e-3)
    far = regressors.predict(high, new + 100.0)
    if kind == "kernel":  # far from all it has seen: the mean
        np.testing.assert_allclose(
            far, np.broadcast_to(y.mean(axis=0) + 10.0, far.shape), atol=1e-3
        )


def test_slides_of_one_patient_are_left_out_one_by_one():
    """Whether the patient has a name or not; of one slide alone blocks are."""
    sizes = (3, 2, 4)
    coords = [np.random.default_rng(i).uniform(0, 1000, (n, 2)) for i, n in enumerate(sizes)]
    for patients in ((), ("P1", "P1", "P1"), ("", "", "")):
        groups = regressors.leave_out_groups(sizes, coords, patients=patients)
        np.testing.assert_array_equal(groups, [0, 0, 0, 1, 1, 2, 2, 2, 2])
    groups = regressors.leave_out_groups(sizes, coords, patients=("P1", "P2", "P1"))
    np.testing.assert_array_equal(groups, [0, 0, 0, 1, 1, 0, 0, 0, 0])
    places = [np.random.default_rng(9).uniform(0, 1000, (40, 2))]
    assert set(regressors.leave_out_groups((40,), places, patients=("P1",))) == set(range(5))
