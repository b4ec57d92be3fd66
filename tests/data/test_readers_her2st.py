"""The her2st reader on small made-up folders of both layouts, and on the real tissue."""

import gzip

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from real_tissue import her2st_root

from stfm_jax.data.readers import her2st, pitch
from stfm_jax.errors import InputError

PITCH_PX, ANGLE = 40.0, 0.1
SPOTS = [(x, y) for x in range(3, 7) for y in range(5, 8)]
SELECTION = ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"]


def _pixels(x, y):
    c, s = PITCH_PX * np.cos(ANGLE), PITCH_PX * np.sin(ANGLE)
    return c * x - s * y + 60.0, s * x + c * y - 20.0


def _tables():
    """Selection of 12 spots, one not selected, one without counts; counts of a spot not listed."""
    rng = np.random.default_rng(0)
    new = [(x + rng.normal(0, 0.05), y + rng.normal(0, 0.05)) for x, y in SPOTS]
    rows = [[x, y, *n, *_pixels(*n), 1] for (x, y), n in zip(SPOTS, new, strict=True)]
    rows[4][-1] = 0
    selection = pd.DataFrame(rows, columns=SELECTION)
    barcodes = [f"{x}x{y}" for x, y in SPOTS if (x, y) != SPOTS[7]] + ["30x30"]
    values = rng.poisson(2.0, (len(barcodes), 5))
    counts = pd.DataFrame(values, index=barcodes, columns=["A", "B", "C", "D", "E"])
    return selection, counts.sample(frac=1, random_state=0)


def _flat(root, selection, counts, image=True):
    for name in ("ST-cnts", "ST-spotfiles", "ST-imgs"):
        (root / name).mkdir(parents=True)
    counts.to_csv(root / "ST-cnts" / "C2.tsv.gz", sep="\t")
    selection.to_csv(root / "ST-spotfiles" / "C2_selection.tsv", sep="\t", index=False)
    if image:
        Image.new("RGB", (300, 400)).save(root / "ST-imgs" / "C2.jpg")
    return root


def _repository(root, selection, counts, image=True):
    base = root / "data"
    for name in ("ST-cnts", "ST-spotfiles", "ST-imgs/C/C2"):
        (base / name).mkdir(parents=True)
    counts.to_csv(base / "ST-cnts" / "C2.tsv", sep="\t")
    selection.to_csv(base / "ST-spotfiles" / "C2_selection.tsv", sep="\t", index=False)
    if image:
        Image.new("RGB", (300, 400)).save(base / "ST-imgs" / "C" / "C2" / "5714_HE_BT.jpg")
    return root


@pytest.mark.parametrize("layout", [_flat, _repository])
def test_both_layouts(tmp_path, layout):
    selection, counts = _tables()
    root = layout(tmp_path, selection, counts)
    assert her2st.sections(root) == ["C2"]
    slide = her2st.read(root, "C2")
    kept = [i for i in range(12) if i not in (4, 7)]
    barcodes = [f"{x}x{y}" for x, y in np.array(SPOTS)[kept]]
    np.testing.assert_array_equal(slide.barcodes, barcodes)
    np.testing.assert_array_equal(slide.counts.toarray(), counts.loc[barcodes].to_numpy())
    np.testing.assert_array_equal(slide.genes, list("ABCDE"))
    np.testing.assert_allclose(slide.coords_in, selection.loc[kept, ["pixel_x", "pixel_y"]])
    np.testing.assert_allclose(slide.coords_um, slide.coords_in * 200 / PITCH_PX, rtol=1e-9)
    assert (slide.spatial_unit, slide.patient, slide.section) == ("pixel", "C", "C2")
    assert slide.z_um == 32.0
    assert slide.patches.read([0, 1], 100.0).shape == (2, 20, 20, 3)
    assert slide.patches.um_per_px == pytest.approx(200 / PITCH_PX)


@pytest.mark.parametrize("folder", ["ST-pat", "data/ST-pat/lbl"])
def test_a_pathologists_labels_are_those_of_the_spots(tmp_path, folder):
    """By rounded places; a header among the rows, spots without a row, and one left undecided."""
    layout = _repository if folder.startswith("data") else _flat
    root = layout(tmp_path, *_tables(), image=False)
    assert her2st.read(root, "C2").domains is None
    rows = [["n", x + 0.1, y - 0.2, 1.0, 2.0, f"region {x}"] for x, y in SPOTS[1:]]
    rows[5][-1] = "undetermined"
    columns = ["Row.names", "x", "y", "pixel_x", "pixel_y", "label"]
    table = pd.DataFrame([rows[0], columns, *rows[1:]], columns=columns)
    path = root / folder / "C2_labeled_coordinates.tsv"
    path.parent.mkdir(parents=True)
    table.to_csv(path, sep="\t", index=False)
    slide = her2st.read(root, "C2")
    expected = {f"{x}x{y}": f"region {x}" for x, y in SPOTS[1:]}
    expected |= dict.fromkeys((f"{x}x{y}" for x, y in (SPOTS[0], SPOTS[6])), "")
    assert list(slide.domains) == [expected[barcode] for barcode in slide.barcodes]
    assert list(slide.subset(np.array([3, 1])).domains) == list(slide.domains[[3, 1]])
    table.rename(columns={"label": "labels"}).to_csv(path, sep="\t", index=False)
    with pytest.raises(InputError, match=r"expected the columns x, y, label, found Row.names, x"):
        her2st.read(root, "C2")


def test_spacing_and_no_image(tmp_path):
    slide = her2st.read(_flat(tmp_path, *_tables(), image=False), "C2", spacing_um=10.0)
    assert slide.patches is None and slide.z_um == 20.0


def test_pitch_is_that_of_a_similarity_transform():
    array = np.random.default_rng(0).uniform(0, 30, (50, 2))
    pixels = np.stack(_pixels(*array.T), axis=1)
    noisy = pixels + np.random.default_rng(1).normal(0, 3.0, pixels.shape)
    assert pitch.similarity(array, pixels, "C2", "new_x, new_y")[0] == pytest.approx(PITCH_PX)
    assert pitch.similarity(array, noisy, "C2", "new_x, new_y")[0] == pytest.approx(
        PITCH_PX, rel=3e-3
    )
    with pytest.raises(InputError, match="C2: pixel coordinates must follow"):
        pitch.similarity(array, pixels[::-1], "C2", "new_x, new_y")
    with pytest.raises(InputError, match="must follow"):
        pitch.similarity(array[:1], pixels[:1], "C2", "new_x, new_y")


def test_duplicate_genes_are_summed(tmp_path):
    selection, counts = _tables()
    root = _flat(tmp_path, selection, counts.set_axis(["A", "B", "A", "D", "B"], axis=1))
    slide = her2st.read(root, "C2")
    np.testing.assert_array_equal(slide.genes, ["A", "B", "D"])
    np.testing.assert_array_equal(
        slide.counts[:, 0].toarray()[:, 0], counts.loc[slide.barcodes, ["A", "C"]].sum(axis=1)
    )


def _shift_image(selection, counts):
    selection["pixel_x"] += 1000
    return "10 of 10 spots lie outside the image of 300 x 400"


def _swap(selection, counts):
    selection["pixel_x"] = selection["pixel_x"].to_numpy()[::-1]
    return "pixel coordinates must follow new_x, new_y"


def _no_column(selection, counts):
    del selection["new_y"]
    return "C2_selection.tsv: expected the columns .*new_y is missing"


def _text_column(selection, counts):
    selection["pixel_y"] = "?"
    return "C2_selection.tsv: expected numbers"


def _other_spots(selection, counts):
    counts.index = [f"{name}9" for name in counts.index]
    return "none of its 12 spots .* is selected in C2_selection.tsv"


def _duplicate(selection, counts):
    counts.index = [counts.index[0], counts.index[0], *counts.index[2:]]
    return "1 spots have several rows"


def _fraction(selection, counts):
    counts["B"] = counts["B"] + 0.5
    return r"non-negative integers \(raw UMI counts\), found"


def _negative(selection, counts):
    counts["B"] = -1
    return "found -1"


def _text(selection, counts):
    counts["B"] = "many"
    return "C2.tsv.gz: expected a tab-separated table"


@pytest.mark.parametrize(
    "spoil",
    [
        *(_shift_image, _swap, _no_column, _text_column, _other_spots, _duplicate),
        *(_fraction, _negative, _text),
    ],
)
def test_bad_tables(tmp_path, spoil):
    selection, counts = _tables()
    message = spoil(selection, counts)
    with pytest.raises(InputError, match=message):
        her2st.read(_flat(tmp_path, selection, counts), "C2")


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder.*almaan/her2st"):
        her2st.sections(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"expected the folder ST-cnts"):
        her2st.read(tmp_path, "C2")
    root = _flat(tmp_path / "root", *_tables())
    with pytest.raises(FileNotFoundError, match=r"C9_selection\.tsv"):
        her2st.read(root, "C9")
    counts = root / "ST-cnts" / "C2.tsv.gz"
    whole = counts.read_bytes()
    spoiled = [b"", whole[: len(whole) // 2], b"text", gzip.compress(b""), gzip.compress(b"\tA\n")]
    for content in [*spoiled, gzip.compress(b"\tA\tB\n3x5\t1\t2\n3x6\t1\n")]:
        counts.write_bytes(content)
        with pytest.raises(InputError, match=r"C2\.tsv\.gz: expected a tab-separated table"):
            her2st.read(root, "C2")
    counts.write_bytes(whole)
    (root / "ST-imgs" / "C2.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"C2\.jpg.*empty or damaged"):
        her2st.read(root, "C2")
    (root / "ST-spotfiles" / "C2_selection.tsv").write_bytes(b"")
    with pytest.raises(InputError, match=r"C2_selection\.tsv: expected a tab-separated table"):
        her2st.read(root, "C2")
    (root / "ST-spotfiles" / "C2_selection.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="no section in common"):
        her2st.sections(root)


real = pytest.mark.skipif(her2st_root() is None, reason="her2st is not here")


@real
def test_real_section():
    slide = her2st.read(her2st_root(), "C2")
    assert slide.counts.shape == (187, 15706) and slide.counts.nnz < 0.5 * 187 * 15706
    assert 200 / slide.patches.um_per_px == pytest.approx(290.6, abs=0.5)
    between = np.linalg.norm(slide.coords_um[:, None] - slide.coords_um, axis=-1)
    nearest = np.sort(between, axis=1)[:, 1]
    assert 180 < np.median(nearest) < 200  # jitter makes the nearest nearer than the pitch


@real
def test_real_section_without_an_image():
    slide = her2st.read(her2st_root(), "D1")
    assert slide.patches is None and slide.num_spots == 306  # three have no row of counts


@pytest.mark.slow
@real
def test_all_real_sections():
    """Spots are those in both tables, by an independent reading."""
    root = her2st_root()
    assert len(her2st.sections(root)) == 14
    for name in her2st.sections(root):
        selection = pd.read_csv(root / "ST-spotfiles" / f"{name}_selection.tsv", sep="\t")
        selected = selection["x"].astype(str) + "x" + selection["y"].astype(str)
        counts = pd.read_csv(root / "ST-cnts" / f"{name}.tsv.gz", sep="\t", usecols=[0, 5, 900])
        counts = counts.set_index(counts.columns[0])
        slide = her2st.read(root, name)
        assert set(slide.barcodes) == set(selected) & set(counts.index)
        there = [list(slide.genes).index(gene) for gene in counts.columns]
        np.testing.assert_array_equal(
            slide.counts[:, there].toarray(), counts.loc[slide.barcodes].to_numpy()
        )
