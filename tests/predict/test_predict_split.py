"""What is said and drawn of a split that was written: read some rows at a time, never densely."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from unittest import mock

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import test_run_srast

from stfm_jax.data.coarsen import by_lattice
from stfm_jax.data.expression import gene_counts
from stfm_jax.errors import InputError
from stfm_jax.ops import metrics
from stfm_jax.predict import budget, split


@pytest.fixture
def pair():
    return by_lattice(test_run_srast.section("new", 9))


@pytest.fixture
def written(pair, tmp_path):
    """A mean of the children in a file, of all genes but one; one gene is constant there."""
    names = [str(gene) for gene in pair.high.genes[1:]]
    mean = gene_counts(pair.high, names) * np.random.default_rng(0).uniform(size=(144, 15))
    mean[:, 3] = 2.0
    anndata.AnnData(sp.csr_matrix(mean.astype(np.float32))).write_h5ad(tmp_path / "out.h5ad")
    return names, mean, tmp_path / "out.h5ad"


@pytest.mark.parametrize("at_once", [7, 1000])
def test_pearson_by_blocks_is_pearson(pair, written, monkeypatch, at_once):
    names, mean, path = written
    monkeypatch.setattr(split, "ROWS", at_once)
    counts = pair.high.counts.tolil()
    counts[:, 5] = 1.0  # constant in the truth
    high = dataclasses.replace(pair.high, counts=counts.tocsr())
    true = gene_counts(high, names)
    expected = metrics.pearson(np.log1p(mean), np.log1p(true))
    assert np.isnan(expected[4]) and expected[3] == 0.0
    found = split._pearson_log1p(high, path, names)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_genes_shown_are_those_that_vary_most(pair):
    names = [str(gene) for gene in pair.low.genes]
    variance = np.log1p(gene_counts(pair.low, names)).var(axis=0)
    found = split._most_variable(pair.low, names)
    np.testing.assert_array_equal(found, np.argsort(-variance)[: split.GENES_SHOWN])


def test_the_disk_that_is_asked_is_the_one_written_to(tmp_path):
    """Also where the folder is to be made; not the one the command was given on."""
    asked = []

    def usage(path):
        asked.append(Path(path))
        return mock.Mock(free=10)

    with mock.patch.object(budget.shutil, "disk_usage", usage):
        with pytest.raises(InputError, match=r"the output needs"):
            split._check_disk(tmp_path / "new" / "folder", 11)
        split._check_disk(tmp_path / "new" / "folder", 9)
    assert asked == [tmp_path, tmp_path]
