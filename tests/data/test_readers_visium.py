"""Visium and Visium HD folders, old and new, as released: the same slide out of each."""

import gzip
import logging
import shutil

import numpy as np
import pandas as pd
import platform_layouts as layouts
import pytest
from ml_collections import ConfigDict
from PIL import Image
from real_tissue import platforms_root

from configs import base
from stfm_jax.data import datasets
from stfm_jax.data.readers import folders, inputs, space_ranger, visium, visium_hd
from stfm_jax.errors import InputError

PLATFORMS = platforms_root()
needs_real = pytest.mark.skipif(PLATFORMS is None, reason="no real files (set STFM_PLATFORMS)")


def _same(found, slide, rows=slice(None), atol=0.5):
    """Of the same spots, in the matrix's order; pixels were rounded, and so was the pitch."""
    np.testing.assert_array_equal(found.barcodes, slide.barcodes[rows])
    np.testing.assert_array_equal(found.counts.toarray(), slide.counts[rows].toarray())
    np.testing.assert_array_equal(found.genes, slide.genes)
    np.testing.assert_allclose(found.coords_in, slide.coords_in[rows], atol=atol)
    np.testing.assert_allclose(found.coords_um, found.coords_in * found.um_per_px)
    assert found.spatial_unit == "pixel"
    assert found.um_per_px == pytest.approx(layouts.UM_PER_PX, rel=2e-3)


def _raw(folder, slide):
    """Raw counts alone, as tables."""
    outs = layouts.write_visium(folder, slide)
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    layouts.write_mtx(outs / "raw_feature_bc_matrix", slide)
    return outs


def _old_name_with_header(folder, slide):
    outs = layouts.write_visium(folder, slide, 2)
    spatial = outs / "spatial"
    (spatial / "tissue_positions.csv").rename(spatial / "tissue_positions_list.csv")
    return outs


def _flat_tables(folder, slide):
    """As in GEO: everything in one folder, with a prefix, gzipped."""
    layouts.write_visium(folder, slide, 1, "GSM1_", flat=True)
    (folder / "GSM1_filtered_feature_bc_matrix.h5").unlink()
    layouts.write_mtx(folder, slide, prefix="GSM1_")
    scale = folder / "GSM1_scalefactors_json.json"
    with gzip.open(f"{scale}.gz", "wb") as file:
        file.write(scale.read_bytes())
    scale.unlink()
    return folder


LAYOUTS = {
    "1": lambda folder, slide: layouts.write_visium(folder, slide, 1),
    "2": lambda folder, slide: layouts.write_visium(folder, slide, 2),
    "around outs": lambda f, slide: layouts.write_visium(f / "outs", slide, 2).parent,
    "download": lambda folder, slide: layouts.write_visium(folder, slide, 2, "V1_"),
    "flat": lambda folder, slide: layouts.write_visium(folder, slide, 1, "GSM1_V1_", flat=True),
    "flat tables": _flat_tables,
    "old name, header": _old_name_with_header,
    "raw": _raw,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_visium(tmp_path, layout, caplog):
    slide = layouts.visium_slide()
    folder = LAYOUTS[layout](tmp_path / "V1", slide)
    assert visium.is_one(folder) and not visium_hd.is_one(folder)
    with caplog.at_level(logging.WARNING, "stfm_jax"):
        _same(visium.read(folder, "V1"), slide)
        bare = visium.read(folder, "V1", counts=False)
    assert not caplog.text
    assert bare.counts is None and set(bare.barcodes) == set(slide.barcodes)


def test_spots_without_counts_are_left_out_to_train_and_predicted(tmp_path, caplog):
    slide = layouts.visium_slide()
    outs = layouts.write_visium(tmp_path / "V1", slide)
    layouts.write_h5(outs / "filtered_feature_bc_matrix.h5", slide.subset(np.arange(5, 50)))
    with caplog.at_level(logging.INFO, "stfm_jax"):
        _same(visium.read(outs, "V1"), slide, slice(5, 50))
    assert "11 of 56 spots in the tissue have no counts" in caplog.text
    assert visium.read(outs, "V1", counts=False).num_spots == 56


@pytest.mark.parametrize(("columns", "turn"), [([4, 5], "mirrored"), ([5, 4], "turned")])
def test_images_may_be_turned_and_mirrored(tmp_path, columns, turn):
    slide = layouts.visium_slide()
    outs = layouts.write_visium(tmp_path, slide)
    path = outs / "spatial/tissue_positions.csv"
    table = pd.read_csv(path)
    values = table[["pxl_row_in_fullres", "pxl_col_in_fullres"]].to_numpy()
    if turn == "turned":
        values = np.column_stack([values[:, 1], 9000 - values[:, 0]])
    else:
        values = np.column_stack([values[:, 0], 9000 - values[:, 1]])
    table[["pxl_row_in_fullres", "pxl_col_in_fullres"]] = values
    table.to_csv(path, index=False)
    found = visium.read(outs, "V1")
    assert found.um_per_px == pytest.approx(layouts.UM_PER_PX, rel=2e-3)


def test_scales_that_contradict_the_pitch_are_said(tmp_path, caplog):
    slide = layouts.visium_slide()
    outs = layouts.write_visium(tmp_path, slide)
    for diameter, said in ((65, False), (55, False), (130, True)):
        layouts.write_scalefactors(
            outs / "spatial/scalefactors_json.json", spot_diameter_fullres=diameter / 0.5
        )
        caplog.clear()
        found = visium.read(outs, "V1")
        assert found.um_per_px == pytest.approx(0.5, rel=2e-3)
        assert bool(caplog.text) is said
    assert "is taken, but 0.25 by spot_diameter_fullres" in caplog.text
    (outs / "spatial/scalefactors_json.json").unlink()
    caplog.clear()
    given = visium.read(outs, "V1", um_per_px=0.25)
    assert given.um_per_px == 0.25
    assert "0.25 um per pixel by --config.data.um_per_px, which is taken, but 0.5" in caplog.text


def _no_spots(outs):
    path = outs / "spatial/tissue_positions.csv"
    pd.read_csv(path).assign(in_tissue=0).to_csv(path, index=False)


def _text(outs):
    path = outs / "spatial/tissue_positions.csv"
    pd.read_csv(path).assign(array_row="x").to_csv(path, index=False)


def _columns(outs):
    path = outs / "spatial/tissue_positions.csv"
    pd.read_csv(path).drop(columns="in_tissue").to_csv(path, index=False)


def _shuffled(outs):
    path = outs / "spatial/tissue_positions.csv"
    table = pd.read_csv(path)
    order = np.random.default_rng(0).permutation(len(table))
    table["pxl_row_in_fullres"] = table["pxl_row_in_fullres"].to_numpy()[order]
    table.to_csv(path, index=False)


def _other_run(outs):
    slide = layouts.visium_slide()
    barcodes = np.char.replace(slide.barcodes, "-1", "-2")
    other = layouts.visium_slide("V2").subset(np.arange(5))
    object.__setattr__(other, "barcodes", barcodes[:5])
    layouts.write_h5(outs / "filtered_feature_bc_matrix.h5", other)


def _two(outs):
    spatial = outs / "spatial"
    shutil.copy(spatial / "tissue_positions.csv", spatial / "B_tissue_positions.csv")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_spots, "puts no spot into the tissue"),
        (_text, "expected numbers in the columns array_row, .*found others in 56 of 56"),
        (_columns, "tissue_positions.csv: expected the columns barcode.*in_tissue is missing"),
        (_shuffled, "pixel coordinates must follow array_row, array_col"),
        (_other_run, "none of the 5 barcodes of .*aggregated counts have other barcodes"),
        (_two, "expected one capture area, found the positions of 2"),
        (lambda o: (o / "spatial/tissue_positions.csv").write_text(""), "empty or damaged"),
        (lambda o: (o / "spatial/scalefactors_json.json").write_text("[1"), "a JSON object, but"),
    ],
)
def test_bad_visium(tmp_path, spoil, message):
    outs = layouts.write_visium(tmp_path, layouts.visium_slide())
    spoil(outs)
    with pytest.raises(InputError, match=message):
        visium.read(outs, "V1")


def test_aggregated_runs_and_missing_counts_say_what_to_do(tmp_path):
    slide = layouts.visium_slide()
    outs = tmp_path / "outs"
    for library in ("V1", "V2"):
        layouts.write_scalefactors(outs / "spatial" / library / "scalefactors_json.json")
    layouts.positions(slide).to_csv(outs / "aggr_tissue_positions.csv", index=False)
    (outs / "aggregation.csv").write_text("library_id,molecule_h5\nV1,a\nV2,b\n")
    layouts.write_h5(outs / "filtered_feature_bc_matrix.h5", slide)
    for folder in (outs, tmp_path):
        with pytest.raises(InputError, match=r"aggregated run of 2 libraries \(V1, V2\).*`outs`"):
            visium.is_one(folder)
    lone = layouts.write_visium(tmp_path / "b", slide)
    (lone / "filtered_feature_bc_matrix.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected counts, filtered_feature_bc_matrix\.h5"):
        visium.read(lone, "V1")
    assert visium.read(lone, "V1", counts=False).num_spots == 56
    with pytest.raises(
        InputError, match=r"with spatial/tissue_positions\.csv or tissue_positions_l"
    ):
        visium.read(tmp_path / "none", "V1")


@pytest.mark.parametrize("bins", [8, 16])
def test_visium_hd(tmp_path, bins, caplog):
    slide = layouts.hd_slide(bin_um=bins)
    outs = layouts.write_hd(tmp_path / "outs", slide, bins)
    layouts.write_hd(tmp_path / "outs", layouts.hd_slide(bin_um=2), 2)
    with caplog.at_level(logging.WARNING, "stfm_jax"):
        for folder in (outs, tmp_path, outs / "binned_outputs"):
            assert visium_hd.is_one(folder)
            _same(visium_hd.read(folder, "HD1", bins), slide, atol=1e-9)
        alone = outs / f"binned_outputs/square_{bins:03d}um"
        _same(visium_hd.read(alone, "HD1", 2.0), slide, atol=1e-9)  # itself, whatever is asked for
    assert not caplog.text
    assert visium_hd.read(outs, "HD1", bins, counts=False).num_spots == slide.num_spots
    with pytest.raises(InputError, match=rf"no bins of 4 um, but of 2, {bins}; .*data\.bin_um"):
        visium_hd.read(outs, "HD1", 4.0)


def test_visium_hd_of_space_ranger_4(tmp_path, caplog):
    slide = layouts.hd_slide()
    outs = layouts.write_hd(tmp_path / "outs", slide)
    cells = outs / "segmented_outputs"
    layouts.write_h5(cells / "filtered_feature_cell_matrix.h5", slide)
    with caplog.at_level(logging.INFO, "stfm_jax"):
        _same(visium_hd.read(outs, "HD1", 8.0), slide, atol=1e-9)
    assert "segmented_outputs is not read; bins of 8 um are" in caplog.text
    shutil.rmtree(outs / "binned_outputs")
    assert visium_hd.is_one(outs)
    with pytest.raises(InputError, match="segmented cells are not read; expected binned_outputs"):
        visium_hd.read(outs, "HD1", 8.0)


def test_visium_hd_whose_scale_contradicts_its_bins(tmp_path, caplog):
    outs = layouts.write_hd(tmp_path, layouts.hd_slide())
    path = outs / "binned_outputs/square_008um/spatial/scalefactors_json.json"
    layouts.write_scalefactors(path, microns_per_pixel=0.25, bin_size_um=8.0)
    assert visium_hd.read(outs, "HD1", 8.0).um_per_px == 0.25
    assert "but 0.5 by the distance of neighbouring bins" in caplog.text


def _config(root, reader, **fields):
    data = base.get_config().data
    data.update(ConfigDict({"reader": reader, "dir": str(root), **fields}))
    return data


def test_a_folder_of_slides_with_images_and_a_sheet(tmp_path, caplog):
    slides = [layouts.visium_slide(name) for name in ("A", "B")]
    layouts.write_visium(tmp_path / "A/outs", slides[0], 1)
    layouts.write_visium(tmp_path / "B", slides[1], 2, "B_")
    layouts.write_image(tmp_path / "A/A_image.tif", slides[0])
    layouts.write_image(tmp_path / "B.png", slides[1])
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden").mkdir()
    with caplog.at_level(logging.INFO, "stfm_jax"):
        found = datasets.load(_config(tmp_path, "visium"))
    assert list(found.slides) == ["A", "B"] and "folders that are no slide: notes" in caplog.text
    assert len(found.folds) == 2
    for slide, path in zip(slides, ("A/A_image.tif", "B.png"), strict=True):
        _same(found.slides[slide.name], slide)
        patch = found.slides[slide.name].patches.read(np.array([3]), 50.0)[0]
        x, y = np.floor(found.slides[slide.name].coords_in[3] - 50 + 0.5).astype(int)
        with Image.open(tmp_path / path) as image:
            expected = np.asarray(image)[y : y + 100, x : x + 100]
        np.testing.assert_array_equal(patch, expected)
    (tmp_path / "slides.csv").write_text(
        "slide,folder,image,patient,z_um,um_per_px\nS1,A,B.png,P1,16,\nS2,B,,P1, 32 ,0.5\n"
    )
    sheet = datasets.load(_config(tmp_path, "visium", folds="section"))
    one, two = sheet.all
    assert (one.name, one.patient, one.z_um, two.z_um) == ("S1", "P1", 16.0, 32.0)
    assert two.um_per_px == 0.5 and two.patches is not None
    assert one.patches.path == tmp_path / "B.png"


@pytest.mark.parametrize(
    ("sheet", "message"),
    [
        ("name\nA\n", "expected the columns slide and any of folder"),
        ("slide\nA\nA\n", "each once and without /"),
        ("slide\n../A\n", r"found '\.\./A'"),
        ("slide,z_um\nA,high\n", "z_um must be a number, found 'high'"),
        ("slide,folder\nA,none\n", r"none: expected spatial/tissue_positions\.csv"),
    ],
)
def test_bad_sheets(tmp_path, sheet, message):
    layouts.write_visium(tmp_path / "A", layouts.visium_slide())
    (tmp_path / "slides.csv").write_text(sheet)
    with pytest.raises(InputError, match=message):
        datasets.load(_config(tmp_path, "visium"))


def test_folders_that_are_none_or_of_two_images(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match=r"binned_outputs/square_008um.*found the folders a"):
        datasets.load(_config(tmp_path, "visium_hd"))
    with pytest.raises(
        InputError, match=r"one of: .*; binned.* \(visium_hd\); spatial/.* \(visium\)"
    ):
        inputs.read_to_predict(tmp_path, inputs.Options())
    slide = layouts.visium_slide()
    layouts.write_visium(tmp_path / "a", slide)
    for name in ("x.tif", "y.tif", "cytassist_image.tif"):
        layouts.write_image(tmp_path / "a" / name, slide)
    with pytest.raises(InputError, match=r"found 2 \(x\.tif, y\.tif\); leave one"):
        space_ranger.find_image(tmp_path / "a")


def test_a_folder_without_slides_names_six_of_what_is_there(tmp_path):
    for i in range(8):
        (tmp_path / f"f{i}").mkdir()
    with pytest.raises(InputError, match="found the folders f0, f1, f2, f3, f4, f5; name them in"):
        datasets.load(_config(tmp_path, "visium"))


def test_expression_of_an_input_is_that_of_its_counts(tmp_path):
    slide = layouts.hd_slide()
    outs = layouts.write_hd(tmp_path / "HD1/outs", slide)
    options = inputs.Options()
    genes = ["GENE3", "GENE1"]
    given = inputs.read_to_predict(outs, options)
    assert given.name == "HD1" and given.counts is None
    found = inputs.read_expression(outs, options, given.barcodes, genes, "log1p")
    rows = pd.Index(slide.barcodes).get_indexer(given.barcodes)
    np.testing.assert_allclose(found, np.log1p(slide.counts[rows][:, [3, 1]].toarray()))
    assert inputs.read_expression(outs, options, given.barcodes, ["NONE"], "log1p") is None
    layouts.write_h5(
        outs / "binned_outputs/square_008um/filtered_feature_bc_matrix.h5",
        slide.subset(np.arange(100)),
    )
    some = inputs.read_expression(outs, options, given.barcodes, genes, "log1p")
    np.testing.assert_array_equal(np.isnan(some).any(axis=1), rows >= 100)
    np.testing.assert_array_equal(some[rows < 100], found[rows < 100])
    layouts.write_hd(tmp_path / "HD1/outs", slide)
    np.testing.assert_array_equal(
        inputs.read_counted(outs, options).counts.toarray(), slide.counts.toarray()
    )
    assert folders.platform_of(tmp_path) is None


@needs_real
def test_real_visium():
    """Space Ranger 1.0.0; um per pixel by the pitch, as LAYOUTS of the platform says."""
    outs = PLATFORMS / "visium_1.0.0/outs"
    slide = visium.read(outs, "real")
    assert slide.counts.shape == (100, 100) and slide.counts.sum() == 932
    assert slide.um_per_px == pytest.approx(0.7253, abs=1e-4)
    assert visium.read(outs, "real", counts=False).num_spots == 4235
    table = pd.read_csv(outs / "spatial/tissue_positions_list.csv", header=None, index_col=0)
    np.testing.assert_array_equal(slide.coords_in, table.loc[slide.barcodes, [5, 4]])


@needs_real
def test_real_visium_hd(caplog):
    root = PLATFORMS / "visium_hd/layout_008_016"
    slide = visium_hd.read(root, "real", 16.0)
    assert slide.num_spots == 336 and slide.um_per_px == pytest.approx(0.27376, abs=1e-5)
    assert not caplog.text
    # The places of its bins of 8 um are those of the bins of 16.
    assert visium_hd.read(root, "real", 8.0).um_per_px == pytest.approx(0.27376, abs=1e-5)
    assert "0.1369 by the distance of neighbouring bins" in caplog.text
    two = visium_hd.read(PLATFORMS / "visium_hd/outs_002um", "real", 2.0, counts=False)
    assert two.num_spots == 10 and two.um_per_px == pytest.approx(0.27382, abs=1e-5)
