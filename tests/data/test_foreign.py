"""Whatever libraries raise on others' files becomes one message; and tables as R writes them."""

import h5py
import numpy as np
import pandas as pd
import pytest

from stfm_jax.data import foreign
from stfm_jax.data.hdf5 import open_hdf5
from stfm_jax.data.readers import dense_table, plain
from stfm_jax.errors import InputError


class Odd(Exception):
    """Of a library, which nobody knows."""


@pytest.mark.parametrize("error", [Odd(""), RecursionError(), SystemError("x"), KeyError("k")])
def test_any_error_names_the_file(tmp_path, error):
    with pytest.raises(InputError, match=r"a\.bin: expected a picture, but it is empty or damaged"):
        with foreign.reading(tmp_path / "a.bin", "a picture", "get it again."):
            raise error


def test_the_first_line_of_what_a_library_says():
    assert foreign.reason(Odd("\n  first \nsecond")) == "first"
    assert foreign.reason(Odd("  ")) == "Odd"
    assert foreign.reason(Odd("x" * 300 + "y")) == "x" * 300


def test_what_the_system_says_goes_through(tmp_path):
    for error in (PermissionError("no"), FileNotFoundError("no")):
        with pytest.raises(type(error)), foreign.reading(tmp_path / "a", "a picture", "get it."):
            raise error
    with pytest.raises(InputError, match="takes more memory than is free"):
        with foreign.reading(tmp_path / "a", "a picture", "get it."):
            raise MemoryError


def test_a_filter_that_is_not_installed_is_named(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((10,))
        made.set_filter(32_099, h5py.h5z.FLAG_OPTIONAL)  # of nobody
        space = h5py.h5s.create_simple((100,))
        stored = h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_FLOAT, space, made)
        stored.write_direct_chunk((0,), b"\0" * 40)
    with pytest.raises(InputError, match=r"filter of HDF5 .* `pip install hdf5plugin`"):
        with open_hdf5(path, ("x",), "", "get it again.") as file:
            file["x"][:]


NAMES, COUNTS = ["1x1", "1x2", "2x1"], np.array([[3, 0, 1], [0, 2, 9], [4, 5, 6]])
TABLE = pd.DataFrame(COUNTS, NAMES, ["A", "B.2", "C"])
TABLES = {  # what R and others write of one table
    "write.table, quotes, a header one short": TABLE.to_csv(sep="\t", quoting=2).split("\t", 1)[1],
    "col.names=NA": TABLE.to_csv(sep="\t", quoting=2),
    "a tab at the end of every line": TABLE.to_csv(sep="\t").replace("\n", "\t\n"),
    "a tab at the end of all but the header": TABLE.to_csv(sep="\t")
    .replace("\n", "\t\n")
    .replace("\t\n", "\n", 1),
    "write.csv2": TABLE.astype(float).to_csv(sep=";", decimal=",", quoting=2),
    "lines of Windows": "\ufeff" + TABLE.to_csv(sep="\t", lineterminator="\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
def test_tables_of_r(tmp_path, text):
    path = tmp_path / "a.tsv"
    path.write_bytes(text.encode())
    barcodes, genes, counts = dense_table.read(path, "\t")
    assert list(barcodes) == NAMES and list(genes) == list(TABLE.columns)
    np.testing.assert_array_equal(counts.toarray(), COUNTS)
    table = plain.read_table(path, "\t", header=0)
    assert list(table.columns)[1:] == list(TABLE.columns)
    np.testing.assert_array_equal(table.iloc[:, 1:].astype(float), COUNTS)
    assert list(table.iloc[:, 0]) == NAMES
