"""Rows of per_gene.csv."""

import csv

import numpy as np
import pytest

from stfm_jax.runtime import files
from stfm_jax.score import genes


def test_rows_of_genes_make_a_table(tmp_path):
    rows = genes.per_gene_rows(
        2, "ridge", ["A,1", "B"], np.array([0.5, np.nan]), np.array([0.25, np.nan]), np.ones(2)
    )
    assert tuple(rows[0]) == genes.PER_GENE_COLUMNS
    files.write_csv(tmp_path / "per_gene.csv", rows)
    with open(tmp_path / "per_gene.csv", newline="") as f:
        read = list(csv.DictReader(f))
    assert read[0] == {
        "fold": "2",
        "gene": "A,1",
        "method": "ridge",
        "pearson": "0.5",
        "spearman": "0.25",
        "mse": "1.0",
        "constant": "False",
    }
    assert read[1]["pearson"] == "" and read[1]["constant"] == "True"


def test_genes_and_scores_must_match():
    with pytest.raises(ValueError):
        genes.per_gene_rows(0, "ridge", ["A"], np.zeros(2), np.zeros(2), np.zeros(2))
