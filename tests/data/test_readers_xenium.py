"""Xenium bundles, old and new: cells and squares of cells, in micrometres and on the H&E."""

import dataclasses

import numpy as np
import pandas as pd
import platform_layouts as layouts
import pytest
from ml_collections import ConfigDict

from configs import base
from stfm_jax.data import datasets
from stfm_jax.data.readers import folders, inputs, xenium
from stfm_jax.errors import InputError

UM_PER_PX = 0.2125 * 1.25


def _expected_pixels(slide):
    dapi = np.column_stack([slide.coords_um / 0.2125, np.ones(slide.num_spots)])
    return np.linalg.solve(layouts.HE_TO_DAPI, dapi.T).T[:, :2]


def _numbered(slide):
    return dataclasses.replace(slide, barcodes=np.arange(1, slide.num_spots + 1).astype(str))


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_every_version(tmp_path, version):
    slide = layouts.xenium_slide()
    slide = _numbered(slide) if version == 1 else slide
    outs = layouts.write_xenium(tmp_path / "X1/outs", slide, version, alignment=False)
    for folder in (outs, tmp_path / "X1"):
        assert folders.platform_of(folder) is folders.PLATFORMS["xenium"]
        found = xenium.read(folder, "X1")
        np.testing.assert_array_equal(found.barcodes, slide.barcodes)
        np.testing.assert_array_equal(found.genes, slide.genes)  # no controls
        np.testing.assert_array_equal(found.counts.toarray(), slide.counts.toarray())
        np.testing.assert_allclose(found.coords_um, slide.coords_um)
        assert found.spatial_unit == "um"


def test_cells_in_another_order_are_joined_by_their_ids(tmp_path):
    slide = layouts.xenium_slide()
    outs = layouts.write_xenium(tmp_path, slide)
    table = pd.read_parquet(outs / "cells.parquet")
    table.sample(frac=1, random_state=0).to_parquet(outs / "cells.parquet", index=False)
    found = xenium.read(outs, "X1")
    np.testing.assert_array_equal(found.barcodes, slide.barcodes)
    np.testing.assert_allclose(found.coords_in, _expected_pixels(slide))


def test_places_on_the_he_follow_the_alignment(tmp_path, caplog):
    slide = layouts.xenium_slide()
    outs = layouts.write_xenium(tmp_path, slide)
    found = xenium.read(outs, "X1")
    np.testing.assert_allclose(found.coords_in, _expected_pixels(slide))
    assert found.um_per_px == pytest.approx(UM_PER_PX) and found.spatial_unit == "pixel"
    # Distances stay what they were.
    far = np.linalg.norm(found.coords_um[0] - found.coords_um[1])
    assert far == pytest.approx(np.linalg.norm(slide.coords_um[0] - slide.coords_um[1]))
    assert xenium.read(outs, "X1", um_per_px=0.5).um_per_px == 0.5
    assert "by --config.data.um_per_px, which is taken, but 0.2656 by the alignment" in caplog.text


def test_key_points_of_xenium_explorer(tmp_path):
    slide = layouts.xenium_slide()
    outs = layouts.write_xenium(tmp_path, slide, alignment=False)
    he = np.random.default_rng(0).uniform(0, 1000, (5, 2))
    dapi = (np.column_stack([he, np.ones(5)]) @ layouts.HE_TO_DAPI.T)[:, :2]
    columns = ["fixedX", "fixedY", "alignmentX", "alignmentY"]
    table = pd.DataFrame(np.column_stack([dapi, he]), columns=columns)
    table.to_csv(outs / "X1_keypoints.csv", index=False)
    np.testing.assert_allclose(xenium.read(outs, "X1").coords_in, _expected_pixels(slide))
    table.iloc[:2].to_csv(outs / "X1_keypoints.csv", index=False)
    with pytest.raises(InputError, match="three key points or more that lie on no line, found 2"):
        xenium.read(outs, "X1")


def test_cells_are_added_up_in_squares(tmp_path):
    slide = layouts.xenium_slide()
    outs = layouts.write_xenium(tmp_path, slide, alignment=False)
    found = xenium.read(outs, "X1", 50.0)
    assert 1 < found.num_spots < slide.num_spots
    square = np.floor(slide.coords_um / 50).astype(int)
    for i, barcode in enumerate(found.barcodes):
        column, row = map(int, barcode.split("x"))
        inside = (square == (column, row)).all(axis=1)
        np.testing.assert_array_equal(
            found.counts[i].toarray()[0], slide.counts[inside].sum(axis=0).A1
        )
        np.testing.assert_allclose(found.coords_um[i], (50 * column + 25, 50 * row + 25))
    assert found.counts.sum() == slide.counts.sum()


def _data(root, **fields):
    data = base.get_config().data
    data.update(ConfigDict({"reader": "xenium", "dir": str(root), **fields}))
    return data


def test_training_and_prediction_with_the_he(tmp_path):
    for name in ("A", "B"):
        slide = layouts.xenium_slide(name)
        outs = layouts.write_xenium(tmp_path / f"{name}_outs", slide, alignment=False)
        beside = tmp_path / f"{name}_he_imagealignment.csv"
        pd.DataFrame(layouts.HE_TO_DAPI).to_csv(beside, header=False, index=False)
        layouts.write_image(tmp_path / f"{name}_he_image.ome.tif", xenium.read(outs, name))
    found = datasets.load(_data(tmp_path, cells_um=100.0))
    assert list(found.slides) == ["A_outs", "B_outs"]
    assert found.slides["A_outs"].patches.read(np.array([0]), 50.0).shape == (1, 188, 188, 3)
    given = inputs.read_to_predict(tmp_path / "A_outs", inputs.Options(), look_for_image=True)
    assert given.num_spots == 60 and given.patches is not None and given.counts is None


def _no_cells(outs):
    (outs / "cells.parquet").unlink()


def _other_cells(outs):
    other = layouts.xenium_slide("X2")
    layouts.write_h5(outs / "cell_feature_matrix.h5", other)


def _no_column(outs):
    pd.DataFrame({"cell_id": ["a"]}).to_parquet(outs / "cells.parquet")


def _two(outs):
    for name in ("a", "b"):
        pd.DataFrame(np.eye(3)).to_csv(outs / f"{name}_matrix.csv", header=False, index=False)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_other_cells, r"names 60 of 60 cells that cells\.parquet has not.*one segmentation"),
        (_no_column, "expected cells with the columns cell_id, x_centroid, y_centroid, found 1"),
        (_two, r"expected one alignment of the H&E, found .*a_matrix\.csv, b_matrix\.csv"),
        (lambda o: (o / "cells.parquet").write_bytes(b"PAR1"), "parquet table of cells, but"),
        (lambda o: (o / "experiment.xenium").write_text('{"pixel_size": 0}'), "expected pixel_si"),
        (
            lambda o: (o / "X1_he_imagealignment.csv").write_text("1,0,0\n0,1,0\n"),
            "3 x 3 numbers whose last row is 0, 0, 1, or key points .*found 2 x 3",
        ),
    ],
)
def test_bad_bundles(tmp_path, spoil, message):
    outs = layouts.write_xenium(tmp_path, layouts.xenium_slide())
    spoil(outs)
    with pytest.raises(InputError, match=message):
        xenium.read(outs, "X1")


def test_missing_files_and_an_image_without_alignment(tmp_path):
    slide = layouts.xenium_slide()
    outs = layouts.write_xenium(tmp_path / "X1", slide, alignment=False)
    image = layouts.write_image(outs / "X1_he_image.ome.tif", slide)
    with pytest.raises(InputError, match=r"nothing says where in the image .*imagealignment\.csv"):
        datasets.load(_data(tmp_path), trained_on=False)
    image.unlink()
    (outs / "cell_feature_matrix.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected cell_feature_matrix\.h5 there"):
        xenium.read(outs, "X1")
    assert xenium.read(outs, "X1", counts=False).num_spots == 60
    _no_cells(outs)
    with pytest.raises(FileNotFoundError, match=r"cells\.parquet: no such file"):
        xenium.read(outs, "X1")
    with pytest.raises(InputError, match=r"expected experiment\.xenium, or cells\.parquet beside"):
        xenium.read(tmp_path / "none", "X1")
