"""Tables of text as instruments and R write them, and counts read from them row by row."""

import gzip

import numpy as np
import pytest

from stfm_jax.data.readers import dense_table, plain
from stfm_jax.errors import InputError

WRITTEN = {  # the same table, with a header, in the ways of common tools
    "plain": ",a,b\ns1,1,2.5\ns2,3,4\n",
    "quoted": '"","a","b"\n"s1",1,2.5\n"s2",3,4\n',
    "a header that is one short": "a,b\ns1,1,2.5\ns2,3,4\n",
    "a separator at the end": ",a,b\ns1,1,2.5,\ns2,3,4,\n",
    "of the header, too": ",a,b,\ns1,1,2.5,\ns2,3,4,\n",
    "tabs": "\ta\tb\ns1\t1\t2.5\ns2\t3\t4\n",
    "semicolons and commas": ";a;b\ns1;1;2,5\ns2;3;4\n",
    "a mark before": "\ufeff,a,b\ns1,1,2.5\ns2,3,4\n",
    "empty lines": ",a,b\n\ns1,1,2.5\n\ns2,3,4\n\n",
    "other line ends": ",a,b\r\ns1,1,2.5\r\ns2,3,4\r\n",
}


@pytest.fixture(params=WRITTEN)
def table(request, tmp_path):
    (tmp_path / "a.csv").write_bytes(WRITTEN[request.param].encode())
    return tmp_path / "a.csv"


def test_tables_are_the_same_however_they_are_written(table):
    found = plain.read_table(table, ",", header=0)
    assert list(found.columns[1:]) == ["a", "b"] and list(found.iloc[:, 0]) == ["s1", "s2"]
    assert found.iloc[:, 1:].to_numpy().tolist() == [["1", "2.5"], ["3", "4"]]


def test_counts_are_the_same_however_they_are_written(table):
    barcodes, genes, counts = dense_table.read(table, ",")
    assert list(barcodes) == ["s1", "s2"] and list(genes) == ["a", "b"]
    np.testing.assert_array_equal(counts.toarray(), [[1, 2.5], [3, 4]])


def test_packed_tables_whatever_their_name(tmp_path):
    (tmp_path / "a.csv").write_bytes(gzip.compress(WRITTEN["plain"].encode()))
    assert plain.read_table(tmp_path / "a.csv", ",", header=0).shape == (2, 3)
    assert dense_table.read(tmp_path / "a.csv", ",")[2].nnz == 4


@pytest.mark.parametrize("text", ["", "\n", ",a,b\n", "s\ns1\ns2\n", ",a,b\ns1,1\n", ",a\ns1,x\n"])
def test_what_is_no_table_of_counts(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=r"a\.csv"), plain.reading(tmp_path / "a.csv", "counts"):
        dense_table.read(tmp_path / "a.csv", ",")


def test_gene_names_and_columns_must_be_as_many(tmp_path):
    (tmp_path / "a.csv").write_text(",a,b,c,d\ns1,1,2\n")
    with pytest.raises(ValueError, match="4 gene names, but 2 columns"):
        dense_table.read(tmp_path / "a.csv", ",")


def test_commas_in_text_stay(tmp_path):
    (tmp_path / "a.csv").write_text("n;v\nx, y;1,5\nz;-2,5e3\n")
    found = plain.read_table(tmp_path / "a.csv", ",", header=0)
    assert found.to_numpy().tolist() == [["x, y", "1.5"], ["z", "-2.5e3"]]


@pytest.mark.parametrize(
    ("lines", "form"),
    [
        (["a,b", "1,2"], (",", ["a", "b"], False, False)),
        (["a,b"], (",", ["a", "b"], False, False)),
        (["a,b", "1,2,", "3,4,"], (",", ["a", "b"], False, True)),
        (["a,b", "1,2,", "3,4,5"], (",", ["", "a", "b"], False, False)),
        (["a,b", "1,2,", "3,4"], (",", ["", "a", "b"], False, False)),
        (["a", "1", "2"], (",", ["a"], False, False)),
        (["a b", "1,2"], (",", ["", "a b"], False, False)),
        (["a;b", "1;2"], (";", ["a", "b"], True, False)),
        (["a\tb,c", "1\t2"], (",", ["a\tb", "c"], False, False)),
    ],
)
def test_the_form_of_a_table_by_its_first_lines(lines, form):
    found = plain.form_of(lines, ",")
    assert tuple(found) == form


def test_objects_of_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(gzip.compress(b'{"a": 1}'))
    assert plain.read_json(path) == {"a": 1}
    for text in ("[1]", "{", ""):
        path.write_text(text)
        with pytest.raises(InputError, match=r"a\.json"):
            plain.read_json(path)
