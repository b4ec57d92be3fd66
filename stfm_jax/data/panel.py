"""Gene names: which of a panel a slide has, identifiers and duplicates.

Choosing genes by their expression, and the dense matrices that models see, live in
`expression.py`.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}(\.\d+)?")
# Columns of `var` in which the common tools keep gene symbols.
GENE_COLUMNS = (
    "gene_symbols",
    "gene_symbol",
    "gene_name",
    "gene_names",
    "symbol",
    "symbols",
    "feature_name",
    "SYMBOL",
    "hgnc_symbol",
)


def find_genes(slides: Sequence[Slide], genes: Sequence[str], missing: str = "error") -> list[str]:
    """The genes of a panel that every slide has, in the panel's order.

    Logs for each slide how many were found.

    Args:
      genes: wanted genes; repeated names count once.
      missing: `error` stops at the first slide that lacks a gene, `drop` leaves such genes out.

    Raises:
      InputError: a slide has no counts; it lacks genes (`error`); or no gene is left (`drop`).
    """
    if missing not in ("error", "drop"):
        raise InputError(f"missing genes: expected 'error' or 'drop', found {missing!r}.")
    wanted = list(dict.fromkeys(genes))
    kept = wanted
    for slide in slides:
        if slide.genes is None:
            raise InputError(f"{slide.where}: has no counts, so no genes can be looked up in it.")
        absent = [gene for gene in wanted if gene not in slide.columns]
        found = f"{len(wanted) - len(absent)} of {len(wanted)} genes found"
        _LOG.info("%s: %s", slide.where, found)
        if absent and (missing == "error" or len(absent) == len(wanted)):
            cure = "set --config.data.missing_genes=drop to go on without them"
            if len(absent) == len(wanted):
                cure = "give it the same kind of gene names as the panel, or leave the slide out"
            raise InputError(
                f"{slide.where}: {found}; missing {_some(absent)}. The slide's own genes look like "
                f"{_some(list(slide.genes), 3)}; {cure}."
            )
        kept = [gene for gene in kept if gene in slide.columns]
    if not kept:
        raise InputError(
            f"none of the panel's {len(wanted)} genes ({_some(wanted)}) is in all {len(slides)} "
            f"slides; the genes of {slides[0].where} look like {_some(list(slides[0].genes), 3)}. "
            "Panel and slides need the same kind of gene names."
        )
    return kept


def added_genes(slides: Sequence[Slide], genes: Sequence[str], missing: str) -> list[str]:
    """Genes that a person adds to a panel, those that every slide has; none where none is wanted.

    Args:
      slides: all of the data set.
      genes: wanted genes; repeated names count once.
      missing: as of `find_genes`, but `drop` may leave none.

    Raises:
      InputError: no slide has a gene of that name; or some slides lack it (`error`).
    """
    there = {slide.where: slide.columns for slide in slides}
    kept = []
    for gene in dict.fromkeys(genes):
        lacking = [where for where, known in there.items() if gene not in known]
        if len(lacking) == len(slides):
            raise InputError(
                f"config.data.genes: no slide has the gene {gene!r}{_near(gene, there.values())}; "
                "give names as the slides have them."
            )
        if lacking and missing == "error":
            raise InputError(
                f"config.data.genes: {lacking[0]} and {len(lacking) - 1} other slides lack the "
                f"gene {gene!r}; set --config.data.missing_genes=drop to go on without it."
            )
        if not lacking:
            kept.append(gene)
    return kept


def _near(gene: str, there: Iterable[Iterable[str]]) -> str:
    """Genes of similar names, as a question; nothing where there are none."""
    names = {str(name).casefold(): str(name) for name in sorted(set().union(*there))}
    near = [names[name] for name in difflib.get_close_matches(gene.casefold(), names)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def gene_names(var: pd.DataFrame, where: str) -> np.ndarray:
    """Gene symbols, or Ensembl ids without version where there are no symbols, [G] str.

    Args:
      var: one row per gene, indexed by symbol or Ensembl id, as in AnnData. A column of symbols
        (`gene_symbols`, `feature_name`, ...) is used where the index holds Ensembl ids.
      where: how log lines name the slide.
    """
    names = np.array([str(name).strip() for name in var.index], dtype=object)
    is_ensembl = np.array([ENSEMBL.fullmatch(name) is not None for name in names], dtype=bool)
    names[is_ensembl] = [name.split(".")[0] for name in names[is_ensembl]]
    column = next((c for c in GENE_COLUMNS if c in var.columns), None)
    if is_ensembl.any() and column is not None:
        symbols = (
            var[column]
            .astype(object)
            .where(var[column].notna(), "")
            .astype(str)
            .str.strip()
            .to_numpy()
        )
        use = is_ensembl & (symbols != "")
        names[use] = symbols[use]
        _LOG.info("%s: %d gene symbols taken from var[%r]", where, int(use.sum()), column)
    return names.astype(str)


def sum_duplicates(
    counts: sp.csr_matrix, names: np.ndarray, where: str
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Adds up the columns that share a gene name.

    Args:
      counts: [n, G].
      names: [G] gene names, possibly repeated.
      where: how log lines name the slide.

    Returns:
      counts [n, U] and the U unique names in order of first appearance.
    """
    unique, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    if len(unique) == len(names):
        return counts, names
    _LOG.info("%s: %d duplicate gene names summed", where, len(names) - len(unique))
    order = np.argsort(first)
    rank = np.argsort(order)
    ones = np.ones(len(names), dtype=counts.dtype)
    merge = sp.csr_matrix(
        (ones, (np.arange(len(names)), rank[inverse])), shape=(len(names), len(unique))
    )
    return sp.csr_matrix(counts @ merge), unique[order]


def _some(names: list[str], number: int = 5) -> str:
    return ", ".join(map(str, names[:number])) + (", ..." if len(names) > number else "")
