"""Buckets, padding, tiles and regions."""

import jax
import numpy as np
import pytest

from stfm_jax.data.batching import (
    PreparedSlide,
    bucket_size,
    collate,
    in_order,
    region,
    spacing_units,
    take,
)
from stfm_jax.errors import InputError
from stfm_jax.ops.frames import edge_geometry
from stfm_jax.ops.neighbors import knn_graph
from stfm_jax.ops.tiles import edge_list, hilbert_order

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


def edges_of(batch):
    """Senders and receivers [e] and geometry [e, ...] of a batch, without padding."""
    edges, mask = jax.tree.map(np.asarray, edge_list(batch.tiles)), batch.tiles.mask
    geometry = jax.tree.map(lambda a: a[mask], batch.tiles.geometry)
    return edges.senders[edges.mask], edges.receivers[edges.mask], geometry


SPOTS = ("features", "anchor", "expr", "place")


def test_one_slide_and_its_padding():
    slide = prepared(lattice(7))
    batch = collate([slide], K)
    n, graph = 49, knn_graph(slide.coords, K)
    assert len(batch.spot_mask) == 64 and batch.spot_mask.sum() == n and batch.spot_mask[:n].all()
    assert batch.tiles.num_tiles == 1 and batch.tiles.halo.shape == (1, 0)
    assert batch.tiles.mask.sum() == len(graph.senders) and not batch.tiles.mask[:, n:].any()
    for name in SPOTS:  # in the order of the input, since there is one tile
        np.testing.assert_array_equal(getattr(batch, name)[:n], getattr(slide, name))
        np.testing.assert_array_equal(getattr(batch, name)[n:], 0)
    senders, receivers, geometry = edges_of(batch)
    np.testing.assert_array_equal(senders, graph.senders)
    np.testing.assert_array_equal(receivers, graph.receivers)
    for ours, expected in zip(geometry, edge_geometry(slide.coords, graph), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)
        assert ours.dtype == np.float32
    padding = ~np.asarray(edge_list(batch.tiles).mask)
    assert (np.asarray(edge_list(batch.tiles).senders)[padding] == 0).all()


@pytest.mark.parametrize("size", [16, 32])
def test_several_tiles_hold_the_same_slide_along_the_curve(size):
    slide = prepared(hexagons(7))
    batch = collate([slide], K, size)
    assert batch.tiles.num_tiles == 64 // size and batch.tiles.size == size
    place = batch.place[batch.spot_mask]
    np.testing.assert_array_equal(place, hilbert_order(slide.coords))
    np.testing.assert_array_equal(batch.spot_mask, np.arange(64) < 49)
    for name in SPOTS:
        np.testing.assert_array_equal(getattr(batch, name)[:49], getattr(slide, name)[place])
        np.testing.assert_array_equal(getattr(batch, name)[49:], 0)
    # Edge for edge the graph of the slide, with its geometry.
    graph = knn_graph(slide.coords, K)
    senders, receivers, geometry = edges_of(batch)
    senders, receivers = place[senders], place[receivers]
    order = np.lexsort((senders, receivers))
    np.testing.assert_array_equal(senders[order], graph.senders)
    np.testing.assert_array_equal(receivers[order], graph.receivers)
    expected = edge_geometry(slide.coords, graph)
    np.testing.assert_allclose(geometry.distance[order], expected.distance, rtol=1e-6)
    np.testing.assert_allclose(geometry.edge[order], expected.edge, atol=1e-6)
    np.testing.assert_allclose(geometry.blend[order], expected.blend, atol=1e-6)
    trusted = expected.blend > 1e-6  # elsewhere the axes are rounding noise
    np.testing.assert_allclose(
        np.abs(geometry.pca[order][trusted]), np.abs(expected.pca[trusted]), atol=1e-5
    )


def test_a_bucket_is_filled_up_to_whole_tiles():
    batch = collate([prepared(lattice(11))], K, 48)  # 121 spots, a bucket of 128, 3 tiles of 48
    assert len(batch.spot_mask) == 144 and batch.tiles.num_tiles == 3
    small = collate([prepared(lattice(6))], K, 48)  # 36 spots, a bucket of 64
    assert len(small.spot_mask) == 96 and small.tiles.num_tiles == 2
    one = collate([prepared(lattice(5))], K, 48)  # 25 spots, a bucket of 32
    assert len(one.spot_mask) == 32 == one.tiles.size


@pytest.mark.parametrize("size", [512, 32])
def test_slides_lie_side_by_side_without_edges_between(size):
    slides = [prepared(lattice(6)), prepared(hexagons(7), 1), prepared(lattice(5), 2)]
    batch = collate(slides, K, size)
    sizes = [36, 49, 25]
    senders, receivers, geometry = edges_of(batch)
    np.testing.assert_array_equal(batch.slide[:110], np.repeat([0, 1, 2], sizes))
    np.testing.assert_array_equal(batch.slide[senders], batch.slide[receivers])
    places = np.split(batch.place[:110], np.cumsum(sizes)[:-1])
    for place, slide in zip(places, slides, strict=True):
        expected = hilbert_order(slide.coords) if size == 32 else slide.place
        np.testing.assert_array_equal(place, expected)
    every = np.asarray(edge_list(batch.tiles).receivers)
    assert (np.diff(every) >= 0).all()  # padding included: reductions rely on it
    assert senders.max() < 110 <= len(batch.spot_mask)
    # Each slide's graph and geometry are those it has alone.
    alone = edges_of(collate([take(slides[1], places[1])], K))
    mine = batch.slide[receivers] == 1
    np.testing.assert_array_equal(senders[mine] - 36, alone[0])
    np.testing.assert_array_equal(receivers[mine] - 36, alone[1])
    for ours, expected in zip(geometry, alone[2], strict=True):
        np.testing.assert_array_equal(ours[mine], expected)


@pytest.mark.parametrize("size", [512, 16])
@pytest.mark.parametrize("axes", [(), (3,), (2, 3)])
def test_rows_come_back_in_the_order_of_the_input(size, axes):
    slide = prepared(hexagons(7))
    batch = collate([slide], K, size)
    scale = 1.0 + np.arange(np.prod(axes, dtype=int), dtype=np.float32).reshape(*axes, 1, 1)
    ordered = in_order(batch, scale * batch.features)
    assert ordered.dtype == np.float32
    np.testing.assert_array_equal(ordered, scale * slide.features)
    # Also of a slide whose spots were shuffled: their places say where they belong.
    order = np.random.default_rng(0).permutation(49)
    shuffled = collate([take(slide, order)], K, size)
    np.testing.assert_array_equal(in_order(shuffled, shuffled.features), slide.features)


def test_unknown_expression_is_zero():
    np.testing.assert_array_equal(collate([prepared(lattice(5), expr=False)], K).expr, 0.0)


def shapes_of(coords, size):
    leaves = jax.tree.leaves(collate([prepared(coords)], K, size))
    return tuple((a.shape, str(a.dtype)) for a in leaves)


def few_points(n):
    return np.random.default_rng(0).uniform(0, 12, (n, 2))


@pytest.mark.parametrize("size", [512, 64])
@pytest.mark.parametrize(
    ("points", "sizes"),
    [(lattice, (12, 13)), (hexagons, (12, 13)), (few_points, (130, 160, 190))],
    ids=["square", "hexagonal", "random"],
)
def test_slides_of_a_bucket_share_shapes(points, sizes, size):
    """Whatever their number of spots within it: one trace for each way spots are laid out."""
    assert len({shapes_of(points(n), size) for n in sizes}) == 1


def test_layouts_differ_in_the_width_of_their_tables_alone():
    """Ties make wider tables, so squares, hexagons and random points have a trace each."""
    batches = [collate([prepared(p)], K) for p in (lattice(12), hexagons(12), few_points(130))]
    assert [batch.tiles.senders.shape for batch in batches] == [
        (1, 192, width) for width in (10, 12, 8)
    ]
    rest = [jax.tree.map(np.shape, batch._replace(tiles=batch.tiles.halo)) for batch in batches]
    assert rest[0] == rest[1] == rest[2]


def test_regions_of_a_slide_have_few_shapes():
    """At most two tables in a bucket, with many ties and with holes in the lattice."""
    rng = np.random.default_rng(0)
    coords = hexagons(20)
    slide = prepared(coords[rng.uniform(size=len(coords)) > 0.1])
    batches = [collate([region(slide, rng, at_least=4 * K)], K, 512) for _ in range(60)]
    shapes = {batch.tiles.senders.shape for batch in batches}
    buckets = {len(batch.spot_mask) for batch in batches}
    assert len(buckets) >= 5 and len(shapes) <= 2 * len(buckets)


def test_ties_get_room():
    """Hexagons that fill a bucket have up to 12 edges per spot, none of which is lost."""
    slide = prepared(hexagons(16))
    batch = collate([slide], K)  # 256 spots in a bucket of 256
    assert batch.tiles.mask.sum() == len(knn_graph(slide.coords, K).senders) > 256 * (K + 2)
    assert batch.tiles.senders.shape == (1, 256, 12)
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
