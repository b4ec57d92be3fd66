"""How far a slide is: leverage against its definition, and the rule against what it promises."""

from __future__ import annotations

import numpy as np
import pytest

from stfm_jax.regression import distance

RNG = np.random.default_rng(0)
OWN = 20  # features of 24


def units(number, size=120, width=24, shift=0.0, scale=1.0, turned=0.0):
    """Features of some units that differ a little from each other."""
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(width, width)) + turned * rng.normal(size=(width, width))
    return [
        (scale * RNG.normal(size=(size, width)) * np.exp(0.05 * RNG.normal())) @ mixing + shift
        for _ in range(number)
    ]


def places(part):
    return np.random.default_rng(len(part)).uniform(size=(len(part), 2))


def reference_of(parts, blocks=False):
    groups = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    x = np.concatenate(parts)
    return distance.fit(x, OWN, np.concatenate([places(p) for p in parts]), groups, groups, blocks)


def ratio(reference, part):
    return distance.ratio(reference, part, places(part))


def test_leverage_by_its_definition():
    parts = units(4)
    found = reference_of(parts)
    x, new = np.concatenate(parts), units(1)[0]
    centred = x - x.mean(axis=0)
    inverse = np.linalg.inv(centred.T @ centred + distance.PENALTY * np.eye(x.shape[1]))
    moved = new - x.mean(axis=0)
    wanted = np.einsum("ni,ij,nj->n", moved, inverse, moved)
    scaled = distance.of_spots(found, new) * found.leverage
    np.testing.assert_allclose(scaled, wanted, rtol=1e-3)


def test_unlike_variances_by_their_definition():
    """A slide whose own features have variances of their own along training's axes."""
    ruler = reference_of(units(4)).ruler
    variances = np.exp(RNG.normal(size=distance.AXES))
    n = 4000
    raw = RNG.normal(size=(n, distance.AXES))
    exact = np.linalg.qr(raw - raw.mean(axis=0))[0] * np.sqrt(n - 1)
    spread = np.linalg.pinv(ruler.axes.astype(np.float64))
    x = np.tile(ruler.center, (n, 1)).astype(np.float64)
    x[:, :OWN] += (exact * np.sqrt(variances)) @ spread
    unlike = np.sqrt(np.mean(np.log(variances) ** 2))
    leverage = np.median(np.square((x - ruler.center) @ ruler.root).sum(axis=1))
    found = distance.number(ruler, x, np.zeros((n, 2)), n, leverage)
    assert found == pytest.approx((np.log(leverage) + np.log(unlike)) / 2, abs=2e-2)


def test_a_further_unit_is_near_as_often_as_promised():
    near = []
    for _ in range(100):
        parts = units(6)
        found = reference_of(parts[:5])
        near.append(ratio(found, parts[5]) <= distance.usual(found, distance.NEAR, 120))
    assert 0.7 < np.mean(near) <= 1.0


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("stranger", [{"scale": 2.0}, {"shift": 30.0}, {"turned": 0.5}])
def test_a_stranger_is_far(stranger, blocks):
    found = reference_of(units(5), blocks)
    assert distance.nearness(found, ratio(found, units(1, **stranger)[0]), 120) == 0.0


def test_a_blank_slide_is_far():
    """Every spot looks the same: no leverage, and nothing varies."""
    found = reference_of(units(5))
    assert ratio(found, np.tile(found.ruler.center, (120, 1))) > distance.usual(found, 0.95, 120)


def test_looks_by_their_definition():
    means, sizes, std = RNG.normal(size=(4, 6)), np.array([10, 20, 30, 40]), np.full(6, 2.0)
    groups = np.array([0, 0, 1, 2])
    numbers = []
    for mean, group in zip(means, groups, strict=True):
        rest = groups != group
        others = (means[rest] * sizes[rest, None]).sum(axis=0) / sizes[rest].sum()
        numbers.append(np.log(np.sqrt(np.mean(((mean - others) / std) ** 2))))
    look = distance.fit_look(means, sizes, groups, std)
    assert look.log_mean == pytest.approx(np.mean(numbers), abs=1e-4)
    assert look.log_std == pytest.approx(np.std(numbers, ddof=1), abs=1e-4)
    center = means.mean(axis=0)
    found = distance.look_ratio(look, center + 3.0, center, std)
    assert found == pytest.approx(1.5 / np.exp(np.mean(numbers)), rel=1e-3)
    assert distance.look_usual(look, 0.95) > distance.look_usual(look, 0.8) > 1.0


def test_two_units_say_nothing_of_how_far_looks_lie():
    """Each is as far from the other: their spread is none, whatever it is among more."""
    look = distance.fit_look(RNG.normal(size=(2, 6)), np.array([9, 9]), np.arange(2), np.ones(6))
    assert distance.look_usual(look, distance.NEAR) == np.inf


def test_a_part_of_a_near_slide_is_near():
    """Moments of few spots are noisier; they are compared with those of as few."""
    near = []
    for _ in range(40):
        *parts, last = units(6)
        found = reference_of(parts)
        near.append(distance.nearness(found, ratio(found, last[:40]), 40) > 0)
    assert np.mean(near) > 0.8


def test_a_larger_slide_is_compared_in_pieces():
    found = reference_of(units(5))
    one, *more = units(9)
    large = np.concatenate([one, *more])
    assert 0.7 < ratio(found, large) < 1.4


def test_between_it_fades():
    found = reference_of(units(5))
    ends = [distance.usual(found, q, 120) for q in (distance.NEAR, distance.FAR)]
    middle = np.sqrt(np.prod(ends))
    assert 1.0 < ends[0] < ends[1]
    assert distance.nearness(found, middle, 120) == pytest.approx(0.5)
    assert distance.nearness(found, 1.0, 120) == 1.0
