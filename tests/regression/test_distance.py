"""How far a slide is: leverage against its definition, and the rule against what it promises."""

from __future__ import annotations

import numpy as np
import pytest

from stfm_jax.regression import distance

RNG = np.random.default_rng(0)


def units(number, size=60, width=20, shift=0.0, scale=1.0):
    """Features of some units that differ a little from each other."""
    mixing = np.random.default_rng(1).normal(size=(width, width))
    return [
        (scale * RNG.normal(size=(size, width)) * np.exp(0.05 * RNG.normal())) @ mixing + shift
        for _ in range(number)
    ]


def reference_of(parts):
    groups = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return distance.fit(np.concatenate(parts), groups)


def test_leverage_by_its_definition():
    parts = units(4)
    found = reference_of(parts)
    x, new = np.concatenate(parts), units(1)[0]
    centred = x - x.mean(axis=0)
    inverse = np.linalg.inv(centred.T @ centred + len(x) * np.eye(x.shape[1]))
    moved = new - x.mean(axis=0)
    wanted = np.einsum("ni,ij,nj->n", moved, inverse, moved)
    scaled = distance.of_spots(found, new) * np.exp(found.log_mean)
    np.testing.assert_allclose(scaled, wanted, rtol=1e-3)
    assert distance.ratio(found, new) == pytest.approx(np.median(distance.of_spots(found, new)))


def test_a_further_unit_is_near_as_often_as_promised():
    ratios, limits = [], []
    for _ in range(200):
        parts = units(6)
        found = reference_of(parts[:5])
        ratios.append(distance.ratio(found, parts[5]))
        limits.append(distance.usual(found, distance.NEAR))
    share = np.mean(np.array(ratios) <= np.array(limits))
    assert 0.85 < share <= 1.0


@pytest.mark.parametrize("stranger", [{"scale": 2.0}, {"shift": 30.0}])
def test_a_stranger_is_far(stranger):
    found = reference_of(units(5))
    assert distance.nearness(found, distance.ratio(found, units(1, **stranger)[0])) == 0.0
    assert distance.nearness(found, 1.0) == 1.0


def test_between_it_fades():
    found = reference_of(units(5))
    ends = [distance.usual(found, q) for q in (distance.NEAR, distance.FAR)]
    middle = np.sqrt(np.prod(ends))
    assert 1.0 < ends[0] < ends[1]
    assert distance.nearness(found, middle) == pytest.approx(0.5)
