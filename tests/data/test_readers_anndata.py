"""AnnData as others leave it: zarr stores of both formats, and Visium slides of scanpy, squidpy."""

import shutil
import warnings

import anndata
import numpy as np
import pandas as pd
import platform_layouts as layouts
import pytest
import zarr
from ml_collections import ConfigDict
from real_tissue import platforms_root

from configs import base
from stfm_jax.data import datasets
from stfm_jax.data.readers import h5ad, inputs, zarr_store
from stfm_jax.errors import InputError

PLATFORMS = platforms_root()


def _scanpy(slide, diameter=65.0, array=True, **more):
    """As scanpy.read_visium leaves it: int64 (x, y), pictures, scale factors; no unit."""
    adata = anndata.AnnData(
        slide.counts,
        obs=pd.DataFrame(index=slide.barcodes),
        var=pd.DataFrame({"gene_ids": "ENSG"}, index=slide.genes),
        obsm={"spatial": np.round(slide.coords_in).astype(np.int64)},
    )
    if array:
        table = layouts.positions(slide).set_index("barcode").loc[slide.barcodes]
        adata.obs[["in_tissue", "array_row", "array_col"]] = table[
            ["in_tissue", "array_row", "array_col"]
        ]
    factors = {"spot_diameter_fullres": diameter / layouts.UM_PER_PX, "tissue_hires_scalef": 0.1}
    about = {
        "images": {"hires": np.zeros((4, 4, 3)), "lowres": np.zeros((2, 2, 3), np.float32)},
        "scalefactors": {**factors, **more},
        "metadata": {"chemistry_description": "Spatial 3' v1"},
    }
    adata.uns["spatial"] = {slide.name: about}
    return adata


@pytest.mark.parametrize("array", [True, False])
@pytest.mark.parametrize("diameter", [65.0, 55.0])
def test_what_scanpy_leaves_is_in_pixels_with_a_scale(tmp_path, array, diameter, caplog):
    slide = layouts.visium_slide()
    _scanpy(slide, diameter, array).write_h5ad(tmp_path / "a.h5ad")
    for found in (h5ad.read(tmp_path / "a.h5ad"), h5ad.read_to_predict(tmp_path / "a.h5ad")):
        assert found.spatial_unit == "pixel"
        assert found.um_per_px == pytest.approx(layouts.UM_PER_PX, rel=5e-3)
        np.testing.assert_array_equal(found.coords_in, np.round(slide.coords_in))
    assert not caplog.text


def test_the_diameter_is_taken_where_spots_are_some_of_a_slide(tmp_path, caplog):
    slide = layouts.visium_slide()
    some = slide.subset(np.arange(56).reshape(8, 7)[::2, ::2].ravel())
    _scanpy(some, array=False).write_h5ad(tmp_path / "a.h5ad")
    assert h5ad.read(tmp_path / "a.h5ad").um_per_px == pytest.approx(layouts.UM_PER_PX)
    assert "by the distance of neighbouring spots" in caplog.text


def test_other_sources_go_before_and_contradictions_are_said(tmp_path, caplog):
    adata = _scanpy(layouts.visium_slide(), microns_per_pixel=np.array([0.5]))
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert h5ad.read(tmp_path / "a.h5ad").um_per_px == 0.5  # exactly, as of Visium HD
    assert not caplog.text
    assert h5ad.read(tmp_path / "a.h5ad", um_per_px=0.25).um_per_px == pytest.approx(0.25)
    assert "0.25 um per pixel by um_per_px as given, which is taken, but 0.5" in caplog.text
    with pytest.raises(InputError, match=r"found 0\.0005; is it in millimetres"):
        h5ad.read(tmp_path / "a.h5ad", um_per_px=5e-4)
    adata.uns["spatial_unit"] = "um"
    adata.write_h5ad(tmp_path / "b.h5ad")
    assert h5ad.read(tmp_path / "b.h5ad").spatial_unit == "um"


def test_several_libraries_are_refused_where_a_scale_is_needed(tmp_path):
    adata = _scanpy(layouts.visium_slide())
    adata.uns["spatial"]["V2"] = adata.uns["spatial"]["V1"]
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(InputError, match=r"found 2 in uns\['spatial'\] \(V1, V2\)"):
        h5ad.read(tmp_path / "a.h5ad")


@pytest.mark.skipif(PLATFORMS is None, reason="no real files (set STFM_PLATFORMS)")
def test_a_real_crop_of_scanpy(caplog):
    """Its X is normalised: to predict it needs nothing, to train it says what it lacks."""
    path = PLATFORMS / "scanpy_h5ad/visium_mouse_brain_crop.h5ad"
    found = h5ad.read_to_predict(path)
    assert found.num_spots == 49 and found.spatial_unit == "pixel"
    assert found.um_per_px == pytest.approx(65 / 89.44476, rel=0.02) and not caplog.text
    with pytest.raises(InputError, match=r"non-negative integers .*layers\['counts'\]"):
        h5ad.read(path)


def _write_zarr(adata, path, version):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with anndata.settings.override(zarr_write_format=version):
            adata.write_zarr(path)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_stores_are_read_as_files_are(tmp_path, version):
    slide = layouts.visium_slide()
    adata = _scanpy(slide)
    adata.obsm["features"] = np.random.default_rng(0).normal(size=(56, 3)).astype(np.float32)
    adata.write_h5ad(tmp_path / "a.h5ad")
    _write_zarr(adata, tmp_path / "b.zarr", version)
    assert zarr.open_group(store=tmp_path / "b.zarr", mode="r").metadata.zarr_format == version
    shutil.make_archive(str(tmp_path / "c.zarr"), "zip", tmp_path / "b.zarr")
    shutil.copytree(tmp_path / "b.zarr", tmp_path / "no_suffix")
    expected, options = h5ad.read(tmp_path / "a.h5ad"), inputs.Options()
    for name in ("b.zarr", "c.zarr.zip", "no_suffix"):
        found = h5ad.read(tmp_path / name)
        assert found.name == name.split(".")[0]
        np.testing.assert_array_equal(found.coords_um, expected.coords_um)
        np.testing.assert_array_equal(found.counts.toarray(), slide.counts.toarray())
        given = inputs.read_to_predict(tmp_path / name, options)
        np.testing.assert_array_equal(np.asarray(given.features), adata.obsm["features"])
        measured = inputs.read_expression(
            tmp_path / name, options, slide.barcodes[::2], ["GENE4"], "log1p"
        )
        np.testing.assert_allclose(measured, np.log1p(slide.counts[::2, [4]].toarray()))


def test_a_folder_of_stores_and_files(tmp_path):
    for name, slide in (("A", layouts.visium_slide("A")), ("B", layouts.visium_slide("B"))):
        _write_zarr(_scanpy(slide), tmp_path / f"{name}.zarr", 2)
    _scanpy(layouts.visium_slide("C")).write_h5ad(tmp_path / "C.h5ad")
    (tmp_path / "._C.h5ad").write_bytes(b"left by a Mac")
    data = base.get_config().data
    data.update(ConfigDict({"reader": "anndata", "dir": str(tmp_path)}))
    assert list(datasets.load(data).slides) == ["A", "B", "C"]
    assert len(h5ad.read_folder_to_predict(tmp_path)) == 3
    _scanpy(layouts.visium_slide("C")).write_h5ad(tmp_path / "B.h5ad")
    with pytest.raises(InputError, match="two files of the slide 'B'"):
        datasets.load(data)


def test_bad_stores(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.zarr: no such store"):
        h5ad.read(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(InputError, match=r"empty\.zarr: expected a zarr store"):
        h5ad.read(tmp_path / "empty.zarr")
    with pytest.raises(InputError, match="expected a zarr store"):
        (tmp_path / "cut.zarr.zip").write_bytes(b"PK")
        h5ad.read(tmp_path / "cut.zarr.zip")
    zarr.open_group(store=tmp_path / "other.zarr", mode="w").create_group("tables")
    with pytest.raises(InputError, match=r"expected one table, found 0 \(none\)"):
        h5ad.read(tmp_path / "other.zarr")
    zarr.open_group(store=tmp_path / "image.zarr", mode="w").create_group("0")
    with pytest.raises(InputError, match=r"expected the AnnData of a slide .*found 0"):
        h5ad.read(tmp_path / "image.zarr")
    _write_zarr(_scanpy(layouts.visium_slide()), tmp_path / "bad.zarr", 2)
    for name in (".zmetadata", "obsm/spatial/.zarray"):
        (tmp_path / "bad.zarr" / name).write_text("{")
    with pytest.raises(InputError, match=r"bad\.zarr: expected a zarr store .*cannot be read"):
        zarr_store.load(tmp_path / "bad.zarr")


def test_a_matrix_stands_for_the_folder_that_it_lies_in(tmp_path):
    slide = layouts.visium_slide()
    outs = layouts.write_visium(tmp_path / "V1/outs", slide)
    found = inputs.read_to_predict(outs / "filtered_feature_bc_matrix.h5", inputs.Options())
    assert found.name == "V1" and set(found.barcodes) == set(slide.barcodes)
    layouts.write_h5(tmp_path / "lone/filtered_feature_bc_matrix.h5", slide)
    with pytest.raises(InputError, match=r"found filtered_feature_bc_matrix\.h5"):
        inputs.read_to_predict(tmp_path / "lone/filtered_feature_bc_matrix.h5", inputs.Options())
