"""Simulated tissue: determinism, plausible counts, one image per section, known motions."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial import cKDTree
from sklearn.linear_model import Ridge

from stfm_jax.data import simulate
from stfm_jax.data.expression import expression, most_variable_genes
from stfm_jax.data.simulate import TissueParams
from stfm_jax.data.simulate_canvas import TILE_PX, Nodes
from stfm_jax.data.simulate_nuclei import draw_nuclei
from stfm_jax.data.simulate_patches import SimulatedPatches
from stfm_jax.data.simulate_tissue import CELL_TYPES, stream
from stfm_jax.errors import InputError

SMALL = TissueParams(num_sections=2, spots=120, num_genes=30)


@pytest.fixture(scope="module")
def small():
    return simulate.volume(SMALL, seed=3)


@pytest.fixture(scope="module")
def demo():
    return simulate.volume(TissueParams(), seed=0)


def gene_correlation(a, b):
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return float(np.mean((a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))))


def test_same_seed_same_tissue(small):
    again = simulate.volume(SMALL, seed=3)
    for a, b in zip(small.slides, again.slides, strict=True):
        np.testing.assert_array_equal(a.coords_um, b.coords_um)
        np.testing.assert_array_equal(a.counts.toarray(), b.counts.toarray())
        np.testing.assert_array_equal(a.patches.read([5], 60.0), b.patches.read([5], 60.0))
    other = simulate.volume(SMALL, seed=4)
    assert (
        other.slides[0].num_spots != small.slides[0].num_spots
        or (other.slides[0].counts != small.slides[0].counts).nnz
    )


def test_streams_are_independent():
    draws = [stream(*k).random() for k in ((0, "a"), (0, "a", 0), (0, "a", 0, 0), (1, "a"))]
    assert len(set(draws)) == 4


def test_shapes_and_types(small):
    for slide, truth in zip(small.slides, small.truth, strict=True):
        n = slide.num_spots
        assert slide.counts.format == "csr" and slide.counts.shape == (n, 30)
        assert np.issubdtype(slide.counts.dtype, np.integer)
        assert slide.genes[0] == "GENE001" and slide.genes[-1] == "GENE030"
        assert truth.mixtures.shape == (n, len(CELL_TYPES)) and truth.mean.shape == (n, 30)
        for shares in (truth.mixtures, truth.domains):
            np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
        assert slide.patches.read(np.arange(3), 50.0).shape == (3, 50, 50, 3)
    assert [s.z_um for s in small.slides] == [0.0, 16.0]
    assert simulate.volume(SMALL, 3, keep_mean=False).truth[0].mean is None


@pytest.mark.parametrize(
    ("lattice", "distance", "neighbours"),
    [("square", 200.0, 4), ("hex", 100.0, 6), ("bins", 8.0, 4), ("random", None, None)],
)
def test_lattices(lattice, distance, neighbours):
    params = TissueParams(num_sections=1, spots=600, num_genes=5, lattice=lattice)
    coords = simulate.volume(params, 1).slides[0].coords_um
    assert 450 < len(coords) < 750
    if distance:
        near = cKDTree(coords).query(coords, k=8)[0][:, 1:]
        inner = np.median((near < 1.01 * distance).sum(axis=1))
        assert near.min() == pytest.approx(distance) and inner == neighbours


def test_zinb_moments():
    mu, theta, pi = np.full((40_000, 2), 5.0), np.array([1.5, 20.0]), np.array([0.3, 0.0])
    counts = simulate.sample_zinb(np.random.default_rng(0), mu, theta, pi)
    mean = (1 - pi) * 5.0
    variance = mean * (1 + 5.0 / theta + pi * 5.0)
    np.testing.assert_allclose(counts.mean(axis=0), mean, rtol=0.03)
    np.testing.assert_allclose(counts.var(axis=0), variance, rtol=0.05)
    zeros = pi + (1 - pi) * (theta / (theta + 5.0)) ** theta
    np.testing.assert_allclose((counts == 0).mean(axis=0), zeros, atol=0.01)


def test_counts_follow_their_mean(demo):
    observed = np.concatenate([s.counts.toarray() for s in demo.slides])
    expected = np.concatenate([t.mean for t in demo.truth])
    np.testing.assert_allclose(observed.sum(axis=0), expected.sum(axis=0), rtol=0.2)
    assert observed.sum() == pytest.approx(expected.sum(), rel=0.02)


def test_overlapping_patches_show_the_same_nuclei(small):
    slide = small.slides[0]
    a = int(np.argmin(np.linalg.norm(slide.coords_um - slide.coords_um.mean(axis=0), axis=1)))
    right = slide.coords_um[a] + [200.0, 0.0]
    b = int(np.argmin(np.linalg.norm(slide.coords_um - right, axis=1)))
    np.testing.assert_allclose(slide.coords_um[b], right)
    first, second = slide.patches.read([a, b], 300.0)
    np.testing.assert_array_equal(first[:, 200:], second[:, :100])
    assert first.std() > 10  # tissue, not glass
    alone = slide.subset(np.array([b])).patches.read(np.array([0]), 300.0)[0]
    np.testing.assert_array_equal(alone, second)


def test_tiles_join_without_seams(small):
    """Neighbouring tiles draw the very same nuclei near their common border."""
    base, center = small.slides[0].patches, small.tissue.center_um
    ix, iy = (center // TILE_PX).astype(int)
    border = (ix + 1) * TILE_PX
    found = []
    for x in (ix, ix + 1):
        nodes = Nodes.around(base.tissue, base.motion, base.z_um, 1.0, x, iy)
        nuclei = draw_nuclei(nodes, base.key)
        near = np.abs(nuclei.centers_um[:, 0] - border) < 12.0
        near &= np.abs(nuclei.centers_um[:, 1] - (iy + 0.5) * TILE_PX) < TILE_PX / 2
        table = np.column_stack([nuclei.centers_um, nuclei.half_axes_um, nuclei.angle])[near]
        found.append(table[np.lexsort(table.T)])
    assert len(found[0]) > 10
    np.testing.assert_allclose(*found, rtol=1e-4)


def test_images_look_like_their_tissue(demo):
    slide, truth = demo.slides[0], demo.truth[0]
    column = [cell.name for cell in CELL_TYPES].index("adipocyte")
    fat = np.argsort(-truth.mixtures[:, column])[:4]
    immune = np.argsort(-truth.domains[:, 2])[:4]
    stroma = np.argsort(-truth.domains[:, 1])[:4]
    means = [slide.patches.read(i, 100.0).mean(axis=(0, 1, 2)) for i in (fat, immune, stroma)]
    assert means[0].min() > max(means[1].max(), means[2].max()) - 25  # fat is pale
    red_over_blue = [m[0] - m[2] for m in means]
    assert red_over_blue[1] < red_over_blue[2]  # lymphocytes make it bluer, collagen pinker
    assert means[2][1] < means[2][2] and means[2][1] < means[2][0]  # eosin takes green away


def test_patches_off_the_tissue_are_glass(small):
    base = small.slides[0].patches
    away = np.array([[-5000.0, -300.0]])
    source = SimulatedPatches(base.tissue, base.motion, base.z_um, away, base.stain, base.key)
    assert source.read([0], 64.0).min() > 220


def test_motions_invert_and_carry_the_tissue():
    still = TissueParams(num_sections=3, spots=150, num_genes=5)
    moved = dataclasses.replace(
        still, rotation_deg=180.0, shift_um=500.0, flip=0.5, jitter_um=5.0, lost=0.1
    )
    volume = simulate.volume(moved, 2)
    same = simulate.volume(still, 2)
    for slide, truth, unmoved in zip(volume.slides, volume.truth, same.slides, strict=True):
        motion = truth.motion
        np.testing.assert_allclose(motion.matrix @ motion.matrix.T, np.eye(2), atol=1e-12)
        np.testing.assert_allclose(motion.invert(slide.coords_um), truth.points_um[:, :2])
        np.testing.assert_allclose(motion.apply(truth.points_um[:, :2]), slide.coords_um, atol=1e-8)
        assert (volume.tissue.inside(truth.points_um) > 0).all()
        assert 0.8 < slide.num_spots / unmoved.num_spots < 1.0
    angles = {round(float(t.motion.matrix[0, 0]), 3) for t in volume.truth}
    assert len(angles) == 3
    for truth in same.truth:
        np.testing.assert_allclose(truth.motion.matrix, np.eye(2))
        np.testing.assert_allclose(truth.motion.shift_um, 0)


def test_image_moves_with_the_tissue():
    """Background colour at the same piece of tissue agrees between a still and a turned section."""
    still = TissueParams(num_sections=1, spots=80, num_genes=5)
    turned = dataclasses.replace(still, rotation_deg=180.0, shift_um=300.0)
    a = simulate.volume(still, 6).slides[0]
    moved = simulate.volume(turned, 6)
    base, motion = moved.slides[0].patches, moved.truth[0].motion
    source = SimulatedPatches(
        base.tissue, motion, base.z_um, motion.apply(a.coords_um), base.stain, base.key
    )
    spots = np.arange(0, a.num_spots, 8)
    colours = [s.read(spots, 100.0).mean(axis=(1, 2)) for s in (a.patches, source)]
    assert gene_correlation(*colours) > 0.8


def test_close_sections_are_more_alike():
    params = TissueParams(num_sections=6, spots=200, num_genes=60, section_gap_um=60.0)
    volume = simulate.volume(params, 0)
    places = volume.truth[0].points_um[:, :2]
    at = [
        volume.tissue.mixtures(np.column_stack([places, np.full(len(places), s.z_um)]))
        for s in volume.slides
    ]
    alike = [gene_correlation(at[0], other) for other in at[1:]]
    assert alike[0] > alike[2] > alike[4] and alike[0] > 0.6


def test_difficulty_is_moderate(demo):
    """True mixtures, the best an image can know, predict the last section neither badly nor all."""
    genes = most_variable_genes(demo.slides[:-1], 50)
    expr = [expression(s, genes, "log1p") for s in demo.slides]
    known = [np.hstack([np.sqrt(t.mixtures), np.log(t.mixtures + 0.01)]) for t in demo.truth]
    hidden = [np.hstack([x, t.programs]) for x, t in zip(known, demo.truth, strict=True)]
    scores = []
    for features in (known, hidden):
        fitted = Ridge(1.0).fit(np.concatenate(features[:-1]), np.concatenate(expr[:-1]))
        scores.append(gene_correlation(fitted.predict(features[-1]), expr[-1]))
    assert 0.4 < scores[0] < 0.7
    assert scores[1] > scores[0] + 0.05  # hidden programs hold covariance that no image shows


def test_patients_share_genes_not_tissue():
    a, b = simulate.cohort(SMALL, [10, 11])
    np.testing.assert_array_equal(a.signatures.profiles, b.signatures.profiles)
    assert (a.slides[0].patient, b.slides[0].patient) == ("P1", "P2")
    stains = [v.slides[0].patches.stain.vectors for v in (a, b)]
    assert np.abs(stains[0] - stains[1]).max() > 0.005
    assert a.slides[0].num_spots != b.slides[0].num_spots or not np.allclose(
        a.truth[0].mixtures, b.truth[0].mixtures
    )


def test_a_hundred_thousand_bins():
    params = TissueParams(num_sections=1, spots=100_000, num_genes=20, lattice="bins")
    slide = simulate.volume(params, 0, keep_mean=False).slides[0]
    assert 85_000 < slide.num_spots < 115_000
    assert slide.counts.nnz < 0.3 * slide.num_spots * 20
    assert slide.patches.read([0, 50_000], 16.0).shape == (2, 16, 16, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lattice": "triangle"}, "lattice must be one of"),
        ({"spots": 0}, "spots to be at least 1"),
        ({"lost": 1.5}, r"lost to be in \[0, 1\]"),
        ({"mean_count": 0.0}, "mean_count to be positive"),
        ({"jitter_um": -1.0}, "jitter_um to be not negative"),
    ],
)
def test_bad_params(change, message):
    with pytest.raises(InputError, match=message):
        TissueParams(**change)


def test_bad_requests(small):
    with pytest.raises(InputError, match="seed of 0 or more"):
        simulate.volume(SMALL, -1)
    with pytest.raises(InputError, match="found none"):
        simulate.volume(dataclasses.replace(SMALL, lost=1.0), 0)
    with pytest.raises(InputError, match="spot indices from 0"):
        small.slides[0].patches.read([small.slides[0].num_spots], 50.0)
    with pytest.raises(InputError, match="at least one pixel"):
        small.slides[0].patches.read([0], 0.1)
