"""Moran's agreement means one thing, whatever is scored."""

import numpy as np
import pytest
import test_run_srast
from scipy.stats import spearmanr

from stfm_jax.data.coarsen import by_lattice
from stfm_jax.data.expression import gene_counts
from stfm_jax.ops import metrics
from stfm_jax.ops.neighbors import knn_graph
from stfm_jax.score import expression, split
from stfm_jax.score.spatial import graph


def test_one_moran_for_both_problems():
    pair = by_lattice(test_run_srast.section("P0", 0))
    genes = [str(gene) for gene in pair.high.genes]
    true = gene_counts(pair.high, genes)
    low = gene_counts(pair.low, genes)
    rough = np.random.default_rng(0).permutation(true)
    logs = np.log1p(rough), np.log1p(true)
    test = expression.TestSet(("P0",), [pair.high.coords_um], [logs[1]])
    one = expression.score_point([logs[0]], test)["moran"]
    other = split.score([pair], [low], [rough], [true])["moran"]
    by_hand = metrics.moran_agreement(*logs, *knn_graph(pair.high.coords_um, 8))
    assert one == pytest.approx(other) == pytest.approx(by_hand)
    assert other != pytest.approx(
        metrics.moran_agreement(*logs, *knn_graph(pair.high.coords_um, 4))
    )


def smoothed(values, coords, steps):
    """Columns averaged over their neighbours, the i-th as often as `steps` says."""
    senders, receivers = knn_graph(coords, 8)
    out = values.copy()
    for gene, number in enumerate(steps):
        for _ in range(number):
            total = np.bincount(receivers, out[senders, gene], len(out))
            out[:, gene] = total / np.bincount(receivers, minlength=len(out))
    return out


def test_variable_genes_are_recovered_by_rank_whatever_the_height():
    """Mean over slides of one rank correlation each, on the graph that `moran` is of."""
    rng = np.random.default_rng(0)
    coords = [rng.uniform(0, 2000, (n, 2)) for n in (150, 200)]
    parts = [
        (
            smoothed(rng.normal(size=(len(c), 8)), c, steps),
            smoothed(rng.normal(size=(len(c), 8)), c, range(8)),
        )
        for c, steps in zip(coords, ([2, 1, 4, 3, 6, 5, 8, 7], range(9, 1, -1)), strict=True)
    ]
    prediction, true = (list(each) for each in zip(*parts, strict=True))
    both = expression.score_point(prediction, expression.TestSet(("a", "b"), coords, true))
    by_hand = []
    for p, y, c in zip(prediction, true, coords, strict=True):
        indices = (metrics.morans_i(values, *knn_graph(c, 8)) for values in (p, y))
        by_hand.append(spearmanr(*indices).statistic)
    assert by_hand[0] > 0.6 and by_hand[1] < -0.6
    assert both["svg"] == pytest.approx(np.mean(by_hand))
    for name, low, high in (("perfect", 0.999, 1.001), ("even", 0.0, 0.0)):
        given = true if name == "perfect" else [np.ones_like(y) for y in true]
        test = expression.TestSet(("a", "b"), coords, true)
        assert low <= expression.score_point(given, test)["svg"] <= high, name


def test_two_genes_have_no_ranks():
    rng = np.random.default_rng(1)
    true, coords = rng.normal(size=(60, 2)), rng.uniform(0, 1000, (60, 2))
    found = expression.score_point([true], expression.TestSet(("a",), [coords], [true]))
    assert np.isnan(found["svg"]) and found["moran"] == pytest.approx(1.0)


@pytest.mark.parametrize("number", [1, 2, 5, 8, 9])
def test_few_spots_are_all_neighbours(number):
    places = np.random.default_rng(number).uniform(0, 1000, (number, 2))
    for include_self in (False, True):
        degrees = graph(places, include_self).degrees(number)
        np.testing.assert_array_equal(degrees, number - 1 + include_self)


def test_of_many_spots_the_eight_nearest_are():
    places = np.random.default_rng(0).uniform(0, 1000, (60, 2))
    np.testing.assert_array_equal(graph(places).degrees(60), 8)
