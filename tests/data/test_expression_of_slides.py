"""Which genes are chosen, and how counts become expression, by hand."""

import numpy as np
import pytest
import scipy.sparse as sp

from stfm_jax.data import expression
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError


def slide(counts, genes="ABCD", name="a"):
    n = len(counts)
    return Slide(
        name=name,
        barcodes=np.arange(n).astype(str),
        coords_um=np.arange(2.0 * n).reshape(n, 2),
        counts=sp.csr_matrix(np.asarray(counts, np.float32)),
        genes=np.array(list(genes)),
        source=f"{name}.h5ad",
    )


# Of ten spots D has counts in one; of the others C varies most per 10,000, A least.
COUNTS = np.array([[5, 1, 0, 0], [5, 3, 9, 0]] * 5)
COUNTS[0, 3] = 7


def test_counts_are_normalised():
    found = expression.expression(slide(COUNTS), ["C", "A"], "log1p_cp10k")
    np.testing.assert_allclose(found[1], np.log1p([1e4 * 9 / 17, 1e4 * 5 / 17]), rtol=1e-6)
    np.testing.assert_allclose(found[0], np.log1p([0, 1e4 * 5 / 13]), rtol=1e-6)
    found = expression.expression(slide(COUNTS), ["C", "A"], "log1p")
    np.testing.assert_allclose(found[1], np.log1p([9, 5]), rtol=1e-6)
    assert expression.library_size(slide([[0, 0, 0, 0], [1, 0, 0, 0]])).tolist() == [1, 1]
    with pytest.raises(InputError, match="one of log1p, log1p_cp10k, found 'none'"):
        expression.normalize(COUNTS, None, "none")


def test_genes_that_vary_most_of_those_in_more_than_a_tenth_of_the_spots():
    made = slide(COUNTS)
    logged = np.log1p(1e4 * COUNTS / COUNTS.sum(axis=1, keepdims=True))
    order = np.argsort(-logged.var(axis=0))
    wanted = ["ABCD"[i] for i in order if i != 3]
    assert expression.most_variable_genes([made], 3) == wanted
    assert expression.most_variable_genes([made], 1) == wanted[:1]
    for number in (4, 5):
        with pytest.raises(InputError, match=f"wanted {number} variable genes, but only 3 are in"):
            expression.most_variable_genes([made], number)
    more = COUNTS.copy()
    more[1, 3] = 7
    assert "D" in expression.most_variable_genes([slide(more)], 4)


def test_genes_that_another_slide_lacks_are_not_chosen():
    other = slide(COUNTS[:, [2, 0]], "CA", "b")
    assert expression.most_variable_genes([slide(COUNTS)], 2, [other]) == ["C", "A"]
    assert expression.most_expressed_genes([slide(COUNTS)], 4, [other]) == ["A", "C"]
    with pytest.raises(InputError, match="no gene is in all slides"):
        expression.most_variable_genes([slide(COUNTS), slide(COUNTS, "WXYZ", "b")], 1)


def test_genes_of_most_counts_over_all_slides():
    turned = slide(COUNTS[:, ::-1], "DCBA", "b")
    assert expression.most_expressed_genes([slide(COUNTS), turned], 9) == ["A", "C", "B", "D"]
    assert expression.most_expressed_genes([slide(COUNTS), turned], 2) == ["A", "C"]
    none = slide(COUNTS * [1, 1, 1, 0])
    assert expression.most_expressed_genes([none], 4) == ["A", "C", "B"]


def test_genes_whose_counts_vary_most():
    made = slide(COUNTS)
    assert expression.most_variable_counts([made], ["A", "B", "C", "D"], 9) == ["C", "D", "B"]
    assert expression.most_variable_counts([made], ["A", "B", "C", "D"], 1) == ["C"]
    for genes in (["A"], []):
        with pytest.raises(InputError, match=f"a.h5ad.*none of {len(genes)} genes that all 1"):
            expression.most_variable_counts([made], genes, 2)


def test_genes_that_are_missing_are_told_of():
    with pytest.raises(InputError, match=r"1 of 2 genes found; missing E\. Its own look like A, B"):
        expression.gene_counts(slide(COUNTS), ["A", "E"])
    with pytest.raises(InputError, match=r"missing E, F, G, H, I, \.\.\."):
        expression.require_genes(slide(COUNTS), list("EFGHIJ"))
    with pytest.raises(InputError, match=r"missing E, F, G, H, I\. Its"):
        expression.require_genes(slide(COUNTS), list("EFGHI"))
    np.testing.assert_array_equal(
        expression.gene_counts(slide(COUNTS), ["B", "A"]), COUNTS[:, [1, 0]]
    )
