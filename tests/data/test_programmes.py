"""Lists of marker genes, and weights that are made of them."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from stfm_jax.data.programmes import MARKERS, programmes
from stfm_jax.errors import InputError
from stfm_jax.score.programmes import weights


def test_the_lists_that_are_built_in():
    found = programmes("")
    assert list(found) == list(MARKERS) and "UBE2C" in found["proliferation"]
    for name, genes in found.items():
        assert len(genes) == len(set(genes)) >= 5, name
        assert all(gene == gene.upper() for gene in genes)


@pytest.mark.parametrize("packed", [False, True])
def test_a_gmt_file(tmp_path, packed):
    text = "one\thttp://x\tA\tB\tA\t\n\ntwo\t\tC\r\n"
    path = tmp_path / "lists.gmt"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert programmes(str(path)) == {"one": ("A", "B"), "two": ("C",)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one\tx\tA\none\tx\tB\n", "line 2 has 'one' a second time"),
        ("one\tx\tA\ntwo A B\n", "line 2 has 1 cells"),
        ("one\tx\n", "line 1 has 2 cells"),
        ("\n", "it has no line"),
    ],
)
def test_what_is_no_gmt_file_is_refused(tmp_path, text, said):
    (tmp_path / "lists.gmt").write_text(text)
    with pytest.raises(InputError, match="expected a GMT file.*" + said):
        programmes(str(tmp_path / "lists.gmt"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.gmt.*--config.data.programmes"):
        programmes(str(tmp_path / "none.gmt"))


def test_weights_are_of_three_genes_that_vary():
    genes, spread = ("A", "B", "C", "D", "E"), np.array([1.0, 2.0, 4.0, 0.0, 5.0])
    lists = {"three": "ABC", "two": "AB", "flat": "ABD", "all": "ABCDEF"}
    found = weights({name: tuple(each) for name, each in lists.items()}, genes, spread)
    assert list(found) == ["three", "all"]
    np.testing.assert_allclose(found["three"], np.array([1, 0.5, 0.25, 0, 0]) / 3)
    np.testing.assert_allclose(found["all"], np.array([1, 0.5, 0.25, 0, 0.2]) / 4)
