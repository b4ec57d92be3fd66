"""AnnData files of many makes, and files that are none."""

import logging

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from stfm_jax.data import feature_store
from stfm_jax.data.readers import h5ad, h5ad_group
from stfm_jax.data.readers.h5ad_slide import slide_from_anndata
from stfm_jax.errors import InputError

RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(1.0, (9, 4)).astype(np.float32)
COORDS = np.stack(np.meshgrid(np.arange(3.0), np.arange(3.0)), -1).reshape(-1, 2) * 100


def _adata(X=COUNTS, **uns):
    adata = anndata.AnnData(
        None if X is None else X.copy(),
        obs=pd.DataFrame(index=[f"s{i}" for i in range(9)]),
        var=pd.DataFrame(index=["A", "B", "C", "D"]),
        obsm={"spatial": COORDS.copy()},
    )
    adata.uns.update({"spatial_unit": "um", **uns})
    return adata


def _read(tmp_path, adata, read=h5ad.read, **options):
    path = tmp_path / "slide.h5ad"
    adata.write_h5ad(path)
    return read(path, **options)


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_counts_stay_sparse_whatever_their_kind(tmp_path, kind):
    slide = _read(tmp_path, _adata(kind(COUNTS)))
    assert isinstance(slide.counts, sp.csr_matrix)
    np.testing.assert_array_equal(slide.counts.toarray(), COUNTS)
    np.testing.assert_array_equal(slide.genes, ["A", "B", "C", "D"])
    np.testing.assert_array_equal(slide.coords_um, COORDS)
    assert slide.name == "slide" and slide.features is None and slide.patient == ""


def test_dense_x_is_never_read_dense(tmp_path, monkeypatch):
    """A dense X of 30,000 genes would not fit; it is read in blocks of rows."""
    monkeypatch.setattr(h5ad_group, "_DENSE_AT_ONCE", 2 * COUNTS.shape[1])
    blocks, read = [], h5py.Dataset.__getitem__

    def watched(dataset, key):
        found = read(dataset, key)
        blocks.extend([len(found)] * (dataset.name == "/X"))
        return found

    _adata().write_h5ad(tmp_path / "slide.h5ad")
    monkeypatch.setattr(h5py.Dataset, "__getitem__", watched)
    found = h5ad.read(tmp_path / "slide.h5ad")
    np.testing.assert_array_equal(found.counts.toarray(), COUNTS)
    assert set(blocks) <= {1, 2}


def test_pixels_become_micrometres(tmp_path):
    slide = _read(tmp_path, _adata(spatial_unit="pixels", um_per_px=0.5))
    np.testing.assert_array_equal(slide.coords_in, COORDS)
    np.testing.assert_allclose(slide.coords_um, COORDS / 2)
    assert slide.spatial_unit == "pixel"
    slide = _read(tmp_path, _adata(), spatial_unit="pixel", um_per_px=0.25)
    np.testing.assert_allclose(slide.coords_um, COORDS / 4)
    assert _read(tmp_path, _adata(spatial_unit="µm")).spatial_unit == "um"


def test_counts_layer_before_x(tmp_path):
    adata = _adata(np.log1p(COUNTS))
    adata.layers["counts"] = sp.csr_matrix(COUNTS)
    np.testing.assert_array_equal(_read(tmp_path, adata).counts.toarray(), COUNTS)
    adata.layers["raw"] = adata.layers.pop("counts")
    slide = _read(tmp_path, adata, counts_layer="raw")
    np.testing.assert_array_equal(slide.counts.toarray(), COUNTS)
    with pytest.raises(InputError, match=r"layers\['umi'\], found layers raw;"):
        _read(tmp_path, adata, counts_layer="umi")


@pytest.mark.parametrize("X", [None, np.zeros((9, 4)), -COUNTS, np.log1p(COUNTS)])
def test_slides_without_expression(tmp_path, X):
    slide = _read(tmp_path, _adata(X), h5ad.read_to_predict)
    assert slide.counts is None and slide.genes is None and slide.num_spots == 9


def test_a_slide_with_no_genes_at_all(tmp_path):
    adata = anndata.AnnData(obs=pd.DataFrame(index=list("abc")), obsm={"spatial": COORDS[:3]})
    assert _read(tmp_path, adata, h5ad.read_to_predict, spatial_unit="um").num_spots == 3
    with pytest.raises(InputError, match="raw counts are needed"):
        _read(tmp_path, adata, spatial_unit="um")


def test_features_and_their_encoder(tmp_path):
    features = RNG.normal(size=(9, 3))
    adata = _adata(encoder="stain_224um")
    adata.obsm["features"] = features
    adata.obsm["uni"] = pd.DataFrame(features * 2, index=adata.obs_names, columns=list("abc"))
    slide = _read(tmp_path, adata)
    np.testing.assert_allclose(slide.features, features, rtol=1e-6)
    assert slide.features.dtype == np.float32 and slide.encoder == "stain_224um"
    np.testing.assert_allclose(_read(tmp_path, adata, features_key="uni").features, features * 2)
    with pytest.raises(
        InputError, match=r"obsm\['conch'\], found obsm keys features, spatial, uni"
    ):
        _read(tmp_path, adata, features_key="conch")
    adata.obsm["features"][4, 0] = np.nan
    with pytest.raises(InputError, match="features of 1 spots hold NaN"):
        _read(tmp_path, adata)


@pytest.mark.parametrize("kind", [str, "category"])
def test_a_pathologists_labels(tmp_path, kind):
    adata = _adata()
    texts = ["tumour", "stroma", "Undetermined", "", "nan", "tumour ", "none", "fat", "fat"]
    adata.obs["annotation"] = pd.Series(texts, index=adata.obs_names).astype(kind)
    assert _read(tmp_path, adata).domains is None
    found = _read(tmp_path, adata, labels_key="annotation").domains
    assert list(found) == ["tumour", "stroma", "", "", "", "tumour", "", "fat", "fat"]
    assert _read(tmp_path, adata, labels_key="region").domains is None
    adata.write_zarr(tmp_path / "slide.zarr")
    again = h5ad.read(tmp_path / "slide.zarr", labels_key="annotation").domains
    np.testing.assert_array_equal(again, found)


@pytest.mark.parametrize("column", [[1, 0] * 4 + [1], [True, False] * 4 + [True], ["1", "0"] * 5])
def test_spots_outside_the_tissue_are_dropped(tmp_path, caplog, column):
    adata = _adata(z_um=32.0)
    adata.obs["in_tissue"] = column[:9]
    adata.obsm["features"] = np.arange(18.0).reshape(9, 2)
    with caplog.at_level(logging.INFO, "stfm_jax"):
        slide = _read(tmp_path, adata)
    np.testing.assert_array_equal(slide.barcodes, ["s0", "s2", "s4", "s6", "s8"])
    np.testing.assert_array_equal(slide.counts.toarray(), COUNTS[::2])
    np.testing.assert_array_equal(slide.features[:, 0], [0, 4, 8, 12, 16])
    assert "4 of 9 spots dropped, outside the tissue" in caplog.text and slide.z_um == 32.0


def test_an_object_in_memory_loses_spots_outside_unless_told_otherwise():
    adata = _adata()
    adata.obs["in_tissue"] = [1, 0, 0] * 3
    assert slide_from_anndata(adata, name="slide").num_spots == 3
    assert slide_from_anndata(adata, name="slide", tissue_mask=False).num_spots == 9


def test_to_predict_features_stay_in_the_file(tmp_path):
    """The same slide as `read` gives, whatever holds the features, without touching X or layers."""
    adata = _adata(-COUNTS, encoder="stain_224um")
    adata.obs["in_tissue"], adata.obs["patient"] = [1, 0, 1] * 3, "P1"
    features = RNG.normal(size=(9, 3)).astype(np.float32)
    adata.obsm["features"], adata.obsm["other"] = features, features[:, :2]
    adata.obsm["frame"] = pd.DataFrame(features, index=adata.obs_names, columns=list("abc"))
    slide = _read(tmp_path, adata, h5ad.read_to_predict)
    keep = [0, 2, 3, 5, 6, 8]
    assert isinstance(slide.features, feature_store.StoredFeatures)
    np.testing.assert_array_equal(np.asarray(slide.features), features[keep])
    np.testing.assert_array_equal(slide.barcodes, [f"s{i}" for i in keep])
    np.testing.assert_array_equal(slide.coords_um, COORDS[keep])
    assert (slide.encoder, slide.patient, slide.counts) == ("stain_224um", "P1", None)
    np.testing.assert_array_equal(np.asarray(slide.subset([1, 4]).features), features[[2, 6]])
    h5ad.write(slide, tmp_path / "again.h5ad")
    again = h5ad.read_to_predict(tmp_path / "again.h5ad")
    np.testing.assert_array_equal(np.asarray(again.features), features[keep])
    frame = _read(tmp_path, adata, h5ad.read_to_predict, features_key="frame")
    np.testing.assert_array_equal(frame.features, features[keep])
    with pytest.raises(InputError, match=r"obsm\['uni'\], found obsm keys .*other.*spatial"):
        _read(tmp_path, adata, h5ad.read_to_predict, features_key="uni")


@pytest.mark.filterwarnings("ignore:.*very old version of AnnData")
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_a_file_of_before_encodings(tmp_path, form):
    adata = _adata(form(COUNTS))
    adata.obsm["features"] = COORDS.astype(np.float32)
    adata.write_h5ad(tmp_path / "old.h5ad")
    with h5py.File(tmp_path / "old.h5ad", "r+") as file:
        del file["obs"]
        rows = list(zip(adata.obs_names, range(9), strict=True))
        file["obs"] = np.array(rows, [("index", "S9"), ("n", int)])
    slide = h5ad.read_to_predict(tmp_path / "old.h5ad")
    np.testing.assert_array_equal(slide.features, COORDS)
    counts = h5ad.read(tmp_path / "old.h5ad").counts.toarray()
    np.testing.assert_array_equal(counts, COUNTS)


def test_bad_tissue_masks(tmp_path):
    adata = _adata()
    adata.obs["in_tissue"] = 0
    with pytest.raises(InputError, match="every spot outside"):
        _read(tmp_path, adata)
    adata.obs["in_tissue"] = ["maybe"] * 9
    with pytest.raises(InputError, match="to be 0 or 1, found maybe"):
        _read(tmp_path, adata)


def test_duplicate_symbols_are_summed_and_ensembl_ids_named(tmp_path):
    adata = _adata(sp.csr_matrix(COUNTS))
    adata.var["gene_name"] = ["TP53", "ESR1", "TP53", "GATA3"]
    adata.var_names = [f"ENSG0000000000{i}.{i}" for i in range(4)]
    slide = _read(tmp_path, adata)
    np.testing.assert_array_equal(slide.genes, ["TP53", "ESR1", "GATA3"])
    np.testing.assert_array_equal(slide.counts[:, 0].toarray()[:, 0], COUNTS[:, 0] + COUNTS[:, 2])


def test_a_file_without_spots_says_so(tmp_path):
    """Whatever columns it has: none of them can be constant, or on tissue."""
    adata = _adata()
    adata.obs["patient"], adata.obs["section"], adata.obs["in_tissue"] = "P1", "a", 1
    adata[:0].copy().write_h5ad(tmp_path / "slide.h5ad")
    for read in (h5ad.read, h5ad.read_stack):
        with pytest.raises(InputError, match=r"slide\.h5ad\): has no spots"):
            read(tmp_path / "slide.h5ad")


def test_stack_is_split_by_section_and_ordered_by_height(tmp_path):
    adata = _adata()
    adata.obs["section"] = ["b", "a", "b"] * 3
    adata.obs["z_um"] = np.where(adata.obs["section"] == "b", 10.0, 26.0)
    adata.obs["patient"] = "P1"
    with pytest.raises(InputError, match=r"obs\['section'\] names 2 \(a, b"):
        _read(tmp_path, adata)
    slides = h5ad.read_stack(tmp_path / "slide.h5ad")
    assert [(s.section, s.z_um, s.num_spots) for s in slides] == [("b", 10.0, 6), ("a", 26.0, 3)]
    assert slides[0].name == "slide_b" and slides[0].patient == "P1"
    np.testing.assert_array_equal(slides[1].counts.toarray(), COUNTS[1::3])
    adata.obs["z_um"] = np.arange(9.0)
    adata.write_h5ad(tmp_path / "slide.h5ad")
    with pytest.raises(InputError, match="one z_um for the whole slide"):
        h5ad.read_stack(tmp_path / "slide.h5ad")


def _broken(change):
    adata = _adata()
    change(adata)
    return adata


def _set(mapping, key, value):
    return lambda adata: getattr(adata, mapping).__setitem__(key, value)


BAD = {
    "no coordinates": (lambda a: a.obsm.pop("spatial"), r"obsm\['spatial'\], found obsm keys none"),
    "no unit": (lambda a: a.uns.pop("spatial_unit"), "unit of obsm.*not known; set uns"),
    "odd unit": (_set("uns", "spatial_unit", "inch"), "must be 'um' or 'pixel', found 'inch'"),
    "no scale": (_set("uns", "spatial_unit", "pixel"), "micrometres per pixel are not known"),
    "fractions": (lambda a: a.X.__setitem__((0, 0), 0.5), "non-negative integers.*found 0.5"),
    "negative": (lambda a: a.X.__setitem__((0, 0), -2), "non-negative integers.*found -2"),
    "NaN counts": (lambda a: a.X.__setitem__((0, 0), np.nan), "non-negative integers.*nan"),
    "NaN coordinates": (
        lambda a: a.obsm["spatial"].__setitem__((2, 1), np.nan),
        "1 spots have NaN",
    ),
    "three columns": (_set("obsm", "spatial", np.ones((9, 3))), r"\[9, 2\], found \(9, 3\)"),
    "coinciding": (_set("obsm", "spatial", np.ones((9, 2))), "on top of another"),
    "duplicate barcodes": (
        lambda a: setattr(a, "obs_names", ["s0"] * 2 + [f"s{i}" for i in range(7)]),
        "barcodes must be unique",
    ),
    "zero scale": (
        lambda a: a.uns.update(spatial_unit="pixel", um_per_px=0.0),
        "um_per_px must be a number above 0",
    ),
    "bad z": (_set("uns", "z_um", "high"), "z_um must be a number"),
    "two patients": (_set("obs", "patient", list("aabbccdde")), "one patient for the whole slide"),
}


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize("case", BAD)
def test_bad_slides(tmp_path, case):
    change, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        _read(tmp_path, _broken(change))
    assert "slide.h5ad" in str(caught.value)


@pytest.mark.filterwarnings("ignore:Element .* was written without encoding metadata")
def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.h5ad: no such file"):
        h5ad.read(tmp_path / "none.h5ad")
    (tmp_path / "empty.h5ad").touch()
    _adata().write_h5ad(tmp_path / "whole.h5ad")
    whole = (tmp_path / "whole.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.h5ad").write_text("not a table\n" * 50)
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["foo"] = 1
    with h5py.File(tmp_path / "whole.h5ad", "r+") as file:
        del file["obs"]["_index"]
    for name in ("empty", "cut", "text", "other"):
        with pytest.raises(InputError, match=rf"{name}\.h5ad: expected an AnnData file"):
            h5ad.read(tmp_path / f"{name}.h5ad")
    with pytest.raises(InputError, match=r"whole\.h5ad: expected the names of obs in _index"):
        h5ad.read(tmp_path / "whole.h5ad")
