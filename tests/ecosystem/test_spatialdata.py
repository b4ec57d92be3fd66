"""Stores of spatialdata are read, and it opens what we write."""

from __future__ import annotations

import anndata
import numpy as np
import optional
import pandas as pd
import platform_layouts as layouts
import pytest
import tiny

from stfm_jax.data.readers import h5ad, inputs

pytestmark = [
    pytest.mark.ecosystem,
    pytest.mark.filterwarnings("ignore"),
]
sd = optional.require("spatialdata", "test-ecosystem")


def _formats():
    from spatialdata._io.format import SpatialDataContainerFormatV01

    return {"newest": None, "0.1": SpatialDataContainerFormatV01()}


@pytest.mark.parametrize("version", ["newest", "0.1"])
def test_what_spatialdata_writes_is_read(tmp_path, version):
    from spatialdata.models import ShapesModel, TableModel

    slide = layouts.visium_slide()
    index = pd.Index(np.arange(slide.num_spots)[::-1])
    circles = ShapesModel.parse(slide.coords_in[::-1], geometry=0, radius=55.0, index=index)
    table = layouts.positions(slide).set_index("barcode").loc[slide.barcodes]
    obs = table[["array_row", "array_col"]].assign(
        region=pd.Categorical(["V1"] * slide.num_spots), spot_id=np.arange(slide.num_spots)
    )
    adata = anndata.AnnData(slide.counts, obs=obs, var=pd.DataFrame(index=slide.genes))
    keys = {"region": "V1", "region_key": "region", "instance_key": "spot_id"}
    made = sd.SpatialData(shapes={"V1": circles}, tables={"table": TableModel.parse(adata, **keys)})
    made.write(tmp_path / "V1.zarr", sdata_formats=_formats()[version])
    found = h5ad.read(tmp_path / "V1.zarr")
    np.testing.assert_allclose(found.coords_in, slide.coords_in)
    np.testing.assert_array_equal(found.counts.toarray(), slide.counts.toarray())
    assert found.um_per_px == pytest.approx(layouts.UM_PER_PX, rel=1e-3)


def test_images_lie_where_spatialdata_says(tmp_path):
    """Places in the image are those that its own transformations give."""
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import (
        Affine,
        Scale,
        Sequence,
        Translation,
        get_transformation,
    )

    slide = layouts.visium_slide()
    plane = {"axes": ("x", "y")}
    both = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}
    lies = {
        "finer": Sequence([Scale([0.5, 0.5], **plane), Translation([-5.0, -7.0], **plane)]),
        "turned": Affine([[0, 2, 3], [2, 0, 4], [0, 0, 1]], **both),
    }
    side = int(slide.coords_in.max() * 3) + 50
    picture = np.zeros((3, side, side), np.uint8)
    images = {
        name: Image2DModel.parse(picture, dims=("c", "y", "x"), transformations={"V": step})
        for name, step in lies.items()
    }
    index = pd.Index(np.arange(slide.num_spots))
    circles = ShapesModel.parse(
        slide.coords_in, geometry=0, radius=55.0, index=index,
        transformations={"V": Scale([1.2, 1.2], **plane)},
    )  # fmt: skip
    obs = pd.DataFrame(
        {"region": pd.Categorical(["V1"] * slide.num_spots), "spot_id": index.to_numpy()},
        index=slide.barcodes,
    )
    adata = anndata.AnnData(slide.counts, obs=obs, var=pd.DataFrame(index=slide.genes))
    keys = {"region": "V1", "region_key": "region", "instance_key": "spot_id"}
    tables = {"table": TableModel.parse(adata, **keys)}
    made = sd.SpatialData(images=images, shapes={"V1": circles}, tables=tables)
    made.write(tmp_path / "V1.zarr")
    options = inputs.Options(spatial_unit="pixel", um_per_px=0.5)
    found = inputs.read_to_predict(tmp_path / "V1.zarr", options, look_for_image=True)
    there = sd.read_zarr(tmp_path / "V1.zarr")
    wanted = there.transform_element_to_coordinate_system("V1", "V").geometry
    back = get_transformation(there["finer"], to_coordinate_system="V")
    back = np.linalg.inv(back.to_affine_matrix(("x", "y"), ("x", "y")))
    wanted = np.column_stack([wanted.x, wanted.y, np.ones(slide.num_spots)]) @ back.T
    assert found.patches.path.name == "finer"
    np.testing.assert_allclose(found.patches.coords_px, wanted[:, :2])
    assert found.patches.um_per_px == pytest.approx(0.5 * 0.5 / 1.2)


def test_spatialdata_opens_what_is_predicted(trained, tmp_path):
    fields = {
        "predict__input": str(trained.unseen),
        "predict__output": str(tmp_path / "out.h5ad"),
        "predict__spatialdata": True,
    }
    assert tiny.run(trained.config(**fields), trained.workdir, "predict") == 0
    written = anndata.read_h5ad(tmp_path / "out.h5ad")
    found = sd.read_zarr(tmp_path / "out.zarr")
    np.testing.assert_array_equal(found["predicted"].X, written.X)
    np.testing.assert_array_equal(found["predicted"].layers["std"], written.layers["std"])
    spots, rows = sd.match_element_to_table(found, "spots", "predicted")
    centres = spots["spots"].geometry
    np.testing.assert_allclose(np.column_stack([centres.x, centres.y]), written.obsm["spatial"])
    assert list(rows.obs_names) == list(written.obs_names)
