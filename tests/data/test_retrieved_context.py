"""What spots see of other sections, against loops over what is retrieved."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from stfm_jax.data.retrieval import Placed, Reach, retrieve
from stfm_jax.data.retrieved_context import context_of, narrowed, no_context

REACH = Reach(sections=1, candidates=6, kept=8)
SPACING, WIDTH, GENES = 40.0, 4, 3


def stack(sizes=(30, 40, 35, 25)):
    """The first section looks; the last is out of its reach."""
    rng = np.random.default_rng(0)
    heights = 16.0 * np.array([1, 0, 2, 3])
    return [
        Placed(f"S{i}", rng.uniform(0, 400, (n, 2)), z, rng.normal(size=(n, 5)))
        for i, (n, z) in enumerate(zip(sizes, heights, strict=False))
    ]


def values(sections, unknown=(0,), seed=1):
    rng = np.random.default_rng(seed)
    drawn = [rng.normal(size=(len(s.coords_um), GENES)) for s in sections]
    return [None if i in unknown else v for i, v in enumerate(drawn)]


def seen(sections, expr, residuals, reach=REACH, width=WIDTH):
    return context_of(sections, expr, residuals, reach, SPACING, width, GENES)


@pytest.mark.parametrize("unknown", [(0,), (0, 2)])
def test_equals_loops(unknown):
    sections = stack()
    expr, residuals = values(sections, unknown), values(sections, unknown, seed=2)
    context = seen(sections, expr, residuals)
    found = retrieve(sections, 0, range(4), REACH)
    np.testing.assert_array_equal(context.weight, found.weight)
    own = sections[0]
    for i in range(30):
        for k in range(8):
            s, j = found.section[i, k], found.spot[i, k]
            other = sections[s]
            assert s in (1, 2)
            np.testing.assert_allclose(context.features[i, k], other.features[j, :WIDTH], rtol=1e-6)
            plane = np.hypot(*(other.coords_um[j] - own.coords_um[i])) / SPACING
            height = abs(other.z_um - own.z_um) / SPACING
            np.testing.assert_allclose(context.distance[i, k], [plane, height], rtol=1e-5)
            assert context.known[i, k] == (s not in unknown)
            for table, of_sections in ((context.expr, expr), (context.residual, residuals)):
                expected = np.zeros(GENES) if s in unknown else of_sections[s][j]
                np.testing.assert_allclose(table[i, k], expected, rtol=1e-6)
    assert context.known.any() and context.known.all() == (unknown == (0,))
    floats = (context.features, context.distance, context.weight, context.expr, context.residual)
    assert {a.dtype for a in floats} == {np.dtype(np.float32)}


def test_its_own_values_are_not_looked_at():
    sections = stack()
    hidden, open_ = values(sections), values(sections, unknown=())
    for a, b in zip(seen(sections, hidden, hidden), seen(sections, open_, open_), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_table_is_padded_to_its_width():
    """Sections of few spots: what there is comes first, then columns that count for nothing."""
    sections = stack((20, 2, 3))
    expr = values(sections)
    context = seen(sections, expr, expr)
    assert context.weight.shape == (20, 8) and context.features.shape == (20, 8, WIDTH)
    np.testing.assert_allclose(context.weight.sum(axis=1), 1.0, rtol=1e-5)
    assert (context.weight[:, :5] > 0).all()
    for table in context:
        assert table[:, :5].any() and not table[:, 5:].any()
    narrow = seen(sections, expr, expr, dataclasses.replace(REACH, kept=5))
    for table, whole in zip(narrow, context, strict=True):
        np.testing.assert_array_equal(table, whole[:, :5])


def test_a_section_alone_sees_nothing():
    sections = stack()[:1]
    alone = seen(sections, [None], [None])
    expected = no_context(30, REACH, WIDTH, GENES)
    among = seen(stack(), values(stack()), values(stack()))
    for table, nothing, other in zip(alone, expected, among, strict=True):
        np.testing.assert_array_equal(table, nothing)
        assert not nothing.any() and nothing.shape == other.shape and nothing.dtype == other.dtype


def test_fewer_features_than_are_seen():
    """Padded by zeros, so that every model has the width of its config."""
    sections, expr = stack(), values(stack())
    wide = seen(sections, expr, expr, width=7)
    np.testing.assert_array_equal(wide.features[..., :WIDTH], seen(sections, expr, expr).features)
    assert wide.features[..., 4].any() and not wide.features[..., 5:].any()


@pytest.mark.parametrize("module", [np, jnp])
def test_narrowed(module):
    x = np.arange(6.0).reshape(2, 3)
    got = narrowed(module.asarray(x), 2)
    assert isinstance(got, np.ndarray) == (module is np)
    np.testing.assert_array_equal(got, [[0, 1], [3, 4]])
    np.testing.assert_array_equal(narrowed(module.asarray(x), 3), x)
    np.testing.assert_array_equal(narrowed(module.asarray(x), 4), [[0, 1, 2, 0], [3, 4, 5, 0]])
