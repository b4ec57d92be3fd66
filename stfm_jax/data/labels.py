"""Labels that people and programs write, compared however they are spelled.

`P1 ` is `p1`, `1.0` is `1`, `007` is `7`, `Patient_2` is `patient 2`; nothing else is the same.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

_LOG = logging.getLogger("stfm_jax")
_NUMBER = re.compile(r"[+-]?\d{1,300}(?:\.0*)?")
_BETWEEN = re.compile(r"[\s_-]+")
_SILENT = frozenset(("", "nan", "none", "na", "n/a", "<na>", "null", "unknown"))
_UNDECIDED = frozenset(("undetermined", "undecided", "unlabeled", "unlabelled"))  # of a spot
# What a barcode is without the marks of its sample: nucleotides, a bin, or a place of an array.
_CORE = re.compile(r"[ACGT]{10,}|s_\d+um_\d+_\d+|-?\d+x-?\d+")
_FEWEST = 3  # spots of a slide: names of fewer spots name no slides [ours]
# Columns of `obs` by which files of several slides name them, in lower case without separators.
_SLIDE_COLUMNS = frozenset(
    "library libraryid sample sampleid samplename samples batch batchid batchname slice sliceid "
    "slicename slide slideid slidename sectionid sectionname capturearea puck puckid origident "
    "imageid datasetid".split()
)


def said(label: object) -> str:
    """A label without spaces around it; "" where it says nothing (`nan`, `None`, `unknown`)."""
    text = unicodedata.normalize("NFKC", str(label)).strip()
    return "" if text.casefold() in _SILENT else text


def key(label: object) -> str:
    """By which labels are compared."""
    text = said(label)
    if _NUMBER.fullmatch(text):
        return str(int(text.partition(".")[0]))
    return _BETWEEN.sub(" ", text).casefold()


def domains(values: Iterable[object]) -> np.ndarray:
    """A pathologist's labels of spots [n] str, "" for what leaves one undecided."""
    texts = (said(value) for value in values)
    return np.array(["" if text.casefold() in _UNDECIDED else text for text in texts], dtype=str)


def is_slide_column(name: object) -> bool:
    """Whether a column says which slide a spot is of."""
    text = re.sub(r"[\W_]+", "", str(name)).lower()
    return text in _SLIDE_COLUMNS or (text == "section" and name != "section")


def marks(barcodes: Iterable[str]) -> list[str]:
    """What stands around barcodes where that tells several slides apart, as `-1`, `-2`."""
    names = pd.Series(list(barcodes), dtype=str)
    cores = names.str.contains(_CORE)
    return several(names.str.replace(_CORE, "", n=1, regex=True)) if cores.all() else []


def several(values: pd.Series) -> list[str]:
    """The names of several slides; none where a column names one, or something else."""
    found = sorted({said(each) for each in values.unique()})
    return found if 1 < len(found) <= len(values) / _FEWEST else []


def one_spelling(labels: Iterable[str]) -> dict[str, str]:
    """For each label how the first that is the same is spelled."""
    first: dict[str, str] = {}
    return {label: first.setdefault(key(label), said(label)) for label in labels}


def places(names: Sequence[str], among: Sequence[str], where: str) -> np.ndarray:
    """Where each name is among others, [n]; -1: nowhere.

    Names that are not there as they are spelled are looked for by `key`, where it tells both sides'
    names apart; this is said.

    Args:
      names: [n].
      among: [m], each once.
      where: how the log line names them.
    """
    found = pd.Index(among).get_indexer(pd.Index(names))
    lost = np.flatnonzero(found < 0)
    if not len(lost):
        return found
    mine, theirs = pd.Index(map(key, names)), pd.Index(map(key, among))
    if mine.has_duplicates or theirs.has_duplicates:
        return found
    others = theirs.get_indexer(mine[lost])
    if (others >= 0).any():
        i = lost[others >= 0][0]
        _LOG.info(
            "%s: %d names are spelled otherwise, such as %r for %r, and taken for the same",
            *(where, (others >= 0).sum(), str(names[i]), str(among[theirs.get_loc(mine[i])])),
        )
    found = found.copy()
    found[lost] = others
    return found
