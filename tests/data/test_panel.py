"""Panels, identifiers and duplicates of gene names."""

import dataclasses
import logging

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hest_layout import toy_slide

from stfm_jax.data.panel import added_genes, find_genes, gene_names, sum_duplicates
from stfm_jax.errors import InputError


def _without(slide, *genes):
    keep = ~np.isin(slide.genes, genes)
    return dataclasses.replace(slide, genes=slide.genes[keep], counts=slide.counts[:, keep])


def test_logs_how_many_were_found(caplog):
    with caplog.at_level(logging.INFO, "stfm_jax"):
        got = find_genes([toy_slide("A1"), toy_slide("A2")], ["GENE3", "GENE1", "GENE3"])
    assert got == ["GENE3", "GENE1"]
    assert "slide 'A1': 2 of 2 genes found" in caplog.text
    assert "slide 'A2': 2 of 2 genes found" in caplog.text


def test_missing_genes_are_named():
    slides = [toy_slide("A1"), _without(toy_slide("A2"), "GENE1")]
    with pytest.raises(InputError, match=r"'A2'.*1 of 2 genes found; missing GENE1\."):
        find_genes(slides, ["GENE1", "GENE2"])


def test_drop_keeps_what_every_slide_has(caplog):
    slides = [_without(toy_slide("A1"), "GENE4"), _without(toy_slide("A2"), "GENE1")]
    with caplog.at_level(logging.INFO, "stfm_jax"):
        got = find_genes(slides, ["GENE5", "GENE4", "GENE1", "GENE2"], missing="drop")
    assert got == ["GENE5", "GENE2"]
    assert "3 of 4 genes found" in caplog.text


def test_drop_of_everything_is_an_error():
    with pytest.raises(InputError, match=r"0 of 1 genes found; missing TP53.*GENE0"):
        find_genes([toy_slide()], ["TP53"], missing="drop")
    slides = [_without(toy_slide("A1"), "GENE4"), _without(toy_slide("A2"), "GENE1")]
    with pytest.raises(InputError, match=r"none of the panel's 2 genes .* is in all 2 slides"):
        find_genes(slides, ["GENE4", "GENE1"], missing="drop")
    with pytest.raises(InputError, match="'error' or 'drop'"):
        find_genes([toy_slide()], ["GENE1"], missing="ignore")
    with pytest.raises(InputError, match="has no counts"):
        find_genes([dataclasses.replace(toy_slide(), counts=None, genes=None)], ["GENE1"])


def test_added_genes_are_those_of_every_slide_in_the_order_asked_for():
    slides = [toy_slide("A1"), _without(toy_slide("A2"), "GENE1")]
    assert added_genes(slides, ["GENE4", "GENE2", "GENE4"], "error") == ["GENE4", "GENE2"]
    assert added_genes(slides, ["GENE4", "GENE1"], "drop") == ["GENE4"]
    assert added_genes(slides, ["GENE1"], "drop") == added_genes(slides, (), "error") == []
    with pytest.raises(InputError, match=r"'A2'.* lack the gene 'GENE1'.*missing_genes=drop"):
        added_genes(slides, ["GENE1"], "error")


@pytest.mark.parametrize("missing", ["error", "drop"])
def test_an_added_gene_that_no_slide_has_is_an_error_with_names_that_are_near(missing):
    with pytest.raises(InputError, match=r"no slide has the gene 'gene2'; did you mean GENE2 or"):
        added_genes([toy_slide("A1")], ["gene2"], missing)
    with pytest.raises(InputError, match=r"no slide has the gene 'XYZ'; give names as the slides"):
        added_genes([toy_slide("A1")], ["XYZ"], missing)


def test_symbols_from_a_column_where_the_index_is_ensembl():
    index = ["ENSG00000141510.17", "ENSG00000012048.3", "ENSMUSG00000059552.4"]
    var = pd.DataFrame({"gene_symbols": ["TP53", None, ""]}, index=index)
    expected = ["TP53", "ENSG00000012048", "ENSMUSG00000059552"]
    np.testing.assert_array_equal(gene_names(var, "slide"), expected)
    var["gene_symbols"] = var["gene_symbols"].astype("category")
    np.testing.assert_array_equal(gene_names(var, "slide"), expected)
    stripped = ["ENSG00000141510", "ENSG00000012048", "ENSMUSG00000059552"]
    np.testing.assert_array_equal(gene_names(var[[]], "slide"), stripped)


def test_symbols_in_the_index_stay():
    var = pd.DataFrame({"symbol": ["x", "y", "z"]}, index=["TP53", "HLA-A.1", "ENSA"])
    np.testing.assert_array_equal(gene_names(var, "slide"), ["TP53", "HLA-A.1", "ENSA"])


def test_duplicates_are_summed_in_order_of_appearance(caplog):
    names = np.array(["B", "A", "B", "C", "A", "B"])
    dense = np.random.default_rng(0).poisson(2.0, (7, 6)).astype(np.float32)
    with caplog.at_level(logging.INFO, "stfm_jax"):
        counts, unique = sum_duplicates(sp.csr_matrix(dense), names, "slide")
    np.testing.assert_array_equal(unique, ["B", "A", "C"])
    expected = [dense[:, names == name].sum(axis=1) for name in unique]
    np.testing.assert_array_equal(counts.toarray().T, expected)
    assert isinstance(counts, sp.csr_matrix) and counts.dtype == np.float32
    assert "3 duplicate gene names summed" in caplog.text
