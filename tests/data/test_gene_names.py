"""Genes of several slides under one name each, and why slides share none."""

import dataclasses
import logging
import re

import numpy as np
import pytest
from test_alike import GENES, slide

from stfm_jax.data import gene_names


def respelled(names, first=GENES, panel=()):
    one, other = slide(genes=first), slide("b", genes=names)
    return list(gene_names.with_one_spelling([one, other], panel)[1].genes)


def test_genes_in_another_letter_case_are_the_first_slides(caplog):
    with caplog.at_level(logging.INFO, "stfm_jax"):
        assert respelled([g.upper() for g in GENES]) == list(GENES)
    assert "b.h5ad" in caplog.messages[0] and "8 genes are spelled" in caplog.messages[0]
    assert "such as 'GENE0' for 'Gene0'" in caplog.messages[0]


def test_letter_case_says_something_where_slides_share_little_else():
    """Half of the names as they are spelled, or nearly all but for case."""
    half = [*GENES[:4], "GENE4", "x", "y", "z"]
    assert respelled(half) == [*GENES[:5], "x", "y", "z"]
    less = [*GENES[:3], "GENE3", "GENE4", "x", "y", "z"]
    assert respelled(less) == less
    many = np.array([f"Gene{i}" for i in range(20)])
    nearly = [*(g.upper() for g in many[:19]), "x"]
    assert respelled(nearly, many) == [*many[:19], "x"]
    mouse = [*(g.upper() for g in many[:18]), "x", "y"]
    assert respelled(mouse, many) == mouse


def test_the_panels_spelling_goes_before():
    panel = [g.lower() for g in GENES]
    assert respelled(list(GENES), panel=panel) == panel


def test_counts_of_one_gene_in_two_spellings_are_added_up():
    names = [*(g.upper() for g in GENES[:7]), GENES[0]]
    one, other = slide(), slide("b", genes=np.array(names))
    found = gene_names.with_one_spelling([one, other])[1]
    assert set(found.genes) == set(GENES[:7])
    column = list(found.genes).index(GENES[0])
    before = other.counts.toarray()
    np.testing.assert_array_equal(found.counts.toarray()[:, column], before[:, 0] + before[:, 7])


def test_slides_without_genes_are_left_alone():
    bare = dataclasses.replace(slide(), counts=None, genes=None)
    assert gene_names.with_one_spelling([bare])[0] is bare


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"ENSG{i:011d}" for i in range(8)], "b.*by Ensembl ids.*gene_symbols"),
        ([*(f"ENSG{i:011d}" for i in range(4)), *"wxyz"], "has genes like"),
        ([*(f"ENSG{i:011d}" for i in range(5)), *"xyz"], "by Ensembl ids"),
        ([g.upper() for g in GENES], "another letter case.*of one species"),
        (list("abcdefgh"), "a.h5ad.* has genes like Gene0, Gene1, Gene2, .*b.h5ad.* like a, b, c;"),
    ],
)
def test_why_slides_share_no_gene(names, expected):
    said = gene_names.why_none([slide(), slide("b", genes=np.array(names))])
    assert re.search(expected, said)


def test_the_slide_that_shares_least_is_named():
    others = [[*GENES[:7], "x"], list("abcdefgh"), [GENES[0], *"abcdefg"]]
    slides = [
        slide(name, genes=np.array(genes))
        for name, genes in zip("abcd", [GENES, *others], strict=True)
    ]
    said = gene_names.why_none(slides)
    assert "c.h5ad" in said and "b.h5ad" not in said and "d.h5ad" not in said
