"""The scores order what knows the truth, on tissue whose truth is known and on real tissue."""

from __future__ import annotations

import numpy as np
import pytest
from real_tissue import her2st_root

from stfm_jax.data.expression import expression, most_variable_genes, pearson_residuals
from stfm_jax.data.readers import her2st
from stfm_jax.data.simulate import TissueParams, volume
from stfm_jax.ops import metrics
from stfm_jax.score import controls
from stfm_jax.score import expression as score
from stfm_jax.score.spatial import graph

ROOT = her2st_root()


def simulated():
    return list(volume(TissueParams(num_sections=2, spots=300, num_genes=40), seed=0).slides)


def real():
    return [her2st.read(ROOT, name) for name in ("C2", "C3")]


def of_slides(slides, count=30):
    genes = most_variable_genes(slides, count)
    expr = [expression(slide, genes, "log1p_cp10k") for slide in slides]
    coords = [slide.coords_um for slide in slides]
    residuals = [pearson_residuals(slide, genes) for slide in slides]
    names = tuple(slide.name for slide in slides)
    return score.TestSet(names, coords, expr, residuals=residuals)


@pytest.fixture(
    params=[
        simulated,
        pytest.param(
            real,
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(ROOT is None, reason="her2st is absent (set STFM_HER2ST)"),
            ],
        ),
    ]
)
def tested(request):
    return of_slides(request.param())


def test_scores_order_what_knows_the_truth(tested):
    made = controls.predictions(tested.expr, tested.coords_um, 0)
    assert tuple(made) == controls.NAMES
    found = {name: score.score_point(values, tested) for name, values in made.items()}

    def of(metric):
        return [found[name][metric] for name in controls.NAMES]

    for metric in ("pearson", "pearson_slide", "spearman"):
        smooth, neighbours, spots, genes = of(metric)
        assert smooth > neighbours + 0.02 > 0.1 and neighbours > max(spots, genes) + 0.1, metric
        assert abs(spots) < 0.06 and abs(genes) < 0.06, metric
    for metric in ("mse", "mae", "crps"):
        smooth, neighbours, spots, genes = of(metric)
        assert smooth < neighbours < min(spots, genes), metric
    smooth, neighbours, spots, genes = of("residual")
    assert smooth > neighbours > max(abs(spots), abs(genes))
    # Which spot is which has no part in how genes go together.
    smooth, neighbours, spots, genes = of("gene_structure")
    assert spots == pytest.approx(1.0, abs=0.05) and abs(genes) < 0.15
    assert min(smooth, neighbours) > 0.5
    # Shuffled values lie as if anywhere, and a mean over neighbours is smoother than any tissue.
    assert max(map(abs, of("moran"))) < 0.15
    assert score.score_point(tested.expr, tested)["moran"] == pytest.approx(1.0)
    own, smooth, neighbours, spots, genes = (
        np.mean(metrics.morans_i(values[0], *graph(tested.coords_um[0])))
        for values in (tested.expr, *made.values())
    )
    expected = -1.0 / (len(tested.expr[0]) - 1)
    assert abs(spots - expected) < 0.03 and abs(genes - expected) < 0.03
    assert min(smooth, neighbours) > own + 0.2 > 0.2


def test_shuffled_within_a_slide():
    """Of one slide alone gene-gene structure is the truth's own; each slide keeps its values."""
    slides = of_slides(simulated())
    made = controls.predictions(slides.expr, slides.coords_um, 1)
    for shuffled, genes, true in zip(
        made["shuffle_spots"], made["shuffle_genes"], slides.expr, strict=True
    ):
        assert sorted(map(tuple, shuffled)) == sorted(map(tuple, true))
        assert not np.array_equal(shuffled, true)
        np.testing.assert_array_equal(np.sort(genes, axis=0), np.sort(true, axis=0))
    found = score.score_point(made["shuffle_spots"], slides)
    assert found["gene_structure"] == pytest.approx(1.0, abs=1e-9)


def test_orders_are_of_the_seed():
    slides = of_slides(simulated(), 5)
    one, again, other = (
        controls.predictions(slides.expr, slides.coords_um, seed) for seed in (0, 0, 1)
    )
    for name in controls.NAMES:
        np.testing.assert_array_equal(one[name][1], again[name][1])
        same = np.array_equal(one[name][1], other[name][1])
        assert same == (name in controls.POSITIVE), name


def test_neighbours_are_those_beside_a_spot():
    """On a square lattice the eight around it, for one control with the spot itself."""
    side = 5
    coords = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) * 200.0
    true = np.random.default_rng(0).normal(size=(side * side, 2))
    middle = side * 2 + 2
    around = [middle + dx + side * dy for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    made = controls.predictions([true], [coords], 0)
    np.testing.assert_allclose(made["truth_smooth"][0][middle], true[around].mean(axis=0))
    others = [i for i in around if i != middle]
    np.testing.assert_allclose(made["neighbours_true"][0][middle], true[others].mean(axis=0))
