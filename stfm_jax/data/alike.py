"""Patients and slides that are the same under different names: a fold must not test what it trains.

Labels are compared by `labels.key`; slides by their counts, wherever their files come from.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from stfm_jax.data import labels
from stfm_jax.data.slide import Slide

_LOG = logging.getLogger("stfm_jax")
_FEWEST = 10  # spots from which on equal counts are no chance [ours]
_LOOKED_AT = 50  # spots of a slide that are compared by name
_SAME = 0.95  # share of them that must be equal, and by which numbers of spots may differ [ours]
_NAMED = 30  # slides in a line of the log


def with_one_spelling(slides: Mapping[str, Slide]) -> dict[str, Slide]:
    """The slides with every patient spelled in one way, which is said where there were several."""
    spelled = labels.one_spelling(slide.patient for slide in slides.values())
    for kept in dict.fromkeys(spelled.values()):
        several = [label for label, first in spelled.items() if first == kept != ""]
        if len(several) > 1:
            _LOG.warning("patients %s are taken for one", ", ".join(map(repr, several)))
    return {
        name: dataclasses.replace(slide, patient=spelled[slide.patient])
        if spelled[slide.patient] != slide.patient
        else slide
        for name, slide in slides.items()
    }


def told(slides: Mapping[str, Slide]) -> str:
    """The patients with their slides, for the log."""
    of: dict[str, list[str]] = {}
    for name, slide in list(slides.items())[:_NAMED]:
        of.setdefault(slide.patient, []).append(name)
    silent = of.pop("", [])
    parts = [f"{patient} ({', '.join(names)})" for patient, names in of.items()]
    parts += [f"not told of {', '.join(silent)}"] if silent else []
    return "; ".join(parts) + ("; ..." if len(slides) > _NAMED else "")


def copies(slides: Mapping[str, Slide]) -> Iterator[tuple[str, str]]:
    """Pairs of names of one slide: the same counts, in whatever order or under other barcodes."""
    counted = {
        name: (slide, pd.Series(slide.counts.sum(axis=1).A1, slide.barcodes))
        for name, slide in slides.items()
        if slide.counts is not None and slide.num_spots >= _FEWEST
    }
    for (a, (one, totals)), (b, (other, others)) in itertools.combinations(counted.items(), 2):
        low, high = sorted((one.num_spots, other.num_spots))
        if low >= _SAME * high and (
            _equal(np.sort(totals), np.sort(others)) or _same_spots(one, totals, other, others)
        ):
            yield a, b


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return len(a) == len(b) and bool((a == b).all()) and bool(np.ptp(a) > 0)


def _same_spots(one: Slide, totals: pd.Series, other: Slide, others: pd.Series) -> bool:
    """Whether spots of one name have the same counts, of the genes that both slides have."""
    some = np.linspace(0, len(totals) - 1, min(_LOOKED_AT, len(totals))).astype(int)
    at = others.index.get_indexer(totals.index[some])
    found = at >= 0
    if found.mean() < _SAME:
        return False
    some, at = some[found], at[found]
    if np.array_equal(one.genes, other.genes):
        a, b = totals.to_numpy()[some], others.to_numpy()[at]
    else:
        common = np.intersect1d(one.genes, other.genes)
        a, b = (
            s.counts[rows][:, pd.Index(s.genes).get_indexer(common)].sum(axis=1).A1
            for s, rows in ((one, some), (other, at))
        )
    return bool((a == b).mean() >= _SAME and np.ptp(a) > 0)
