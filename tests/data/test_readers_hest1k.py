"""HEST-1k, on a folder as released made from toy slides."""

import dataclasses
import json
import logging

import anndata
import h5py
import numpy as np
import pandas as pd
import platform_layouts as layouts
import pytest
from ml_collections import ConfigDict

from configs import base
from stfm_jax.data import datasets
from stfm_jax.data.readers import hest1k
from stfm_jax.errors import InputError

ABOUT = {  # technology, study, patient, OncoTree code
    "NCBI1": ("Visium", "A study", "Patient 1", "IDC"),
    "NCBI2": ("Visium", "A study", "patient 1 ", "IDC"),
    "TENX3": ("Xenium", "B study", None, "IDC"),
    "TENX4": ("Visium HD", "B study", "P9", "COAD"),
    "SPA5": ("Spatial Transcriptomics", "C study", "P1", "IDC"),
}
PITCH = {"NCBI1": 100, "NCBI2": 100, "TENX3": 100, "TENX4": 128, "SPA5": 150}


def _slide(name):
    """Spots of the technology's distance, in pixels of half a micrometre."""
    slide = layouts.visium_slide(name, rows=6, columns=5)
    pixels = slide.coords_in * PITCH[name] / 100
    return dataclasses.replace(slide, coords_in=pixels, coords_um=pixels * 0.5)


def _write(root, table=False, patches=True):
    (root / "st").mkdir(parents=True)
    (root / "metadata").mkdir()
    rows = []
    for name, (technology, study, patient, code) in ABOUT.items():
        slide = _slide(name)
        genes = np.array(slide.genes, dtype=object)
        if technology == "Xenium":
            genes[[2, 5]] = ["NegControlProbe_00042", "BLANK_0006"]
        adata = anndata.AnnData(
            slide.counts.toarray(),
            obs=pd.DataFrame({"in_tissue": 0}, index=slide.barcodes),
            var=pd.DataFrame(index=genes),
            obsm={"spatial": slide.coords_in},
        )
        factors = {"spot_diameter_fullres": 55 / 31.75, "tissue_downscaled_fullres_scalef": 0.1}
        adata.uns["spatial"] = {"ST": {"images": {}, "scalefactors": factors}}
        adata.write_h5ad(root / "st" / f"{name}.h5ad")
        said = {
            "id": name,
            "dataset_title": study,
            "patient": patient,
            "st_technology": technology,
            "oncotree_code": code,
            "inter_spot_dist": {"SPA5": 150.0, "TENX4": 2.0}.get(name),
            "pixel_size_um_embedded": 31.75,
            "pixel_size_um_estimated": 3.24 if name == "NCBI2" else 0.5,
        }
        rows.append(said)
        if not table:
            (root / "metadata" / f"{name}.json").write_text(json.dumps(said))
        if patches:
            _write_patches(root, slide.subset(np.arange(slide.num_spots - 3)))
    if table:
        pd.DataFrame(rows).to_csv(root / "HEST_v1_1_0.csv", index=False, encoding="utf-8-sig")


def _write_patches(root, slide):
    (root / "patches").mkdir(exist_ok=True)
    with h5py.File(root / "patches" / f"{slide.name}.h5", "w") as file:
        n = slide.num_spots
        file["img"] = np.random.default_rng(0).integers(0, 255, (n, 224, 224, 3), dtype=np.uint8)
        file["coords"] = (slide.coords_in - 112).astype(np.int64)
        file["barcode"] = slide.barcodes.astype("S").reshape(-1, 1)


def _load(root, **fields):
    data = base.get_config().data
    data.update(ConfigDict({"reader": "hest1k", "dir": str(root), **fields}))
    return datasets.load(data)


@pytest.mark.parametrize("table", [False, True])
def test_slides_scale_and_patients(tmp_path, table, caplog):
    _write(tmp_path, table)
    with caplog.at_level(logging.INFO, "stfm_jax"):
        found = _load(tmp_path).slides
    assert "1 of 5 slides do not tell their patient: studies stand for them" in caplog.text
    assert "3.24 by pixel_size_um_estimated" in caplog.text and "31.75" not in caplog.text
    assert {name: slide.patient for name, slide in found.items()} == {
        "NCBI1": "A study: patient 1",
        "NCBI2": "A study: patient 1",
        "SPA5": "C study: p1",
        "TENX3": "B study",
        "TENX4": "B study",
    }
    for name, slide in found.items():
        expected = _slide(name).subset(np.arange(27))  # spots that have a patch
        assert slide.um_per_px == pytest.approx(0.5, rel=1e-6)
        np.testing.assert_array_equal(slide.barcodes, expected.barcodes)
        np.testing.assert_allclose(slide.coords_um, expected.coords_um)
        assert slide.patches.read(np.array([0]), 112.0).shape == (1, 224, 224, 3)
    assert [g for g in _slide("TENX3").genes if g not in found["TENX3"].genes] == ["GENE2", "GENE5"]
    assert found["TENX3"].counts.shape == (27, 10)


def test_a_task_ids_and_the_image(tmp_path):
    _write(tmp_path)
    assert list(_load(tmp_path, task="idc").slides) == ["NCBI1", "NCBI2", "SPA5", "TENX3"]
    layouts.write_image(tmp_path / "wsis/NCBI1.tif", _slide("NCBI1"))
    found = _load(tmp_path, sections=("NCBI1", "TENX4")).slides
    assert found["NCBI1"].num_spots == 30  # an image has patches of all
    assert found["NCBI1"].patches.read(np.array([0]), 200.0).shape == (1, 400, 400, 3)
    assert _load(tmp_path, um_per_px=0.25).slides["SPA5"].um_per_px == 0.25


def test_without_metadata_a_scale_is_asked_for(tmp_path):
    _write(tmp_path)
    for path in (tmp_path / "metadata").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"nothing says how many .*--config\.data\.um_per_px"):
        _load(tmp_path)
    slides = _load(tmp_path, um_per_px=0.5).slides
    assert {slide.patient for slide in slides.values()} == {""}


@pytest.mark.parametrize("said", [0.5, "0.5", 1.5])
def test_the_estimated_size_is_taken_where_spots_have_no_known_distance(tmp_path, said):
    _write(tmp_path)
    path = tmp_path / "metadata" / "NCBI1.json"
    about = json.loads(path.read_text()) | {"st_technology": "New", "pixel_size_um_estimated": said}
    path.write_text(json.dumps(about))
    assert _load(tmp_path, sections=("NCBI1", "TENX4")).slides["NCBI1"].um_per_px == float(said)
    for nothing in (0, -0.5, "nan", "", None, "unknown", "inf"):
        path.write_text(json.dumps(about | {"pixel_size_um_estimated": nothing}))
        with pytest.raises(InputError, match="nothing says how many micrometres"):
            _load(tmp_path, sections=("NCBI1", "TENX4"))


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected st/<id>\.h5ad .*MahmoodLab/hest"):
        hest1k.slides(tmp_path)
    _write(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"st/NONE\.h5ad there, found 5 slides, such as NC"):
        _load(tmp_path, sections=("NONE",))
    with pytest.raises(InputError, match=r"OncoTree code 'SKCM'; they have COAD, IDC"):
        _load(tmp_path, task="SKCM")
    (tmp_path / "metadata/SPA5.json").write_text("{")
    with pytest.raises(InputError, match=r"SPA5\.json: expected a JSON object"):
        _load(tmp_path)
