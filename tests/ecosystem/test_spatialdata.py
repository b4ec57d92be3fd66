"""Stores of spatialdata are read, and it opens what we write."""

from __future__ import annotations

import anndata
import numpy as np
import optional
import pandas as pd
import platform_layouts as layouts
import pytest
import tiny

from stfm_jax.data.readers import h5ad

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
