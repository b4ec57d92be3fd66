"""The HEST-bench reader, on a folder in its layout made from toy slides and from real tissue."""

import json
import logging

import anndata
import h5py
import numpy as np
import pytest
from hest_layout import toy_slide, write_embeddings, write_task
from real_tissue import her2st_root

from stfm_jax.data import embeddings
from stfm_jax.data.panel import find_genes
from stfm_jax.data.readers import her2st, hest
from stfm_jax.errors import InputError

PANEL = ["GENE3", "GENE1", "GENE7"]


@pytest.fixture
def bench(tmp_path):
    slides = [toy_slide(name) for name in ("INT1", "INT2", "TENX95")]
    write_task(tmp_path / "bench", "IDC", slides, PANEL, um_per_px=0.25, without_patch=4)
    write_embeddings(tmp_path / "embed", "IDC", "uni_v1", slides)
    return tmp_path, slides


def test_splits_and_genes(bench):
    root = bench[0] / "bench"
    assert hest.published_folds(root, "IDC") == [
        (["INT2", "TENX95"], ["INT1"]),
        (["INT1", "TENX95"], ["INT2"]),
        (["INT1", "INT2"], ["TENX95"]),
    ]
    assert hest.genes(root, "IDC") == PANEL
    assert len(hest.TASKS) == 10


def test_splits_in_numeric_order_with_an_index_column(tmp_path):
    slides = [toy_slide(f"S{i}") for i in range(11)]
    write_task(tmp_path, "PRAD", slides, PANEL, patches=False, index_column=True)
    assert [test for _, test in hest.published_folds(tmp_path, "PRAD")] == [
        [s.name] for s in slides
    ]


def test_read(bench, caplog):
    path, slides = bench
    with caplog.at_level(logging.INFO, "stfm_jax"):
        slide = hest.read(path / "bench", "IDC", "INT2")
    expected = slides[1].subset(np.arange(16))
    np.testing.assert_array_equal(slide.barcodes, expected.barcodes)
    np.testing.assert_array_equal(slide.counts.toarray(), expected.counts.toarray())
    np.testing.assert_allclose(slide.coords_um, expected.coords_um)
    np.testing.assert_allclose(slide.coords_in, expected.coords_um / 0.25)
    assert slide.spatial_unit == "pixel" and slide.name == "INT2"
    assert "16 of 20 spots kept, which have a patch" in caplog.text
    with h5py.File(path / "bench" / "IDC" / "patches" / "INT2.h5") as file:
        images = file["img"][()]
    np.testing.assert_array_equal(slide.patches.read([5, 2], 112.0), images[[5, 2]])
    assert find_genes([slide], PANEL) == PANEL


def test_patches_in_another_order_follow_the_barcodes(bench):
    path, _ = bench
    file_path = path / "bench" / "IDC" / "patches" / "INT1.h5"
    before = hest.read(path / "bench", "IDC", "INT1").patches.read(np.arange(16), 112.0)
    order = np.random.default_rng(0).permutation(16)
    with h5py.File(file_path, "r+") as file:
        file["img"][...] = file["img"][()][order]
        file["barcode"][...] = file["barcode"][()][order]
    after = hest.read(path / "bench", "IDC", "INT1").patches.read(np.arange(16), 112.0)
    np.testing.assert_array_equal(after, before)


def test_embeddings_are_aligned_and_named(bench):
    path, slides = bench
    slide = hest.read(path / "bench", "IDC", "TENX95", embed_root=path / "embed", encoder="uni_v1")
    np.testing.assert_array_equal(slide.features, slides[2].features[:16])
    assert slide.encoder == "uni_v1"  # the file does not say, its folder does
    plain = path / "embed" / "IDC" / "ours" / "TENX95.h5"
    own = slides[2]
    embeddings.write(plain, own.features, own.coords_in, own.barcodes, "ours_112um")
    slide = hest.read(path / "bench", "IDC", "TENX95", embed_root=path / "embed", encoder="ours")
    assert slide.encoder == "ours_112um"
    with pytest.raises(FileNotFoundError, match=r"conch: expected \[fp32/\]TENX95\.h5"):
        hest.read(path / "bench", "IDC", "TENX95", embed_root=path / "embed", encoder="conch")


def _change_attributes(path, **attributes):
    with h5py.File(path, "r+") as file:
        for key in list(file["img"].attrs):
            del file["img"].attrs[key]
        file["img"].attrs.update(attributes)


def test_where_micrometres_per_pixel_come_from(bench, caplog):
    path, _ = bench
    root, patch_file = path / "bench", path / "bench" / "IDC" / "patches" / "INT1.h5"

    def scale(**options):
        slide = hest.read(root, "IDC", "INT1", **options)
        return (slide.coords_um / slide.coords_in).mean()

    assert scale() == pytest.approx(0.25)
    assert scale(um_per_px=0.4) == pytest.approx(0.4)
    _change_attributes(patch_file, pixel_size=0.3, factor=1.0)  # as HEST-1k writes it
    assert scale() == pytest.approx(0.3)
    _change_attributes(patch_file)
    assert scale() == pytest.approx(100.0 / 400.0)
    assert "0.25 um per pixel taken from a spot distance of 100 um" in caplog.text
    adata = anndata.read_h5ad(root / "IDC" / "adata" / "INT1.h5ad")
    adata.uns["um_per_px"] = 0.2
    adata.write_h5ad(root / "IDC" / "adata" / "INT1.h5ad")
    assert scale() == pytest.approx(0.2)
    _change_attributes(patch_file, factor=0.0)
    with pytest.raises(InputError, match=r"INT1\.h5.*cannot be"):
        scale()


def test_paths_of_the_split_files_count(bench):
    path, _ = bench
    folder = path / "bench" / "IDC"
    (folder / "adata" / "INT1.h5ad").rename(folder / "moved.h5ad")
    with pytest.raises(FileNotFoundError, match=r"INT1\.h5ad: no such file.*MahmoodLab/hest-bench"):
        hest.read(path / "bench", "IDC", "INT1")
    for split in (folder / "splits").glob("*.csv"):
        split.write_text(split.read_text().replace("adata/INT1.h5ad", "moved.h5ad"))
    assert hest.read(path / "bench", "IDC", "INT1").num_spots == 16


def test_without_patches_all_spots_stay(tmp_path):
    write_task(tmp_path, "IDC", [toy_slide("A1"), toy_slide("A2")], PANEL, patches=False)
    slide = hest.read(tmp_path, "IDC", "A1")
    assert slide.patches is None and slide.num_spots == 20


def test_missing_folders_and_files(bench):
    root = bench[0] / "bench"
    with pytest.raises(FileNotFoundError, match=r"COAD: no such folder.*gated.*folder COAD/"):
        hest.published_folds(root, "COAD")
    (root / "IDC" / "splits" / "test_1.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_1\.csv: no such file"):
        hest.published_folds(root, "IDC")
    (root / "IDC" / "var_50genes.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"var_50genes\.json.*MahmoodLab/hest-bench"):
        hest.genes(root, "IDC")
    (root / "EMPTY").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected train_0\.csv"):
        hest.published_folds(root, "EMPTY")
    with pytest.raises(FileNotFoundError, match=r"NONE\.h5ad: no such file"):
        hest.read(root, "IDC", "NONE")


@pytest.mark.parametrize("text", ["", "name,path\na,b\n", "sample_id,expr_path\n", '"', "\x00\x01"])
def test_damaged_split_files(bench, text):
    root = bench[0] / "bench"
    (root / "IDC" / "splits" / "train_2.csv").write_text(text)
    with pytest.raises(InputError, match=r"train_2\.csv: expected a"):
        hest.published_folds(root, "IDC")


def test_leaking_split(bench):
    root = bench[0] / "bench"
    folder = root / "IDC" / "splits"
    (folder / "test_0.csv").write_text((folder / "train_0.csv").read_text())
    with pytest.raises(InputError, match=r"fold 0 has INT2, TENX95 in both"):
        hest.published_folds(root, "IDC")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"genes": 3}', '{"genes": []}', '{"genes": [1]}'])
def test_damaged_gene_lists(bench, text):
    root = bench[0] / "bench"
    (root / "IDC" / "var_50genes.json").write_text(text)
    with pytest.raises(InputError, match=r"var_50genes\.json: expected"):
        hest.genes(root, "IDC")


def test_damaged_samples(bench):
    root, folder = bench[0] / "bench", bench[0] / "bench" / "IDC"
    patch_file = folder / "patches" / "INT1.h5"
    with h5py.File(patch_file, "r+") as file:
        file["barcode"][1] = file["barcode"][0]
    with pytest.raises(InputError, match=r"INT1\.h5: expected one barcode of its own.*16, 15"):
        hest.read(root, "IDC", "INT1")
    with h5py.File(patch_file, "r+") as file:
        file["barcode"][...] = np.array([[f"Z{i}".encode()] for i in range(16)])
    with pytest.raises(InputError, match=r"none of its barcodes \(such as 'INT1-0000'\).*'Z0'"):
        hest.read(root, "IDC", "INT1")
    patch_file.write_bytes(patch_file.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"INT1\.h5.*MahmoodLab/hest-bench"):
        hest.read(root, "IDC", "INT1")
    (folder / "adata" / "INT2.h5ad").write_bytes(b"")
    with pytest.raises(InputError, match=r"INT2\.h5ad: expected an AnnData file, .*: 0 bytes"):
        hest.read(root, "IDC", "INT2")
    adata = anndata.read_h5ad(folder / "adata" / "TENX95.h5ad")
    adata.X = np.log1p(adata.X)
    adata.write_h5ad(folder / "adata" / "TENX95.h5ad")
    with pytest.raises(InputError, match=r"TENX95\.h5ad.*non-negative integers"):
        hest.read(root, "IDC", "TENX95")


def test_panel_json_of_other_size(bench):
    root = bench[0] / "bench"
    (root / "IDC" / "mean_50genes.json").write_text(json.dumps({"genes": ["GENE0"]}))
    assert hest.genes(root, "IDC", "mean_50genes.json") == ["GENE0"]


@pytest.mark.slow
@pytest.mark.skipif(her2st_root() is None, reason="her2st is not here")
def test_real_sections_in_the_hest_layout(tmp_path):
    sections = [her2st.read(her2st_root(), name) for name in ("C2", "C3")]
    panel = sorted(set(sections[0].genes) & set(sections[1].genes))[:50]
    write_task(tmp_path, "IDC", sections, panel, without_patch=7)
    assert hest.published_folds(tmp_path, "IDC") == [(["C3"], ["C2"]), (["C2"], ["C3"])]
    for original in sections:
        slide = hest.read(tmp_path, "IDC", original.name)
        expected = original.subset(np.arange(original.num_spots - 7))
        np.testing.assert_array_equal(slide.barcodes, expected.barcodes)
        np.testing.assert_allclose(slide.coords_um, expected.coords_um, rtol=1e-6)
        assert (slide.counts != expected.counts).nnz == 0
        assert find_genes([slide], hest.genes(tmp_path, "IDC")) == panel
        mine = slide.patches.read([3], 112.0).mean(axis=(1, 2))
        np.testing.assert_allclose(
            mine, expected.patches.read([3], 112.0).mean(axis=(1, 2)), atol=3
        )
