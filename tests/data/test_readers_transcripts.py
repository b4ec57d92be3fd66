"""Molecules of Xenium, MERSCOPE and plain tables become bins that add up."""

import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from ml_collections import ConfigDict

from configs import base
from stfm_jax.data import datasets
from stfm_jax.data.coarsen import coarsened
from stfm_jax.data.readers import transcripts
from stfm_jax.errors import InputError

BIN = 10.0


def _molecules(n=5000, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "gene": rng.choice(["KRT8", "CD3E", "ACTA2"], n, p=[0.6, 0.3, 0.1]),
            "x": rng.uniform(-35.0, 165.0, n),
            "y": rng.uniform(0.0, 120.0, n),
        }
    )


def _expected(molecules):
    """Counts by bin and gene."""
    bins = np.floor(molecules[["x", "y"]] / BIN).astype(int)
    return bins.assign(gene=molecules["gene"]).value_counts().sort_index()


def _found(slide):
    counts = slide.counts.tocoo()
    bins = np.floor(slide.coords_um / BIN).astype(int)[counts.row]
    index = pd.MultiIndex.from_arrays(
        [bins[:, 0], bins[:, 1], slide.genes[counts.col]], names=["x", "y", "gene"]
    )
    return pd.Series(counts.data.astype(int), index, name="count").sort_index()


def _xenium(molecules, path, **columns):
    table = pd.DataFrame(
        {
            "transcript_id": np.arange(len(molecules)),
            "feature_name": molecules["gene"],
            "x_location": molecules["x"].astype(np.float32),
            "y_location": molecules["y"].astype(np.float32),
            "qv": np.full(len(molecules), 30.0),
        }
    ).assign(**columns)
    path.parent.mkdir(exist_ok=True)
    pa.parquet.write_table(pa.Table.from_pandas(table), path, row_group_size=700)
    return path


def test_xenium_controls_and_poor_calls_are_left_out(tmp_path):
    molecules = _molecules().round(3)
    molecules[["x", "y"]] = molecules[["x", "y"]].astype(np.float32)
    gene, quality = molecules["gene"].to_numpy(dtype=object, copy=True), np.full(5000, 20.0)
    gene[:200:2], gene[1:200:2] = "NegControlProbe_00042", "BLANK_0071"
    quality[200:900] = 19.9
    path = _xenium(
        molecules, tmp_path / "S1" / "transcripts.parquet", feature_name=gene, qv=quality
    )
    slide = transcripts.read(path, "S1", BIN)
    pd.testing.assert_series_equal(_found(slide), _expected(molecules[900:]))
    assert list(slide.genes) == ["ACTA2", "CD3E", "KRT8"]


def test_names_stored_as_bytes(tmp_path):
    molecules = _molecules()
    names = [name.encode() for name in molecules["gene"]]
    path = _xenium(molecules, tmp_path / "S1" / "transcripts.parquet", feature_name=names)
    assert list(transcripts.read(path, "S1", BIN).genes) == ["ACTA2", "CD3E", "KRT8"]


def test_merscope_places_are_the_global_ones(tmp_path):
    molecules = _molecules()
    table = pd.DataFrame(
        {
            "barcode_id": 3, "global_x": molecules["x"], "global_y": molecules["y"],
            "x": 7.0, "y": 9.0, "fov": 1, "gene": molecules["gene"],
        }
    )  # fmt: skip
    table.loc[len(table)] = [3, 5.0, 5.0, 7.0, 9.0, 1, "Blank-12"]
    path = tmp_path / "detected_transcripts.csv"
    table.to_csv(path)
    slide = transcripts.read(path, "mouse", BIN)
    pd.testing.assert_series_equal(_found(slide), _expected(molecules))


def test_plain_tables_compressed(tmp_path):
    molecules = _molecules()
    path = tmp_path / "tissue.csv.gz"
    molecules.to_csv(path, index=False)
    slide = transcripts.read(path, "tissue", BIN)
    pd.testing.assert_series_equal(_found(slide), _expected(molecules))


def test_bins_that_tissue_encloses_are_spots_without_counts(tmp_path):
    side = np.arange(12)
    x, y = (a.ravel() * BIN + 1.0 for a in np.meshgrid(side, side, indexing="ij"))
    hole = (x // BIN == 5) & (y // BIN >= 5) & (y // BIN <= 6)
    far = {"gene": "KRT8", "x": 1000.0, "y": 1000.0}
    molecules = pd.DataFrame({"gene": "CD3E", "x": x, "y": y})[~hole]
    molecules.loc[len(x)] = far
    molecules.to_csv(tmp_path / "a.csv", index=False)
    slide = transcripts.read(tmp_path / "a.csv", "a", BIN)
    assert slide.num_spots == 144 + 1
    empty = slide.counts.sum(axis=1).A1 == 0
    assert sorted(slide.barcodes[empty]) == ["5x5", "5x6"]


@pytest.mark.parametrize("bin_um", [0.5, 8.0])
def test_spots_are_the_middles_of_their_bins(tmp_path, bin_um):
    """Of bins that are counted from the origin of the coordinates, in micrometres."""
    places = np.array([[0.0, 0.0], [0.9, 0.0], [0.0, -2.1]]) * bin_um
    table = pd.DataFrame({"gene": ["A", "A", "B"], "x": places[:, 0], "y": places[:, 1]})
    table.to_csv(tmp_path / "a.csv", index=False)
    slide = transcripts.read(tmp_path / "a.csv", "a", bin_um)
    at = dict(zip(map(tuple, slide.coords_um), slide.counts.toarray(), strict=True))
    np.testing.assert_array_equal(at.pop((bin_um / 2, bin_um / 2)), [2, 0])
    np.testing.assert_array_equal(at.pop((bin_um / 2, -2.5 * bin_um)), [0, 1])
    assert not np.any(list(at.values()))
    assert set(slide.barcodes) >= {"0x0", "0x-3"}


def test_a_folder_is_a_data_set_that_can_be_coarsened(tmp_path):
    _xenium(_molecules(), tmp_path / "S1" / "transcripts.parquet")
    _molecules(seed=1).to_csv(tmp_path / "S2.csv", index=False)
    _molecules(seed=2).to_csv(tmp_path / "S3.csv.gz", index=False)
    _molecules(seed=3).to_csv(tmp_path / "S1.csv.gz", index=False)  # parquet is read
    data = ConfigDict(base.get_config().data)
    data.update(reader="transcripts", dir=str(tmp_path), bin_um=BIN)
    dataset = datasets.load(data)
    assert [fold.test for fold in dataset.folds] == [("S1",), ("S2",), ("S3",)]
    assert dataset.slides["S1"].source.endswith("transcripts.parquet")
    pair = coarsened(dataset.slides["S2"], "2x2")
    assert pair.num_children.max() == 4
    assert pair.low.counts.sum() == 5000


@pytest.mark.parametrize(
    "content, says",
    [
        ("gene,x\nKRT8,1.0\n", "expected the columns feature_name, x_location, y_location; or"),
        ("", "empty or damaged"),
        ("gene,x,y\n", "has no molecules"),
        ("gene,x,y\nBlank-1,1.0,2.0\n", "has no molecules"),
        ("gene,x,y\nKRT8,here,2.0\n", "empty or damaged"),
        ("gene,x,y\nKRT8,nan,2.0\nKRT8,1.0,2.0\n", "1 molecules have coordinates that are not"),
        ("gene,x,y\nKRT8,0.0,0.0\nKRT8,9e6,9e6\n", "give coordinates in micrometres"),
    ],
)
def test_bad_tables(tmp_path, content, says):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=says) as found:
        transcripts.read(path, "bad", BIN)
    assert str(path) in str(found.value)


def test_damaged_files(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing else")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"gene,x,y\nKRT8,1.0,2.0\n" * 9)[:-12])
    for name in ("a.parquet", "b.csv.gz"):
        with pytest.raises(InputError, match=f"{name}.*empty or damaged"):
            transcripts.read(tmp_path / name, "a", BIN)
    with pytest.raises(InputError, match="bin_um must be above 0"):
        transcripts.read(tmp_path / "a.parquet", "a", 0.0)


def test_a_folder_without_tables(tmp_path):
    with pytest.raises(InputError, match="expected a table of molecules for each slide"):
        transcripts.tables(tmp_path)
