"""Slides and patients that are the same under other names, and genes of other spellings."""

import dataclasses
import logging
import re

import numpy as np
import pytest
import scipy.sparse as sp

from stfm_jax.data import alike, gene_names
from stfm_jax.data.slide import Slide

GENES = np.array([f"Gene{i}" for i in range(8)])


def slide(name="a", n=20, seed=0, genes=GENES, **more):
    counts = np.random.default_rng(seed).poisson(5.0, (n, len(genes))).astype(np.float32)
    fields = {
        "barcodes": np.array([f"s{i}" for i in range(n)]),
        "coords_um": np.arange(2.0 * n).reshape(n, 2),
        "counts": sp.csr_matrix(counts), "genes": np.array(genes), "source": f"{name}.h5ad",
    }  # fmt: skip
    return Slide(name=name, **(fields | more))


def copies(*slides):
    return list(alike.copies({str(i): s for i, s in enumerate(slides)}))


def turned(s, keep):
    return s.subset(np.asarray(keep))


def test_a_slide_under_two_names_is_found_in_whatever_order():
    one = slide()
    assert copies(one, one) == [("0", "1")]
    back = dataclasses.replace(turned(one, np.arange(20)[::-1]), barcodes=one.barcodes)
    assert copies(one, back) == [("0", "1")]  # other barcodes, the same counts
    assert copies(one, slide(seed=1)) == []
    assert copies(one, slide(seed=1), one) == [("0", "2")]


def test_a_slide_without_some_spots_is_the_same_by_their_names():
    one = slide(n=100)
    assert copies(one, turned(one, np.arange(4, 100))) == [("0", "1")]
    assert copies(turned(one, np.arange(5, 100)), one) == [("0", "1")]
    assert copies(turned(one, np.arange(6, 100)), one) == []
    other = dataclasses.replace(turned(one, np.arange(5, 100)), barcodes=np.arange(95).astype(str))
    assert copies(one, other) == []


def test_a_slide_of_fewer_genes_is_the_same_by_those_that_both_have():
    one = slide()
    fewer = dataclasses.replace(one, counts=one.counts[:, [6, 2, 4]], genes=GENES[[6, 2, 4]])
    assert copies(one, fewer) == [("0", "1")]
    renamed = dataclasses.replace(fewer, genes=GENES[[2, 6, 4]])
    counts = dataclasses.replace(renamed, counts=slide(seed=3).counts[:, :3])
    assert copies(one, counts) == []


def test_what_cannot_be_told_is_no_copy():
    """Few spots, no counts, or counts that are the same everywhere."""
    assert copies(slide(n=9), slide(n=9)) == [] and copies(slide(n=10), slide(n=10)) == [("0", "1")]
    even = dataclasses.replace(slide(), counts=sp.csr_matrix(np.ones((20, 8), np.float32)))
    assert copies(even, even) == []
    bare = dataclasses.replace(slide(), counts=None)
    assert copies(bare, bare) == []


def test_patients_are_spelled_in_one_way_and_told_of(caplog):
    slides = {
        name: slide(name, patient=patient)
        for name, patient in (("a", "P1 "), ("b", "p1"), ("c", "P2"), ("d", ""))
    }
    found = alike.with_one_spelling(slides)
    assert [s.patient for s in found.values()] == ["P1", "P1", "P2", ""]
    assert caplog.messages == ["patients 'P1 ', 'p1' are taken for one"]
    assert alike.told(found) == "P1 (a, b); P2 (c); not told of d"
    many = {f"{i}": slide(patient="x") for i in range(31)}
    assert alike.told(many).endswith("29); ...")
    assert alike.told(dict(list(many.items())[:30])).endswith("29)")


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
