"""Slides and patients that are the same under other names."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp

from stfm_jax.data import alike
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


@pytest.mark.parametrize(("number", "same"), [(1, True), (2, False)])
@pytest.mark.parametrize("first", [True, False])
def test_one_spot_of_twenty_may_have_other_counts(number, same, first):
    one = slide()
    counts = one.counts.toarray()
    counts[slice(number) if first else slice(-number, None)] += 1
    other = dataclasses.replace(one, counts=sp.csr_matrix(counts))
    assert copies(one, other) == [("0", "1")] * same


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
