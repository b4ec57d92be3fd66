"""Buckets, padding and regions."""

import jax
import numpy as np
import pytest

from stfm_jax.data.batching import (
    PreparedSlide,
    bucket_size,
    collate,
    region,
    spacing_units,
)
from stfm_jax.errors import InputError
from stfm_jax.ops.frames import edge_geometry
from stfm_jax.ops.neighbors import knn_graph

F, G, K = 3, 2, 8


def lattice(side):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 1.0


def hexagons(side):
    row, column = np.divmod(np.arange(side * side), side)
    return np.stack([column + 0.5 * (row % 2), np.sqrt(0.75) * row], axis=1)


def prepared(coords, seed=0, expr=True):
    rng, n = np.random.default_rng(seed), len(coords)
    return PreparedSlide(
        name=f"s{seed}",
        coords=coords,
        features=rng.normal(size=(n, F)).astype(np.float32),
        anchor=rng.normal(size=(n, G)).astype(np.float32),
        expr=rng.normal(size=(n, G)).astype(np.float32) if expr else None,
        place=np.arange(n, dtype=np.int32),
    )


def test_buckets():
    sizes = [bucket_size(n) for n in range(1, 5000)]
    assert sorted(set(sizes)) == [
        32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144,
    ]  # fmt: skip
    for n, size in enumerate(sizes, start=1):
        assert size >= n and (size <= 32 or size < 2 * n)
    assert sizes == sorted(sizes)


def test_spacing_is_the_unit():
    coords = lattice(6) * 217.0 + 1e4
    units = spacing_units(coords)
    assert units.dtype == np.float64
    np.testing.assert_allclose(units - units[0], lattice(6), atol=1e-9)


def test_one_slide_and_its_padding():
    slide = prepared(lattice(7))
    batch = collate([slide], K)
    n, graph = 49, knn_graph(slide.coords, K)
    e = len(graph.senders)
    assert len(batch.spot_mask) == 64 and batch.spot_mask.sum() == n and batch.spot_mask[:n].all()
    assert batch.edge_mask.sum() == e and batch.edge_mask[:e].all()
    for name in ("features", "anchor", "expr", "place"):
        np.testing.assert_array_equal(getattr(batch, name)[:n], getattr(slide, name))
        np.testing.assert_array_equal(getattr(batch, name)[n:], 0)
    np.testing.assert_array_equal(batch.senders[:e], graph.senders)
    np.testing.assert_array_equal(batch.receivers[:e], graph.receivers)
    geometry = edge_geometry(slide.coords, graph)
    for name in geometry._fields:
        np.testing.assert_allclose(getattr(batch, name)[:e], getattr(geometry, name), atol=1e-6)
        assert getattr(batch, name).dtype == np.float32
    assert (batch.receivers[e:] == 63).all() and (batch.senders[e:] == 63).all()


def test_slides_lie_side_by_side_without_edges_between():
    slides = [prepared(lattice(6)), prepared(hexagons(7), 1), prepared(lattice(5), 2)]
    batch = collate(slides, K)
    sizes = [36, 49, 25]
    real = batch.edge_mask
    np.testing.assert_array_equal(batch.slide[:110], np.repeat([0, 1, 2], sizes))
    np.testing.assert_array_equal(
        batch.slide[batch.senders[real]], batch.slide[batch.receivers[real]]
    )
    np.testing.assert_array_equal(batch.place[:110], np.concatenate([np.arange(m) for m in sizes]))
    assert (np.diff(batch.receivers) >= 0).all()  # padding included: reductions rely on it
    assert batch.senders[real].max() < 110 <= len(batch.spot_mask)
    # Each slide's graph and geometry are those it has alone.
    alone = collate([slides[1]], K)
    mine = real & (batch.slide[batch.receivers] == 1)
    for name, shift in (("senders", 36), ("receivers", 36), ("pca", 0), ("edge", 0), ("blend", 0)):
        np.testing.assert_array_equal(
            getattr(batch, name)[mine] - shift, getattr(alone, name)[alone.edge_mask]
        )


def test_unknown_expression_is_zero():
    np.testing.assert_array_equal(collate([prepared(lattice(5), expr=False)], K).expr, 0.0)


def test_slides_of_a_bucket_share_shapes():
    """Random points, squares and hexagons alike: one trace."""
    rng = np.random.default_rng(0)
    points = [
        lattice(12), hexagons(12), rng.uniform(0, 12, (130, 2)), rng.uniform(0, 12, (190, 2))
    ]  # fmt: skip
    shapes = {
        tuple((a.shape, str(a.dtype)) for a in jax.tree.leaves(collate([prepared(p)], K)))
        for p in points
    }
    assert len(shapes) == 1


def test_denser_graphs_get_more_room():
    """Hexagons that fill a bucket have more edges than k + 2 per spot."""
    batch = collate([prepared(hexagons(16))], K)  # 256 spots in a bucket of 256
    assert batch.edge_mask.sum() > 256 * (K + 2)
    assert len(batch.edge_mask) == 256 * (2 * K + 2)
    assert batch.spot_mask.all()


def test_a_region_is_a_disc_around_a_spot():
    slide, rng = prepared(lattice(15)), np.random.default_rng(0)
    sizes = []
    for _ in range(60):
        part = region(slide, rng, at_least=12)
        index = part.place
        sizes.append(len(index))
        assert (np.diff(index) > 0).all()  # input order is kept
        for name in ("coords", "features", "anchor", "expr"):
            np.testing.assert_array_equal(getattr(part, name), getattr(slide, name)[index])
        assert any(is_disc(slide.coords, index, c) for c in index)
    assert min(sizes) >= 12 and max(sizes) <= 225
    assert np.ptp(sizes) > 150 and 70 < np.mean(sizes) < 155  # n U(0, 1)


def is_disc(coords, index, centre):
    distance = np.linalg.norm(coords - coords[centre], axis=1)
    outside = np.setdiff1d(np.arange(len(coords)), index)
    return len(outside) == 0 or distance[index].max() <= distance[outside].min() + 1e-9


def test_regions_repeat_with_their_randomness_and_keep_missing_expression():
    slide = prepared(lattice(8), expr=False)
    a, b = (region(slide, np.random.default_rng(3), 12) for _ in range(2))
    np.testing.assert_array_equal(a.place, b.place)
    assert a.expr is None


def test_a_region_of_a_small_slide_is_the_slide():
    slide = prepared(lattice(3))
    assert len(region(slide, np.random.default_rng(0), at_least=12).place) == 9


def test_too_small_a_slide_is_refused():
    with pytest.raises(InputError, match="too few"):
        collate([prepared(lattice(2))], K)
