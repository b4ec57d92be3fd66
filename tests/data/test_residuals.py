"""Pearson residuals of counts: what they are, and that they are those of scanpy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
import tiny

from stfm_jax.data.expression import library_size, pearson_residuals


@pytest.fixture(scope="module")
def slide():
    return tiny.slides(1)[0]


def test_counts_that_follow_depth_alone_have_none(slide):
    depth, shares = np.array([1, 2, 5, 10]), np.array([20, 50, 30])
    counts = sp.csr_matrix(depth[:, None] * shares)
    even = dataclasses.replace(
        slide.subset(np.arange(slide.num_spots) < 4), counts=counts, genes=np.array(list("abc"))
    )
    np.testing.assert_allclose(pearson_residuals(even, ("c", "a")), 0.0, atol=1e-5)


def test_they_are_standardised_by_the_mean_and_clipped(slide):
    genes = [str(gene) for gene in slide.genes[:3]]
    found, library = pearson_residuals(slide, genes), library_size(slide)
    counts = slide.counts.toarray()
    most = np.sqrt(len(counts))
    for i, j in ((0, 0), (7, 2)):
        mean = library[i] * counts[:, j].sum() / library.sum()
        by_hand = (counts[i, j] - mean) / np.sqrt(mean + mean**2 / 100)
        assert found[i, j] == pytest.approx(np.clip(by_hand, -most, most), rel=1e-4)
    counts *= 100
    counts[:, 0], counts[0, 0] = 0, 2000  # a gene of one spot
    far = dataclasses.replace(slide, counts=sp.csr_matrix(counts))
    assert pearson_residuals(far, genes)[0, 0] == pytest.approx(most)


@pytest.mark.ecosystem
def test_they_are_scanpys(slide):
    anndata = pytest.importorskip("anndata")
    scanpy = pytest.importorskip("scanpy")
    adata = anndata.AnnData(slide.counts.astype(np.float32))
    scanpy.experimental.pp.normalize_pearson_residuals(adata, theta=100)
    found = pearson_residuals(slide, [str(gene) for gene in slide.genes])
    np.testing.assert_allclose(found, adata.X, rtol=1e-3, atol=1e-4)
