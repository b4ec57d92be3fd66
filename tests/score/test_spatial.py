"""Moran's agreement means one thing, whatever is scored."""

import numpy as np
import pytest
import test_run_srast

from stfm_jax.data.coarsen import by_lattice
from stfm_jax.data.expression import gene_counts
from stfm_jax.ops import metrics
from stfm_jax.ops.neighbors import knn_graph
from stfm_jax.score import expression, split


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
