"""Retrieval on neighbouring sections: against loops, invariance, and what is never looked at."""

import dataclasses

import numpy as np
import pytest

from configs import base
from stfm_jax.data.retrieval import (
    Placed,
    Reach,
    gathered,
    has_values,
    retrieve,
    weighted_copy,
    within_reach,
)
from stfm_jax.errors import InputError

REACH = Reach(sections=1, candidates=6, kept=4)


def stack(sizes=(40, 35, 50, 30), seed=0):
    rng = np.random.default_rng(seed)
    return [
        Placed(
            name=f"S{i}",
            coords_um=rng.uniform(0, 1000, (n, 2)),
            z_um=16.0 * i,
            features=rng.standard_normal((n, 5)),
        )
        for i, n in enumerate(sizes)
    ]


def by_loops(sections, target, among, reach):
    """(section, spot, score) of the kept, spot by spot."""
    own = sections[target]
    for p, h in zip(own.coords_um, own.features, strict=True):
        candidates = []
        for s in among:
            other = sections[s]
            distance = np.hypot(*(other.coords_um - p).T)
            for j in np.argsort(distance)[: reach.candidates]:
                g = other.features[j]
                cosine = h @ g / np.linalg.norm(h) / np.linalg.norm(g)
                place = np.exp(-(distance[j] ** 2) / 2 / reach.sigma_um**2)
                along = abs(other.z_um - own.z_um) / reach.z_um
                score = reach.image * cosine + (1 - reach.image) * place - along
                candidates.append((score, s, j))
        yield sorted(candidates, reverse=True)[: reach.kept]


def test_equals_loops():
    sections = stack()
    found = retrieve(sections, 1, [0, 2], REACH)
    assert found.spot.shape == (35, 4) and found.offset_um.shape == (35, 4, 3)
    for i, kept in enumerate(by_loops(sections, 1, [0, 2], REACH)):
        score = np.array([each[0] for each in kept])
        weight = np.exp(score / REACH.temperature)
        assert [(s, j) for _, s, j in kept] == list(
            zip(found.section[i], found.spot[i], strict=True)
        )
        np.testing.assert_allclose(found.weight[i], weight / weight.sum(), rtol=1e-4)
        for (_, s, j), offset in zip(kept, found.offset_um[i], strict=True):
            plane = sections[s].coords_um[j] - sections[1].coords_um[i]
            np.testing.assert_allclose(offset, [*plane, 16.0 * (s - 1)], atol=1e-3)


def test_a_common_rigid_motion_changes_nothing():
    sections = stack()
    angle = 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for matrix in (turn, turn @ np.diag([1.0, -1.0])):
        moved = [
            dataclasses.replace(s, coords_um=s.coords_um @ matrix.T + [300.0, -70.0])
            for s in sections
        ]
        a, b = (retrieve(each, 2, [0, 1, 3], REACH) for each in (sections, moved))
        np.testing.assert_array_equal(a.spot, b.spot)
        np.testing.assert_array_equal(a.section, b.section)
        np.testing.assert_allclose(a.weight, b.weight, atol=1e-5)


def test_reach_counts_sections_by_z_and_skips_gaps():
    sections = stack()
    assert within_reach(sections, 1, [0, 1, 2, 3], 1) == [0, 2]
    assert within_reach(sections, 1, [0, 3], 1) == [0, 3]
    assert within_reach(sections, 0, [0, 1, 2, 3], 2) == [1, 2]
    reversed_z = [dataclasses.replace(s, z_um=-s.z_um) for s in sections]
    assert within_reach(reversed_z, 1, [0, 2], 1) == [2, 0]


def test_a_farther_section_weighs_less():
    near, own, far = stack((40, 40, 40))
    twin = dataclasses.replace(near, z_um=own.z_um + 64.0)
    reach = Reach(candidates=6, kept=12, z_um=100.0, temperature=0.15)
    found = retrieve([near, own, twin], 1, [0, 2], reach)
    by_section = [(found.weight * (found.section == s)).sum() for s in (0, 2)]
    assert by_section[0] > 3 * by_section[1] > 0
    assert far.name == "S2"


def test_only_the_sections_given_are_looked_at():
    found = retrieve(stack(), 1, [0, 1, 3], Reach(sections=3, candidates=6, kept=12))
    assert set(np.unique(found.section)) == {0, 3}
    with pytest.raises(InputError, match=r"'S1'.*no other section"):
        retrieve(stack(), 1, [1], REACH)


def test_sections_of_few_spots():
    found = retrieve(stack((3, 20, 2)), 1, [0, 2], Reach(candidates=6, kept=9))
    assert found.spot.shape == (20, 5)
    np.testing.assert_allclose(found.weight.sum(axis=1), 1.0, rtol=1e-5)


def test_values_of_sections_without_any_count_for_nothing():
    sections = stack()
    found = retrieve(sections, 1, [0, 2], REACH)
    rng = np.random.default_rng(1)
    measured = rng.standard_normal((50, 3)).astype(np.float32)
    values = [None, None, measured, None]
    known = has_values(found, values)
    np.testing.assert_array_equal(known, found.section == 2)
    taken = gathered(found, values, 3)
    np.testing.assert_array_equal(taken[known], measured[found.spot[known]])
    assert not taken[~known].any()
    mean, share = weighted_copy(found, values, 3)
    for i in range(len(mean)):
        weight = found.weight[i] * known[i]
        np.testing.assert_allclose(share[i], weight.sum(), rtol=1e-6)
        if weight.sum() > 0:
            expected = (weight[:, None] * measured[found.spot[i]]).sum(axis=0) / weight.sum()
            np.testing.assert_allclose(mean[i], expected, atol=1e-5)
    nothing, share = weighted_copy(found, [None] * 4, 3)
    assert not nothing.any() and not share.any()


def test_what_is_not_said_is_as_the_config_has_it():
    stack, said = base.get_config().stack, dataclasses.asdict(Reach())
    assert {name: stack[name] for name in said} == said


def test_what_lies_at_the_same_height_is_neither_above_nor_below():
    sections = stack()
    same = [*sections, dataclasses.replace(sections[1], z_um=sections[1].z_um)]
    everything = range(len(same))
    assert within_reach(same, 1, everything, 1) == [0, 2]
    assert within_reach(same, 2, everything, 5) == [0, 1, 4, 3]
