"""A prediction as a SpatialData store beside the AnnData file, for whoever works with those.

Format 0.1 (zarr 2), which every version of spatialdata reads: the prediction is the table, spots
are circles in pixels or micrometres as they came in, in the coordinate system `global`.
"""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import zarr
from scipy.spatial import cKDTree

from stfm_jax.runtime import marks
from stfm_jax.runtime.files import atomic_folder

TABLE, SPOTS = "predicted", "spots"  # names of the elements
_REGION, _INSTANCE = "region", "spot_id"  # columns of obs
_WKB_POINT = np.dtype([("order", "u1"), ("kind", "<u4"), ("xy", "<f8", 2)])


def write(output: Path, path: Path) -> None:
    """Writes the store of a prediction, whole or not at all, in place of an earlier one.

    Args:
      output: the AnnData file, with `obsm['spatial']`.
      path: of the store.

    Raises:
      InputError: the disk is full.
    """
    adata = anndata.read_h5ad(output)
    with atomic_folder(path, replaced=True) as temporary:
        with anndata.settings.override(zarr_write_format=2), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Writing zarr v2")
            _write(adata, temporary)


def _write(adata: anndata.AnnData, folder: Path) -> None:
    adata.obs[_REGION] = pd.Categorical([SPOTS] * adata.n_obs)
    adata.obs[_INSTANCE] = adata.obs_names.astype(str)
    keys = {"region": SPOTS, "region_key": _REGION, "instance_key": _INSTANCE}
    adata.uns["spatialdata_attrs"] = keys
    root = zarr.open_group(store=folder, mode="w", zarr_format=2)
    root.attrs["spatialdata_attrs"] = {"version": "0.1"}
    root.attrs[marks.KEY] = marks.made_by()
    shapes = root.create_group("shapes").create_group(SPOTS)
    shapes.attrs.update(
        {
            "encoding-type": "ngff:shapes",
            "axes": ["x", "y"],
            "coordinateTransformations": [_identity()],
            "spatialdata_attrs": {"version": "0.2"},
        }
    )
    tables = root.create_group("tables")
    adata.write_zarr(folder / tables.name.strip("/") / TABLE)
    about = {"spatialdata-encoding-type": "ngff:regions_table", "version": "0.1", **keys}
    zarr.open_group(store=folder / "tables" / TABLE, mode="r+").attrs.update(about)
    zarr.consolidate_metadata(str(folder), zarr_format=2)
    _write_circles(adata, folder / "shapes" / SPOTS / "shapes.parquet")  # no part of zarr


def _identity() -> dict:
    axes = [{"name": name, "type": "space", "unit": "unit"} for name in "xy"]
    return {
        "type": "identity",
        "input": {"name": "xy", "axes": axes},
        "output": {"name": "global", "axes": axes},
    }


def _write_circles(adata: anndata.AnnData, path: Path) -> None:
    """Spots as circles that touch, in the format that geopandas reads."""
    coords = np.asarray(adata.obsm["spatial"], np.float64)
    apart = 1.0 if len(coords) < 2 else np.median(cKDTree(coords).query(coords, k=2)[0][:, 1])
    points = np.empty(len(coords), _WKB_POINT)
    points["order"], points["kind"], points["xy"] = 1, 1, coords
    size = struct.calcsize("<BIdd")
    data = points.tobytes()
    frame = pd.DataFrame(
        {
            "geometry": [data[i : i + size] for i in range(0, len(data), size)],
            "radius": np.full(len(coords), apart / 2),
        },
        index=adata.obs_names.astype(str),
    )
    table = pa.Table.from_pandas(frame)
    geometry = {"encoding": "WKB", "crs": None, "geometry_types": ["Point"]}
    geo = {"version": "1.0.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    metadata = {**(table.schema.metadata or {}), b"geo": json.dumps(geo).encode()}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)
