"""Expression read in blocks against that of the whole slide."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stfm_jax.data import feature_store
from stfm_jax.data.expression import NORMALIZATIONS, expression
from stfm_jax.data.readers import h5ad, h5ad_counts

COUNTS = np.random.default_rng(0).poisson(1.0, (9, 4)).astype(np.float32)


def _adata(X):
    return anndata.AnnData(
        X,
        obs=pd.DataFrame(index=[f"s{i}" for i in range(9)]),
        var=pd.DataFrame(index=["A", "B", "C", "D"]),
        obsm={"spatial": np.stack(np.divmod(np.arange(9.0), 3), axis=1)},
        uns={"spatial_unit": "um"},
    )


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("layer", [None, "counts"])
def test_expression_in_blocks(tmp_path, monkeypatch, kind, layer):
    """Equal to that of the whole slide, with names that occur twice, spots left out."""
    monkeypatch.setattr(feature_store, "BLOCK", 4)
    monkeypatch.setattr(h5ad_counts, "DENSE_AT_ONCE", 8)
    adata = _adata(kind(COUNTS) if layer is None else kind(np.log1p(COUNTS)))
    if layer:
        adata.layers[layer] = kind(COUNTS)
    adata.var_names = ["A", "B", "A", "D"]
    adata.write_h5ad(tmp_path / "slide.h5ad")
    slide = h5ad.read(tmp_path / "slide.h5ad").subset([0, 1, 4, 7, 8])
    for normalization in NORMALIZATIONS:
        arguments = (tmp_path / "slide.h5ad", slide.barcodes, ["D", "A"], normalization)
        got = h5ad_counts.read_expression(*arguments)
        expected = expression(slide, ["D", "A"], normalization)
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    if layer is None:
        assert h5ad_counts.read_expression(*arguments[:2], ["D", "C"], "log1p") is None
        assert h5ad_counts.read_expression(arguments[0], ["s0", "x"], ["D"], "log1p") is None


def test_no_expression_without_raw_counts(tmp_path):
    for X in (None, np.log1p(COUNTS), -COUNTS):
        _adata(X).write_h5ad(tmp_path / "slide.h5ad")
        assert h5ad_counts.read_expression(tmp_path / "slide.h5ad", ["s0"], ["A"], "log1p") is None


def test_no_expression_of_a_file_without_spots_or_genes(tmp_path):
    for lost in ("obs", "var", "X"):
        path = tmp_path / f"{lost}.h5ad"
        _adata(COUNTS).write_h5ad(path)
        with h5py.File(path, "r+") as file:
            del file[lost]
        assert h5ad_counts.read_expression(path, ["s0"], ["A"], "log1p") is None, lost
