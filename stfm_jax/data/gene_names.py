"""Genes of several slides under one name each, and why slides share none.

What is surely one gene is matched: spaces around names, versions of Ensembl ids (`panel.gene_names`
takes both off), and letter case, where slides agree in most names or in nearly all but for case. A
slide of another species agrees in neither.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence

import numpy as np

from stfm_jax.data.panel import ENSEMBL, sum_duplicates
from stfm_jax.data.slide import Slide

_LOG = logging.getLogger("stfm_jax")
# [ours] Shares of a slide's genes that are known as they are spelled, or but for letter case, from
# which on case says nothing: mouse and human genes agree in about 80 % but for case.
_MOST, _NEARLY_ALL = 0.5, 0.95


def with_one_spelling(slides: Iterable[Slide], panel: Sequence[str] = ()) -> list[Slide]:
    """Slides whose genes are spelled as in the panel, or in the first slide that has them.

    Args:
      slides: with genes or without.
      panel: genes whose spelling goes before.
    """
    spelled = {gene.casefold(): str(gene) for gene in panel}
    found = []
    for slide in slides:
        if slide.genes is not None:
            slide = _respelled(slide, spelled)
            for gene in slide.genes:
                spelled.setdefault(str(gene).casefold(), str(gene))
        found.append(slide)
    return found


def _respelled(slide: Slide, spelled: dict[str, str]) -> Slide:
    """A slide with genes as they are spelled, by letters without case."""
    known = np.array([spelled.get(str(gene).casefold(), "") for gene in slide.genes], dtype=str)
    there, same = known != "", known == slide.genes
    other = there & ~same
    if not other.any() or max(same.mean() / _MOST, there.mean() / _NEARLY_ALL) < 1:
        return slide
    first = int(np.flatnonzero(other)[0])
    _LOG.info(
        "%s: %d genes are spelled in another letter case, such as %r for %r, and taken for the "
        "same",
        *(slide.where, other.sum(), str(slide.genes[first]), str(known[first])),
    )
    names = np.where(other, known, slide.genes)
    counts, genes = sum_duplicates(slide.counts, names, slide.where)
    return dataclasses.replace(slide, counts=counts, genes=genes)


def why_none(slides: Sequence[Slide]) -> str:
    """Why slides share no gene, and what to do."""
    ids = [_are_ids(slide) for slide in slides]
    if any(ids) and not all(ids):
        symbols, others = slides[ids.index(False)], slides[ids.index(True)]
        return (
            f"{others.where} names genes by Ensembl ids ({_some(others)}), {symbols.where} by "
            f"symbols ({_some(symbols)}); store the symbols in var['gene_symbols'] beside the ids"
        )
    one, other = _farthest(slides)
    if _folded(one) & _folded(other):
        return (
            f"{one.where} and {other.where} spell genes in another letter case ({_some(one)}; "
            f"{_some(other)}), as human and mouse do; leave the slides of one species"
        )
    return (
        f"{one.where} has genes like {_some(one)}, {other.where} like {_some(other)}; give slides "
        "with the same kind of gene names, or of one panel"
    )


def _farthest(slides: Sequence[Slide]) -> tuple[Slide, Slide]:
    """The first slide, and the one that shares the fewest genes with it."""
    first = slides[0].columns.keys()
    fewest = min(slides[1:], key=lambda s: len(first & s.columns.keys()), default=slides[0])
    return slides[0], fewest


def _are_ids(slide: Slide) -> bool:
    some = slide.genes[:100]
    return sum(ENSEMBL.fullmatch(str(gene)) is not None for gene in some) > len(some) / 2


def _folded(slide: Slide) -> set[str]:
    return {str(gene).casefold() for gene in slide.genes}


def _some(slide: Slide) -> str:
    return ", ".join(map(str, slide.genes[:3]))
