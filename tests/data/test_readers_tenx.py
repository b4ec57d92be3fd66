"""Matrices of 10x: every layout gives the same counts, and damaged ones say what is wrong."""

import h5py
import numpy as np
import platform_layouts as layouts
import pytest
from real_tissue import platforms_root

from stfm_jax.data.readers import tenx
from stfm_jax.errors import InputError

PLATFORMS = platforms_root()
needs_real = pytest.mark.skipif(PLATFORMS is None, reason="no real files (set STFM_PLATFORMS)")


def _v2(path, slide, genomes=("GRCh38",)):
    layouts.write_h5(path, slide)
    with h5py.File(path, "r+") as file:
        stored = file["matrix"]
        for genome in genomes:
            group = file.create_group(genome)
            for name in ("barcodes", "data", "indices", "indptr", "shape"):
                group[name] = stored[name][()]
            group["genes"] = stored["features/id"][()]
            group["gene_names"] = stored["features/name"][()]
        del file["matrix"]
    return path


def _layouts(folder, slide):
    layouts.write_h5(folder / "v3.h5", slide)
    layouts.write_h5(
        folder / "more.h5", slide, {"Antibody Capture": 2, "Negative Control Probe": 1}
    )
    _v2(folder / "v2.h5", slide)
    layouts.write_mtx(folder / "new", slide)
    layouts.write_mtx(folder / "old", slide, old=True)
    layouts.write_mtx(folder / "prefix", slide, prefix="GSM1_")
    paths = ("v3.h5", "more.h5", "v2.h5", "new/matrix.mtx.gz", "old/matrix.mtx")
    return [folder / path for path in (*paths, "prefix/GSM1_matrix.mtx.gz")]


def test_every_layout_gives_the_same_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(tenx, "VALUES_AT_ONCE", 20)
    slide = layouts.visium_slide()
    for path in _layouts(tmp_path, slide):
        matrix = tenx.open_matrix(path)
        np.testing.assert_array_equal(matrix.barcodes, slide.barcodes)
        np.testing.assert_array_equal(matrix.genes, slide.genes)
        counts = matrix.counts()
        assert counts.dtype == np.float32 and counts.has_canonical_format
        np.testing.assert_array_equal(counts.toarray(), slide.counts.toarray())
        some = matrix.counts(["GENE7", "GENE2"])
        np.testing.assert_array_equal(some.toarray(), slide.counts[:, [7, 2]].toarray())


def test_genes_of_one_name_are_added_up_and_ids_stand_in_for_missing_names(tmp_path):
    slide = layouts.visium_slide()
    layouts.write_h5(tmp_path / "a.h5", slide)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        names = file["matrix/features/name"][()]
        names[3], names[5] = b"GENE1", b""
        file["matrix/features/name"][()] = names
    matrix = tenx.open_matrix(tmp_path / "a.h5")
    assert list(matrix.genes) == [f"GENE{i}" for i in (0, 1, 2, 4)] + ["ENSG00000000005"] + [
        f"GENE{i}" for i in range(6, 12)
    ]
    dense = slide.counts.toarray()
    np.testing.assert_array_equal(matrix.counts().toarray()[:, 1], dense[:, 1] + dense[:, 3])
    np.testing.assert_array_equal(matrix.counts(["GENE1"]).toarray()[:, 0], dense[:, [1, 3]].sum(1))


def _rewrite(file, name, values):
    del file[name]
    file[name] = values


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.__delitem__("matrix/indptr"), "the group `matrix`, .*found matrix"),
        (lambda f: f.__delitem__("matrix/features/name"), "/matrix/features has no name"),
        (lambda f: _rewrite(f, "matrix/shape", [5, 4]), "expected a matrix of 12 .*found 5 x 4"),
        (lambda f: _rewrite(f, "matrix/indptr", np.arange(57)), "indptr does not fit"),
        (lambda f: f["matrix/indices"].__setitem__(0, 99), "name features it has not"),
        (
            lambda f: _rewrite(f, "matrix/features/feature_type", [b"Antibody Capture"] * 12),
            "'Gene Expression', found Antibody Capture",
        ),
    ],
)
def test_bad_h5(tmp_path, spoil, message):
    path = tmp_path / "bad.h5"
    layouts.write_h5(path, layouts.visium_slide())
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(InputError, match=message):
        tenx.open_matrix(path).counts()


def test_several_genomes_and_bad_tables(tmp_path):
    slide = layouts.visium_slide()
    with pytest.raises(InputError, match=r"found 2, of the genomes hg19, mm10"):
        tenx.open_matrix(_v2(tmp_path / "two.h5", slide, ("hg19", "mm10")))
    layouts.write_mtx(tmp_path / "a", slide)
    (tmp_path / "a/barcodes.tsv.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected barcodes\.tsv \(or \.gz\) beside"):
        tenx.open_matrix(tmp_path / "a/matrix.mtx.gz")
    layouts.write_mtx(tmp_path / "b", slide)
    layouts.write_mtx(tmp_path / "c", layouts.visium_slide(rows=3))
    (tmp_path / "c/matrix.mtx.gz").rename(tmp_path / "b/matrix.mtx.gz")
    with pytest.raises(InputError, match="expected a matrix of 12 features and 56 barcodes"):
        tenx.open_matrix(tmp_path / "b/matrix.mtx.gz").counts()
    cut = (tmp_path / "b/matrix.mtx.gz").read_bytes()[:60]
    (tmp_path / "b/matrix.mtx.gz").write_bytes(cut)
    with pytest.raises(InputError, match="Matrix Market, but it is empty or damaged"):
        tenx.open_matrix(tmp_path / "b/matrix.mtx.gz").counts()


@needs_real
def test_real_matrices():
    """The sums are those of the files, and .h5 and .mtx of one run agree."""
    folder = PLATFORMS / "10x_matrices"
    h5 = tenx.open_matrix(folder / "3.0.0/filtered_feature_bc_matrix.h5")
    mtx = tenx.open_matrix(folder / "3.0.0/filtered_feature_bc_matrix/matrix.mtx.gz")
    np.testing.assert_array_equal(h5.genes, mtx.genes)
    assert h5.counts().shape == (1107, 507) and h5.counts().sum() == 41549
    assert (h5.counts() != mtx.counts()).nnz == 0
    old = tenx.open_matrix(folder / "1.2.0/filtered_gene_bc_matrices_h5.h5")
    assert old.genes[0] == "DSCAM" and old.counts().sum() == 12
    assert tenx.open_matrix(folder / "int-ids/matrix.mtx").counts().sum() == 8
    with pytest.raises(InputError, match="another_genome, hg19_chr21"):
        tenx.open_matrix(folder / "1.2.0/multiple_genomes.h5")
    # Named .gz, and not gzipped.
    hd = PLATFORMS / "visium_hd/outs_002um/binned_outputs/square_002um"
    assert tenx.open_matrix(hd / "filtered_feature_bc_matrix/matrix.mtx.gz").genes[0] == "Xkr4"
