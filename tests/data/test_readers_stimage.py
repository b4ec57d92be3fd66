"""STImage-1K4M, on a folder as released made from toy slides; and its places against her2st's."""

import gzip
import logging

import numpy as np
import pandas as pd
import platform_layouts as layouts
import pytest
from ml_collections import ConfigDict

from configs import base
from stfm_jax.data import datasets
from stfm_jax.data.readers import stimage
from stfm_jax.errors import InputError

ANDERSSON = "Human_Breast_Andersson_10142021_ST"
NAMES = {  # slide: technology, pmid
    f"{ANDERSSON}_A1": ("ST", "34650042"),
    f"{ANDERSSON}_B1": ("ST", "34650042"),
    "GSE144239_GSM4284316": ("ST", "32579974,38037084"),
    "GSE200000_GSM6+b.1": ("Visium", "38037084"),  # of the same article: one study
    "GSE300000_GSM7": ("Visium", ""),
}
UM_PER_PX = layouts.UM_PER_PX


def _pixels(name, technology):
    """Places (x, y) and names of spots; of the staggered array every other place is empty."""
    if technology == "Visium":
        slide = layouts.visium_slide(name)
        return slide.coords_in, slide.barcodes
    x, y = (each.ravel() for each in np.meshgrid(np.arange(5, 12), np.arange(3, 9), indexing="ij"))
    step = 200.0
    if name.startswith("GSE144239"):
        step, even = 150 / np.sqrt(2), (x + y) % 2 == 0
        x, y = x[even], y[even]
    pixels = np.column_stack([x, y]) * step / UM_PER_PX
    return pixels, np.array([f"{i}x{j}" for i, j in zip(x, y, strict=True)])


def _write(root, packed=False):
    rows, truth = [], {}
    for name, (technology, pmid) in NAMES.items():
        pixels, spots = _pixels(name, technology)
        rng = np.random.default_rng(list(name.encode()))
        counts = rng.poisson(2.0, (len(spots), 60))
        truth[name] = pixels, spots, counts
        full = [f"{name}_{spot}" for spot in spots]
        for folder in ("coord", "gene_exp", "image"):
            (root / technology / folder).mkdir(parents=True, exist_ok=True)
        coords = pd.DataFrame(
            {"yaxis": pixels[:, 1], "xaxis": pixels[:, 0], "r": 50 / UM_PER_PX}, index=full
        )
        coords.iloc[::-1].to_csv(root / technology / "coord" / f"{name}_coord.csv")
        genes = [f"GENE{i}" for i in range(60)]
        table = pd.DataFrame(counts, index=full, columns=genes)
        path = root / technology / "gene_exp" / f"{name}_count.csv"
        text = table.to_csv(quoting=2 if technology == "Visium" else 0)
        path.write_text(text)
        if packed:
            path.unlink()
            path.with_suffix(".csv.gz").write_bytes(gzip.compress(text.encode()))
        tissue = "skin" if name.startswith("GSE144239") else "breast"
        rows.append([name, "human", tissue, pmid, "True", technology])
    rows += [
        ["Mouse_Brain_10X_02212022_Visium", "mouse", "brain", "", "False", "Visium"],
        ["Human_Heart_10X_02212022_Visium", "human", "heart", "", "False", "Visium"],
        ["Human_Breast_10X_02212022_VisiumHD", "human", "breast", "", "True", "VisiumHD"],
        ["GSE999999_GSM1", "human", "breast", "1", "True", "Visium"],  # not downloaded
    ]
    (root / "meta").mkdir()
    columns = ["slide", "species", "tissue", "pmid", "involve_cancer", "tech"]
    pd.DataFrame(rows, columns=columns).to_csv(
        root / "meta/meta_all_gene02122025.csv", index=False, quoting=1
    )
    return truth


@pytest.mark.parametrize("packed", [False, True])
def test_slides_of_a_tissue(tmp_path, packed, caplog):
    truth = _write(tmp_path, packed)
    with caplog.at_level(logging.INFO, "stfm_jax"):
        found = stimage.slides(tmp_path, "Breast")
    assert "4 of 5 slides of Breast are there" in caplog.text
    assert list(found) == [name for name in NAMES if not name.startswith("GSE144239")]
    for name, (technology, study) in found.items():
        slide = stimage.read(tmp_path, name, technology, study)
        pixels, spots, counts = truth[name]
        np.testing.assert_array_equal(slide.barcodes, spots)
        np.testing.assert_array_equal(slide.counts.toarray(), counts)
        np.testing.assert_allclose(slide.coords_in, pixels)
        assert slide.um_per_px == pytest.approx(UM_PER_PX, rel=1e-3)
        assert slide.patient == study and slide.genes[0] == "GENE0"


def test_scale_of_the_staggered_array(tmp_path):
    truth = _write(tmp_path)
    ((name, about),) = stimage.slides(tmp_path, "skin").items()
    slide = stimage.read(tmp_path, name, *about)
    assert slide.um_per_px == pytest.approx(UM_PER_PX)
    assert slide.num_spots == len(truth[name][1]) == 21


def _data(root, task):
    data = base.get_config().data
    data.update(ConfigDict({"reader": "stimage", "dir": str(root), "task": task}))
    return data


def test_folds_leave_a_study_out(tmp_path):
    """Slides that share an article are one study, whichever tissue joins them."""
    _write(tmp_path)
    dataset = datasets.load(_data(tmp_path, "breast"))
    tests = {fold.test for fold in dataset.folds}
    assert tests == {
        (f"{ANDERSSON}_A1", f"{ANDERSSON}_B1"),
        ("GSE200000_GSM6+b.1",),
        ("GSE300000_GSM7",),
    }
    assert "studies stand for patients" in dataset.folds_from
    breast, skin = (stimage.slides(tmp_path, tissue) for tissue in ("breast", "skin"))
    assert skin["GSE144239_GSM4284316"][1] == breast["GSE200000_GSM6+b.1"][1]


def test_images_are_read_whatever_their_name_says(tmp_path):
    _write(tmp_path)
    name = f"{ANDERSSON}_A1"
    slide = stimage.read(tmp_path, name, "ST", "s")
    assert slide.patches is None
    made = layouts.write_image(tmp_path / "he.tif", slide)
    made.rename(tmp_path / f"ST/image/{name}.png")
    found = stimage.read(tmp_path, name, "ST", "s")
    assert found.patches.read(np.array([0]), 100.0).shape == (1, 200, 200, 3)


def _no_table(root):
    (root / "meta/meta_all_gene02122025.csv").unlink()


def _no_coords(root):
    (root / f"ST/coord/{ANDERSSON}_A1_coord.csv").unlink()


def _other_coords(root):
    path = root / f"ST/coord/{ANDERSSON}_A1_coord.csv"
    path.write_text(path.read_text().replace("_A1_", "_H1_"))


def _cut(root):
    path = root / f"ST/gene_exp/{ANDERSSON}_A1_count.csv"
    path.write_text(path.read_text()[:-20])


def _columns(root):
    path = root / "meta/meta_all_gene02122025.csv"
    pd.read_csv(path).drop(columns="tech").to_csv(path, index=False)


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (_no_table, FileNotFoundError, r"expected meta/meta_all_gene02122025\.csv .*jiawennnn"),
        (_columns, InputError, "expected the columns slide, .*tech is missing"),
        (_no_coords, FileNotFoundError, r"_A1_coord\.csv: no such file"),
        (_other_coords, InputError, "none of its 42 spots .*must be of the same slide"),
        (_cut, InputError, "spots x genes with commas between, but"),
    ],
)
def test_bad_folders(tmp_path, spoil, kind, message):
    _write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(kind, match=message):
        datasets.load(_data(tmp_path, "breast"))


def test_tissues_that_are_not_there(tmp_path):
    _write(tmp_path)
    with pytest.raises(
        InputError, match=r"no human slides .* 'lung' .*has breast \(6\), skin \(1\)"
    ):
        datasets.load(_data(tmp_path, "lung"))
    for technology in ("ST", "Visium"):
        for path in (tmp_path / technology / "gene_exp").iterdir():
            path.unlink()
    with pytest.raises(FileNotFoundError, match=r"for the 5 slides of breast, such as"):
        datasets.load(_data(tmp_path, "breast"))


def test_scale_of_the_example_of_the_repository():
    """Three of its spots: A1 of her2st, whose (pixel_x, pixel_y) are xaxis and yaxis."""
    spots = np.array(["10x13", "11x13", "10x14"])
    x, y = [1923.65, 2148.35, 1926.69], [2622.15, 2611.87, 2844.32]  # xaxis, yaxis
    pixels = np.column_stack([x, y])
    scale = stimage._um_per_px(spots, pixels, "ST", f"{ANDERSSON}_A1", "A1")
    assert scale == pytest.approx(50 / 54.328, rel=0.05)  # r is that of a spot of 100 um
