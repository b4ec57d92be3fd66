"""SpatialData and LazySlide stores, written in their layout; by spatialdata itself in ecosystem."""

import struct
import warnings

import anndata
import numpy as np
import pandas as pd
import platform_layouts as layouts
import pytest
import slide_files
import zarr
from ml_collections import ConfigDict

from configs import base
from stfm_jax.data import datasets, embeddings
from stfm_jax.data.readers import h5ad, inputs, spatial_data
from stfm_jax.errors import InputError


def _point(x, y):
    return struct.pack("<BIdd", 1, 1, x, y)


def _ring(points):
    return struct.pack("<I", len(points)) + np.asarray(points, "<f8").tobytes()


def _polygon(points, holes=()):
    return struct.pack("<BII", 1, 3, 1 + len(holes)) + b"".join(map(_ring, (points, *holes)))


def _box(x, y, width, height):
    right, low = x + width, y + height
    return _polygon([(right, y), (right, low), (x, low), (x, y), (right, y)])


def _multi(*polygons):
    return struct.pack("<BII", 1, 6, len(polygons)) + b"".join(polygons)


def store(path, tables, shapes, version=3, scales=(), **attributes):
    """A store of format 0.1 (zarr 2) or 0.2 (zarr 3).

    Args:
      tables: (AnnData, region, instance key) by name.
      shapes: (index, geometry) by name.
    """
    root = zarr.open_group(store=path, mode="w", zarr_format=version)
    said = {"version": "0.2" if version == 3 else "0.1"}
    root.attrs.update({"spatialdata_attrs": said, **attributes})
    root.create_group("tables")
    steps = [{"type": "scale", "scale": [s, s], "output": {"name": "global"}} for s in scales]
    for name, (index, geometry) in shapes.items():
        group = root.require_group("shapes").create_group(name)
        group.attrs["coordinateTransformations"] = [{"type": "identity"}, *steps]
        frame = pd.DataFrame({"geometry": geometry}, index=index)
        frame.to_parquet(path / "shapes" / name / "shapes.parquet")
    for name, (adata, region, key) in tables.items():
        adata = adata.copy()
        keys = {"region": region, "region_key": "region", "instance_key": key}
        adata.uns["spatialdata_attrs"] = keys
        with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=version):
            warnings.simplefilter("ignore")
            adata.write_zarr(path / "tables" / name)
    return path


def _adata(slide, **obs):
    adata = anndata.AnnData(slide.counts, var=pd.DataFrame(index=slide.genes))
    adata.obs = pd.DataFrame({"spot_id": np.arange(slide.num_spots), **obs}, index=slide.barcodes)
    return adata


def _visium(path, slide, version=3):
    """As spatialdata-io's visium: circles in pixels, the array kept, shapes in another order."""
    table = layouts.positions(slide).set_index("barcode").loc[slide.barcodes]
    adata = _adata(slide, array_row=table["array_row"], array_col=table["array_col"])
    order = np.random.default_rng(0).permutation(slide.num_spots)
    points = order, [_point(*slide.coords_in[i]) for i in order]
    return store(path, {"table": (adata, slide.name, "spot_id")}, {slide.name: points}, version)


@pytest.mark.parametrize("version", [2, 3])
def test_visium_as_spatialdata_io_writes_it(tmp_path, version):
    slide = layouts.visium_slide()
    path = _visium(tmp_path / "V1.zarr", slide, version)
    for named in (path, path / "tables/table"):
        found = h5ad.read(named)
        assert found.name == "V1" and found.spatial_unit == "pixel"
        np.testing.assert_allclose(found.coords_in, slide.coords_in)
        np.testing.assert_array_equal(found.counts.toarray(), slide.counts.toarray())
        assert found.um_per_px == pytest.approx(layouts.UM_PER_PX, rel=1e-3)
    given = inputs.read_to_predict(path, inputs.Options(um_per_px=0.25))
    assert given.um_per_px == 0.25 and given.counts is None


def test_bins_of_visium_hd_are_named(tmp_path):
    slide = layouts.hd_slide()
    places = np.array([b.split("_")[2:] for b in slide.barcodes])
    array = {
        "array_row": places[:, 0].astype(int),
        "array_col": np.char.replace(places[:, 1], "-1", "").astype(int),
    }
    boxes = [_box(x - 8, y - 8, 16, 16) for x, y in slide.coords_in]
    shape = (np.arange(slide.num_spots), boxes)
    names = ("HD1_square_008um", "HD1_square_016um")
    tables = {
        name.removeprefix("HD1_"): (_adata(slide, **array), name, "spot_id") for name in names
    }
    path = store(tmp_path / "HD1.zarr", tables, dict.fromkeys(names, shape))
    with pytest.raises(InputError, match=r"found 2 .*name one, as .*HD1\.zarr/tables/square_008um"):
        h5ad.read(path)
    found = h5ad.read(path / "tables/square_008um")
    assert found.um_per_px == pytest.approx(layouts.UM_PER_PX)
    np.testing.assert_allclose(found.coords_in, slide.coords_in)
    assert h5ad.read(path / "tables/square_016um").um_per_px == pytest.approx(2 * layouts.UM_PER_PX)
    with pytest.raises(InputError, match=r"has no tables/none; it has tables/square_008um"):
        h5ad.read(path / "tables/none")


def test_cells_of_xenium_are_in_micrometres(tmp_path):
    """Polygons of any number of points, two of several parts, one with a hole."""
    slide = layouts.xenium_slide(n=12)
    rng = np.random.default_rng(0)
    cells = []
    for i, (x, y) in enumerate(slide.coords_um):
        angle = np.linspace(0, 2 * np.pi, 6 + i)
        ring = np.column_stack([x + 4 * np.cos(angle), y + 3 * np.sin(angle)])
        holes = [ring[::-1] * 0.01 + np.array([x, y]) * 0.99] if i == 3 else []
        cells.append(_polygon(ring, holes))
    cells[5] = _multi(_box(10, 20, 4, 4), _box(14, 20, 4, 4))
    expected = slide.coords_um.copy()
    expected[5] = 14, 22
    order = rng.permutation(12)
    shape = slide.barcodes[order], [cells[i] for i in order]
    adata = _adata(slide, cell_id=slide.barcodes)
    tables = {"table": (adata, "cell_boundaries", "cell_id")}
    path = store(tmp_path / "X.zarr", tables, {"cell_boundaries": shape}, scales=(1 / 0.2125,))
    found = h5ad.read(path)
    assert found.spatial_unit == "um"
    np.testing.assert_allclose(found.coords_um, expected, atol=1e-9)


def test_other_stores_ask_for_the_unit(tmp_path):
    slide = layouts.visium_slide()
    shape = np.arange(56), [_point(*xy) for xy in slide.coords_in]
    path = store(tmp_path / "a.zarr", {"t": (_adata(slide), "s", "spot_id")}, {"s": shape})
    with pytest.raises(InputError, match="the unit of obsm"):
        h5ad.read(path)
    assert h5ad.read(path, spatial_unit="pixel", um_per_px=0.5).um_per_px == 0.5


def test_circles_of_early_versions(tmp_path):
    slide = layouts.visium_slide()
    path = _visium(tmp_path / "V1.zarr", slide, 2)
    (path / "shapes/V1/shapes.parquet").unlink()
    group = zarr.open_group(store=path / "shapes/V1", mode="r+")
    for name, values in {
        "coords": slide.coords_in,
        "Index": np.arange(56),
        "radius": np.full(56, 5.0),
    }.items():
        group.create_array(name, data=values)
    np.testing.assert_allclose(h5ad.read(path).coords_in, slide.coords_in)


def test_a_data_set_of_stores(tmp_path):
    for name in ("A", "B"):
        _visium(tmp_path / f"{name}.zarr", layouts.visium_slide(name))
    data = base.get_config().data
    data.update(ConfigDict({"reader": "anndata", "dir": str(tmp_path)}))
    assert list(datasets.load(data).slides) == ["A", "B"]


def _lazyslide(path, second=False):
    """Tiles of 300 x 300 pixels with features of one model, or two."""
    slide = layouts.visium_slide()
    corners = np.round(slide.coords_in) - 150
    shape = np.arange(56), [_box(x, y, 300, 300) for x, y in corners]
    features = np.random.default_rng(0).normal(size=(56, 4)).astype(np.float32)
    adata = anndata.AnnData(features, obs=pd.DataFrame({"tile_id": np.arange(56)}))
    adata.obs_names = adata.obs_names.astype(str)
    names = ("uni_tiles", "conch_tiles") if second else ("uni_tiles",)
    spec = {"tiles": {"height": 150, "width": 150, "base_downsample": 2.0}}
    store(
        path,
        dict.fromkeys(names, (adata, "tiles", "tile_id")),
        {"tiles": shape},
        tile_spec=spec,
        slide_properties={"mpp": 0.25},
    )
    return slide, corners, features


def test_tiles_of_lazyslide_are_an_input_and_embeddings(tmp_path):
    slide, corners, features = _lazyslide(tmp_path / "s.zarr")
    found = inputs.read_to_predict(tmp_path / "s.zarr", inputs.Options())
    np.testing.assert_array_equal(np.asarray(found.features), features)
    np.testing.assert_allclose(found.coords_in, corners + 150)
    assert (found.encoder, found.um_per_px, found.name) == ("uni", 0.25, "s")
    (stored,) = inputs.open_embeddings(tmp_path / "s.zarr", None)
    assert stored.side_px == 300
    np.testing.assert_array_equal(embeddings.align(slide, stored).features, features)


def test_several_models_of_lazyslide_are_named(tmp_path):
    _lazyslide(tmp_path / "s.zarr", second=True)
    with pytest.raises(InputError, match=r"name one, as .*s\.zarr/tables/conch_tiles"):
        inputs.read_to_predict(tmp_path / "s.zarr", inputs.Options())
    one = inputs.read_to_predict(tmp_path / "s.zarr/tables/uni_tiles", inputs.Options())
    assert one.encoder == "uni"


def test_bad_stores(tmp_path):
    slide = layouts.visium_slide()
    path = _visium(tmp_path / "a.zarr", slide)
    parquet = path / "shapes/V1/shapes.parquet"
    frame = pd.read_parquet(parquet)
    frame.iloc[:50].to_parquet(parquet)
    with pytest.raises(InputError, match=r"6 of its 56 rows .* none of the shapes 'V1'"):
        h5ad.read(path)
    frame.assign(geometry=[struct.pack("<BI", 1, 2)] * 56).to_parquet(parquet)
    with pytest.raises(InputError, match=r"expected points or polygons .*found others \(kind 2\)"):
        h5ad.read(path)
    frame.assign(geometry=[b[:9] for b in frame["geometry"]]).to_parquet(parquet)
    with pytest.raises(InputError, match="expected points or polygons"):
        h5ad.read(path)
    frame.rename(columns={"geometry": "points"}).to_parquet(parquet)
    with pytest.raises(InputError, match="expected the column geometry in WKB"):
        h5ad.read(path)
    parquet.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="a parquet table of shapes, but"):
        h5ad.read(path)
    parquet.unlink()
    with pytest.raises(InputError, match=r"expected shapes\.parquet, or the circles"):
        h5ad.read(path)
    two = _adata(slide)
    shape = {"s": (np.arange(56), [_point(*xy) for xy in slide.coords_in])}
    with pytest.raises(InputError, match=r"rows of 2 regions \(s, t\)"):
        h5ad.read(store(tmp_path / "b.zarr", {"t": (two, ["s", "t"], "spot_id")}, shape))
    with pytest.raises(InputError, match=r"expected obs\['none'\]"):
        h5ad.read(store(tmp_path / "c.zarr", {"t": (two, "s", "none")}, shape))
    with pytest.raises(InputError, match="expected the shapes 'other', found s"):
        h5ad.read(store(tmp_path / "d.zarr", {"t": (two, "other", "spot_id")}, shape))
    assert not spatial_data.is_tiles(tmp_path / "d.zarr")


def _step(kind, values, system, axes):
    side = {"axes": [{"name": axis} for axis in axes]}
    return {"type": kind, kind: values, "input": side, "output": {**side, "name": system}}


@pytest.mark.parametrize("version", [2, 3])
def test_patches_are_of_the_finest_image_that_lies_in_a_system_of_the_shapes(
    tmp_path, version, caplog
):
    slide = layouts.visium_slide()
    path = _visium(tmp_path / "V1.zarr", slide, version)
    root = zarr.open_group(path, mode="r+")
    root.create_group("images")
    circles = root[f"shapes/{slide.name}"]
    circles.attrs["coordinateTransformations"] = [
        _step("scale", [0.5, 0.5], "half", "xy"), _step("scale", [3.0, 3.0], "elsewhere", "xy")
    ]  # fmt: skip
    x, y = np.ceil(slide.coords_in.max(axis=0)).astype(int) + 20
    picture = np.random.default_rng(0).integers(0, 255, (y, x, 3), dtype=np.uint8)
    back = _step("translation", [0.0, -2.0, -3.0], "half", "cyx")
    shrunk = _step("scale", [1.0, 0.5, 0.5], "", "cyx")
    sequence = {"type": "sequence", "transformations": [shrunk, back], "output": {"name": "half"}}
    write = slide_files.write_zarr_image
    write(path / "images" / "full", picture, [sequence], version)
    write(path / "images" / "hires", picture[::2, ::2], [_step("identity", None, "half", "cyx")],
          version)  # fmt: skip
    write(path / "images" / "finer", picture, [_step("scale", [1, 0.1, 0.1], "third", "cyx")],
          version)  # fmt: skip
    write(path / "images" / "stains", np.repeat(picture, 2, axis=-1)[..., :5], [shrunk], version)
    caplog.set_level("INFO", "stfm_jax")
    found = inputs.read_to_predict(path, inputs.Options(), look_for_image=True)
    assert "the image full of its store is taken" in caplog.text
    np.testing.assert_allclose(found.coords_in, slide.coords_in)
    np.testing.assert_allclose(found.patches.coords_px, slide.coords_in + np.array([6.0, 4.0]))
    assert found.patches.um_per_px == pytest.approx(layouts.UM_PER_PX, rel=1e-3)
    side = round(20 / layouts.UM_PER_PX)
    patch = found.patches.read(np.array([0]), side * found.patches.um_per_px)[0]
    assert patch.shape == (side, side, 3)
    corner = np.floor(slide.coords_in[0] + [6, 4] - side / 2 + 0.5).astype(int)
    window = picture[corner[1] : corner[1] + side, corner[0] : corner[0] + side]
    np.testing.assert_array_equal(patch, window)
    assert inputs.read_to_predict(path, inputs.Options()).patches is None


@pytest.mark.parametrize("unit, um", [("pixel", 0.5), ("um", 1.0)])
def test_an_image_that_is_coarser_than_the_places_has_larger_pixels(tmp_path, unit, um):
    """Places in units of `um`, four of them to a pixel of the image."""
    slide = layouts.visium_slide()
    path = _visium(tmp_path / "V1.zarr", slide)
    root = zarr.open_group(path, mode="r+")
    root.create_group("images")
    circles = root[f"shapes/{slide.name}"]
    circles.attrs["coordinateTransformations"] = [_step("scale", [0.25, 0.25], "V", "xy")]
    x, y = np.ceil(slide.coords_in.max(axis=0) / 4).astype(int) + 20
    steps = [_step("identity", None, "V", "cyx")]
    slide_files.write_zarr_image(path / "images/he", np.zeros((y, x, 3), np.uint8), steps)
    options = inputs.Options(spatial_unit=unit, um_per_px=0.5 if unit == "pixel" else None)
    found = inputs.read_to_predict(path, options, look_for_image=True)
    np.testing.assert_allclose(found.patches.coords_px, slide.coords_in / 4)
    assert found.patches.um_per_px == pytest.approx(4 * um)


def test_a_store_is_trained_on_by_its_image(tmp_path):
    for name in ("V1", "V2"):
        slide = layouts.visium_slide(name)
        x, y = np.ceil(slide.coords_in.max(axis=0)).astype(int) + 20
        path = _visium(tmp_path / f"{name}.zarr", slide)
        root = zarr.open_group(path, mode="r+")
        root.create_group("images")
        circles = root[f"shapes/{slide.name}"]
        circles.attrs["coordinateTransformations"] = [_step("identity", None, "V", "xy")]
        picture = np.zeros((y, x, 3), np.uint8)
        steps = [_step("identity", None, "V", "cyx")]
        slide_files.write_zarr_image(path / "images" / "he", picture, steps)
    data = base.get_config().data
    data.update({"reader": "anndata", "dir": str(tmp_path)})
    found = datasets.load(data)
    assert all(slide.patches.path.name == "he" for slide in found.slides.values())


def test_a_transformation_of_another_kind_is_named(tmp_path):
    path = _visium(tmp_path / "V1.zarr", layouts.visium_slide())
    group = zarr.open_group(path, mode="r+")
    group[f"shapes/{layouts.visium_slide().name}"].attrs["coordinateTransformations"] = [
        {"type": "bijection", "output": {"name": "global"}}
    ]
    group.create_group("images")
    with pytest.raises(InputError, match=r"V1\.zarr.*scale, translation.*found 'bijection'"):
        inputs.read_to_predict(path, inputs.Options(), look_for_image=True)
