"""What single elements of an AnnData say of a slide."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stfm_jax.data.readers import h5ad, h5ad_counts, h5ad_group
from stfm_jax.data.readers import h5ad_elements as elements
from stfm_jax.errors import InputError


def adata(n=6, **obs):
    made = anndata.AnnData(
        sp.csr_matrix(np.arange(2.0 * n).reshape(n, 2).astype(np.float32)),
        obs=pd.DataFrame(obs, index=[f"s{i}" for i in range(n)]),
        obsm={"spatial": np.arange(2.0 * n).reshape(n, 2) ** 2},
        uns={"spatial_unit": "um"},
    )
    made.var_names = ["A", "B"]
    return made


def test_names_in_messages():
    assert elements.listed("abcdef") == "a, b, c, d, e, f"
    assert elements.listed("abcdefg") == "a, b, c, d, e, f, ..."
    assert elements.listed([]) == "none"


@pytest.mark.parametrize("yes", [1, 1.0, True, "True", "1"])
def test_spots_in_the_tissue(yes):
    no = {1: 0, "True": "false", "1": "0.0"}.get(yes, 0)
    column = [yes, no, yes, no, yes, yes]
    np.testing.assert_array_equal(elements.in_tissue(adata(in_tissue=column), ""), [0, 2, 4, 5])
    assert elements.in_tissue(adata(in_tissue=[yes] * 6), "") is None
    assert elements.in_tissue(adata(), "") is None
    for wrong, message in (([2] * 6, "to be 0 or 1, found 2"), ([no] * 6, "every spot outside")):
        with pytest.raises(InputError, match=message):
            elements.in_tissue(adata(in_tissue=wrong), "slide")


def test_places_in_the_frame_of_the_stack():
    made = adata()
    assert elements.place(made, "") == (None, None)
    made.uns["z_um"] = 40.0
    assert elements.place(made, "") == (None, 40.0)
    made.obsm["spatial3d"] = np.column_stack([np.arange(6.0), np.arange(6.0) * 2, np.full(6, 40.0)])
    places, height = elements.place(made, "")
    np.testing.assert_array_equal(places, made.obsm["spatial3d"][:, :2])
    assert height == 40.0
    del made.uns["z_um"]
    made.obsm["spatial3d"][3, 2] = 40.009
    assert elements.place(made, "")[1] == 40.0
    made.obsm["spatial3d"][3, 2] = 40.02
    with pytest.raises(InputError, match=r"one height .* found 40 to 40\.02 um"):
        elements.place(made, "slide")
    made.obsm["spatial3d"][3, 2] = 40.0
    for given, fits in ((40.009, True), (40.02, False), (39.98, False)):
        made.uns["z_um"] = given
        if fits:
            assert elements.place(made, "")[1] == given
        else:
            with pytest.raises(InputError, match="but the third column"):
                elements.place(made, "slide")


def test_what_was_measured():
    counts, genes = elements.counts_if_measured(adata(), "counts", "")
    assert counts.shape == (6, 2) and list(genes) == ["A", "B"]
    for nothing in (adata(measured=[False] * 6), adata()[:, :0].copy()):
        assert elements.counts_if_measured(nothing, "counts", "") == (None, None)
    empty = adata(measured=[True] * 6)
    empty.X = None
    with pytest.raises(InputError, match="no counts above 0"):
        elements.counts_if_measured(empty, "counts", "slide")
    del empty.obs["measured"]
    assert elements.counts_if_measured(empty, "counts", "") == (None, None)
    layered = adata()
    layered.layers["counts"], layered.X = layered.X, None
    assert elements.counts_if_measured(layered, "counts", "")[0].shape == (6, 2)


@pytest.mark.parametrize("inside", [None, [1, 0, 1, 1, 0, 1]])
def test_of_names_that_occur_twice_those_in_the_tissue_are_read(tmp_path, inside):
    made = adata(**({} if inside is None else {"in_tissue": inside}))
    made.obs_names = ["a", "b", "c", "d", "a", "b"]
    made.write_h5ad(tmp_path / "a.h5ad")
    found = h5ad_counts.read_expression(tmp_path / "a.h5ad", ["a", "b"], ["A"], "log1p")
    rows = [0, 1] if inside is None else [0, 5]
    np.testing.assert_allclose(found[:, 0], np.log1p(made.X.toarray()[rows, 0]))


def test_a_written_slide_says_its_pixels_size_where_it_has_pixels(tmp_path):
    made = adata()
    made.write_h5ad(tmp_path / "a.h5ad")
    h5ad.write(h5ad.read(tmp_path / "a.h5ad"), tmp_path / "b.h5ad")
    assert "um_per_px" not in anndata.read_h5ad(tmp_path / "b.h5ad").uns
    made.uns.update(spatial_unit="pixel", um_per_px=0.5)
    made.write_h5ad(tmp_path / "a.h5ad")
    h5ad.write(h5ad.read(tmp_path / "a.h5ad"), tmp_path / "b.h5ad")
    assert anndata.read_h5ad(tmp_path / "b.h5ad").uns["um_per_px"] == 0.5


@pytest.mark.parametrize("values", [np.array([[b"x", b"y"]] * 6), np.arange(6.0)])
def test_counts_that_are_no_matrix_of_numbers(tmp_path, values):
    adata().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        del file["X"]
        file["X"] = values
        file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    with pytest.raises(InputError, match=r"a\.h5ad: expected counts to be a matrix of numbers"):
        h5ad.read(tmp_path / "a.h5ad")


def test_a_layer_of_another_name_is_read_where_it_is_there():
    made = adata()
    made.layers["umi"] = 3 * made.X
    counts, genes = elements.raw_counts(made, "umi", "slide")
    np.testing.assert_array_equal(counts.toarray(), 3 * made.X.toarray())
    assert list(genes) == ["A", "B"]
    counts, _ = elements.raw_counts(made, "counts", "slide")  # absent, and X in its place
    np.testing.assert_array_equal(counts.toarray(), made.X.toarray())
    with pytest.raises(InputError, match=r"slide: expected raw counts in layers\['raw'\], .* umi;"):
        elements.raw_counts(made, "raw", "slide")


def test_fractions_name_the_layers_that_may_hold_the_counts():
    made = adata()
    made.X = made.X * 0.5
    with pytest.raises(InputError, match=r"found 0\.5; .* into layers\['counts'\]\.$"):
        elements.raw_counts(made, "counts", "slide")
    made.layers["umi"] = made.X
    with pytest.raises(InputError, match=r"into layers\['counts'\] \(its layers: umi\)\.$"):
        elements.raw_counts(made, "counts", "slide")


def test_a_table_of_records_has_the_columns_that_are_wanted(tmp_path):
    """As anndata wrote them before 0.7: names among the columns, categories in `uns`."""
    kind = [("index", "S2"), ("section", "i1"), ("n", "f4"), ("patient", "S2")]
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["obs"] = np.array([(b"s0", 1, 5.0, b"P1"), (b"s1", 0, 6.0, b"P2")], kind)
        file["uns/section_categories"] = np.array([b"a", b"b"])
        some = h5ad_group.table(file["obs"], {"section", "patient"}.__contains__, file)
        every = h5ad_group.table(file["obs"], lambda name: True, file)
    assert list(some.index) == list(every.index) == ["s0", "s1"]
    assert list(some.columns) == ["section", "patient"]
    assert list(some["section"]) == ["b", "a"] and list(some["patient"]) == ["P1", "P2"]
    assert list(every.columns) == ["section", "n", "patient"] and list(every["n"]) == [5.0, 6.0]
