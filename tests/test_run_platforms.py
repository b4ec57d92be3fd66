"""From folders of instruments to a predicted slide, by the command."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import platform_layouts as layouts
import pytest
import tiny

import stfm_jax as stfm
from stfm_jax.data.readers import spatial_data

FIELDS = {
    "methods": "mean,ridge",
    "encoder.name": "stain_texture",
    "encoder.patch_um": 100.0,
    "data.reader": "visium",
    "data.num_genes": 6,
}


@pytest.fixture(scope="module")
def visium(tmp_path_factory):
    """Three slides with images, trained on; and a workdir."""
    root = tmp_path_factory.mktemp("visium")
    for name in ("A", "B", "C"):
        slide = layouts.visium_slide(name)
        layouts.write_visium(root / "data" / name / "outs", slide)
        layouts.write_image(root / "data" / f"{name}.png", slide)
    assert tiny.command(*_arguments(root / "work", root / "data")) == 0
    return root


def _arguments(workdir, data, **fields):
    given = {name.replace(".", "__"): value for name, value in {**FIELDS, **fields}.items()}
    return tiny.arguments(workdir, data__dir=data, **given)


def _predict(root, capsys=None, **fields):
    out = root / "predicted" / "out.h5ad"
    fields = {"predict.output": out, **fields}
    code = tiny.command(*_arguments(root / "work", root / "data", **fields), "--mode=predict")
    return anndata.read_h5ad(out) if code == 0 else capsys.readouterr().err


def test_a_visium_folder_is_predicted_with_the_image_beside_it(visium, tmp_path, capsys):
    slide = layouts.visium_slide("D")
    layouts.write_visium(tmp_path / "D/outs", slide)
    image = layouts.write_image(tmp_path / "D/D_image.tif", slide)
    found = _predict(visium, **{"predict.input": tmp_path / "D"})
    assert set(found.obs_names) == set(slide.barcodes) and found.shape[1] == 6
    assert found.uns["spatial_unit"] == "pixel" and found.uns["encoder"] == "stain_texture_100um"
    assert "gene-wise Pearson" in capsys.readouterr().err
    image.rename(tmp_path / "elsewhere.tif")
    (visium / "predicted/out.h5ad").unlink()
    named = {"predict.input": tmp_path / "D/outs", "predict.image": tmp_path / "elsewhere.tif"}
    np.testing.assert_array_equal(_predict(visium, **named).X, found.X)


def test_a_visium_folder_without_an_image_says_what_to_give(visium, tmp_path, capsys):
    outs = layouts.write_visium(tmp_path / "D", layouts.visium_slide("D"))
    said = _predict(visium, capsys, **{"predict.input": outs})
    assert "error:" in said and "or the H&E image by --config.predict.image" in said


def test_bins_of_visium_hd_are_predicted(visium, tmp_path, capsys):
    slide = layouts.hd_slide(bin_um=16)
    outs = layouts.write_hd(tmp_path / "HD", slide, 16)
    layouts.write_image(outs / "microscope_image" / "he.tif", slide)
    fields = {"predict.input": outs, "predict.bin_um": 16.0}
    found = _predict(visium, **fields)
    assert set(found.obs_names) == set(slide.barcodes)
    assert "of 144 spots: gene-wise Pearson" in capsys.readouterr().err
    matrix = outs / "binned_outputs/square_016um/filtered_feature_bc_matrix.h5"
    layouts.write_h5(matrix, slide.subset(np.arange(100)))
    np.testing.assert_array_equal(_predict(visium, **fields).X, found.X)
    assert "of 100 spots: gene-wise Pearson" in capsys.readouterr().err
    model = stfm.load(visium / "work")
    again = model.predict(outs, image=outs / "microscope_image/he.tif", bin_um=16.0)
    np.testing.assert_array_equal(again.X, found.X)


def test_features_of_trident_are_predicted_at_their_patches(trained, tmp_path):
    """As the slide with the same features in its file, at the same places."""
    given = anndata.read_h5ad(trained.unseen)
    side = 64
    folder = tmp_path / f"features_{tiny.ENCODER}"
    folder.mkdir()
    with h5py.File(folder / "S.h5", "w") as file:
        file["features"] = given.obsm["features"]
        # Whole pixels of a hundredth of a micrometre.
        file["coords"] = np.round(given.obsm["spatial"] * 100 - side / 2).astype(np.int64)
        file["coords"].attrs.update({"patch_size": side, "patch_size_level0": side})
    outputs = []
    for name, fields in {
        "file": {"predict__input": str(trained.unseen)},
        "patches": {"predict__input": str(folder / "S.h5"), "predict__um_per_px": 0.01},
    }.items():
        fields |= {
            "predict__output": str(tmp_path / f"{name}.h5ad"),
            "predict__method": "ridge_smooth",
        }
        made = trained.config(**fields)
        assert tiny.run(made, trained.workdir, "predict") == 0
        outputs.append(anndata.read_h5ad(fields["predict__output"]))
    np.testing.assert_allclose(outputs[1].X, outputs[0].X, atol=1e-4)
    np.testing.assert_allclose(outputs[1].obsm["spatial_um"], given.obsm["spatial"], atol=0.01)


def test_a_prediction_as_spatialdata_is_read_back(trained, tmp_path, capfd):
    fields = {
        "predict__input": str(trained.unseen),
        "predict__output": str(tmp_path / "out.h5ad"),
        "predict__method": "ridge",
        "predict__spatialdata": True,
    }
    assert tiny.run(trained.config(**fields), trained.workdir, "predict") == 0
    written = anndata.read_h5ad(tmp_path / "out.h5ad")
    found = spatial_data.load(tmp_path / "out.zarr")
    np.testing.assert_array_equal(found.X.toarray(), written.X)
    np.testing.assert_array_equal(found.obsm["spatial"], written.obsm["spatial"])
    assert list(found.obs_names) == list(written.obs_names)
    assert tiny.run(trained.config(**fields), trained.workdir, "predict") == 0  # in its place
    np.testing.assert_array_equal(spatial_data.load(tmp_path / "out.zarr").X.toarray(), written.X)
    (tmp_path / "out.zarr" / ".zattrs").write_text("{}")  # no longer known to be ours
    before = tiny.contents(tmp_path)
    capfd.readouterr()
    assert tiny.run(trained.config(**fields), trained.workdir, "predict") == 2
    assert "out.zarr: the SpatialData would be written there" in capfd.readouterr().err
    assert tiny.contents(tmp_path) == before
