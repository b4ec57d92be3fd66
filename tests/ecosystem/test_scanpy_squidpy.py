"""Files of predictions are what scanpy and squidpy expect: a slide, a stack and a split."""

from __future__ import annotations

import matplotlib
import numpy as np
import optional
import pytest
import scipy.sparse as sp
import test_legacy
import tiny

import stfm_jax as stfm
from stfm_jax.data.readers.h5ad_elements import layer_names

pytestmark = [
    pytest.mark.ecosystem,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]
sc = optional.require("scanpy", "test-ecosystem")
sq = optional.require("squidpy", "test-ecosystem")
matplotlib.use("Agg")


@pytest.fixture(scope="module", params=["trained", *test_legacy.GIVEN])
def opened(request, tmp_path_factory):
    """What scanpy reads of a file that was predicted."""
    output = tmp_path_factory.mktemp("predicted") / "out.h5ad"
    if request.param == "trained":
        trained = request.getfixturevalue("trained")
        given = {"predict__input": str(trained.unseen), "predict__output": str(output)}
        assert tiny.run(trained.config(**given), trained.workdir, "predict") == 0
    else:
        folder, given = test_legacy.LEGACY / request.param, dict(test_legacy.GIVEN[request.param])
        data = folder / given.pop("data")
        stfm.load(folder).predict(data, **given).write_h5ad(output)
    return sc.read_h5ad(output)


@pytest.fixture
def adata(opened):
    return opened.copy()


def totals(adata) -> np.ndarray:
    return np.asarray(adata.X.sum(axis=1)).ravel()


def test_scanpy_preprocesses_it(adata):
    counts = adata.copy()
    sc.pp.normalize_total(counts, target_sum=1e4)
    expected = 1e4 * (totals(adata) > 0)
    np.testing.assert_allclose(totals(counts), expected, rtol=1e-3)
    sc.pp.log1p(counts)
    sc.pp.highly_variable_genes(counts, n_top_genes=3)
    assert counts.var["highly_variable"].sum() >= 3 and np.isfinite(counts.var["means"]).all()
    sc.pp.calculate_qc_metrics(adata, percent_top=None, inplace=True)
    np.testing.assert_allclose(adata.obs["total_counts"], totals(adata), rtol=1e-5)


def test_sparse_matrices_have_indices_of_one_type(adata):
    """Scipy refuses to go on with others, each method in its own way."""
    for matrix in (adata.X, *(adata.layers[name] for name in layer_names(adata))):
        if not sp.issparse(matrix):
            continue
        assert matrix.indices.dtype == matrix.indptr.dtype
        total = matrix.sum()
        for does in ("sort_indices", "sum_duplicates", "eliminate_zeros"):
            getattr(matrix, does)()
        rows, columns = matrix.nonzero()
        assert len(rows) == len(columns) == matrix.nnz == matrix.tocoo().nnz
        assert matrix.sum() == pytest.approx(total, rel=1e-6)


def test_scanpy_finds_neighbours_and_draws_them(adata, tmp_path):
    sc.pp.pca(adata, n_comps=3)
    assert np.isfinite(adata.obsm["X_pca"]).all() and adata.obsm["X_pca"].std() > 0
    sc.pp.neighbors(adata, n_neighbors=5)
    assert adata.obsp["connectivities"].shape == (adata.n_obs, adata.n_obs)
    axes = sc.pl.embedding(
        adata, basis="spatial", color=adata.var_names[0], sort_order=False, show=False
    )
    np.testing.assert_allclose(axes.collections[0].get_offsets(), adata.obsm["spatial"])
    adata.write_h5ad(tmp_path / "again.h5ad")
    again = sc.read_h5ad(tmp_path / "again.h5ad")
    assert again.uns["stfm"]["method"] == adata.uns["stfm"]["method"]


def test_squidpy_finds_structure_in_space(adata):
    """In every layer too; sections of a stack are not neighbours."""
    key = "section" if "section" in adata.obs else None
    sq.gr.spatial_neighbors(adata, coord_type="generic", n_neighs=6, library_key=key)
    graph = sp.coo_matrix(adata.obsp["spatial_connectivities"])
    assert graph.nnz >= 6 * adata.n_obs
    if key:
        section = adata.obs[key].to_numpy()
        assert (section[graph.row] == section[graph.col]).all()
    for layer in (None, *layer_names(adata)):
        sq.gr.spatial_autocorr(adata, mode="moran", layer=layer, genes=list(adata.var_names))
        moran = adata.uns["moranI"]["I"]
        assert set(moran.index) == set(adata.var_names) and (moran.abs() <= 1).all()


def test_squidpy_draws_it(adata):
    key = "section" if "section" in adata.obs else None
    gene = adata.var_names[0]
    axes = sq.pl.spatial_scatter(
        adata, shape=None, color=gene, library_key=key, return_ax=True, colorbar=False
    )
    drawn = sum(len(each.collections[0].get_offsets()) for each in np.atleast_1d(axes))
    assert drawn == adata.n_obs
