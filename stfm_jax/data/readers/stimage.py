"""STImage-1K4M as released: slides of many studies, by tissue.

    <root>/{ST,Visium}/coord/<slide>_coord.csv         spot, yaxis, xaxis, r; pixels of the image
    <root>/{ST,Visium}/gene_exp/<slide>_count.csv      spots x genes, raw counts
    <root>/{ST,Visium}/image/<slide>.png               a PNG, JPEG or TIFF, whatever its name says
    <root>/meta/meta_all_gene*.csv                     slide, species, tissue, pmid, involve_cancer

Micrometres per pixel are nowhere; they follow from the distance of the spots. A slide's patient is
not told, so that its study stands for it: slides that share an article or a GEO series are one
study. The four slides of Visium HD are not read.

Reference: Chen et al., STimage-1K4M, NeurIPS 2024 (data: jiawennnn/STimage-1K4M, Hugging Face).
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from stfm_jax.data.image import AS_USUAL, Rules, with_image
from stfm_jax.data.listing import visible
from stfm_jax.data.panel import sum_duplicates
from stfm_jax.data.readers import dense_table, pitch, plain, visium
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.runtime.files import require_inside

HOW_TO_GET = (
    "Get the data set jiawennnn/STimage-1K4M from Hugging Face: the folders meta, ST and Visium."
)
TECHNOLOGIES = ("ST", "Visium")
ST_STEP_UM = 200.0  # of a column and a row of Spatial Transcriptomics' first array
# Its second array, staggered: spots 150 um apart, columns 150 / sqrt(2) (issue 10 of the data set's
# repository, which cites the study).
_OTHER_STEPS_UM = {"GSE144239": 150.0 / np.sqrt(2)}
_META = ("slide", "species", "tissue", "pmid", "involve_cancer", "tech")
_COORDS = ("xaxis", "yaxis")
_LOG = logging.getLogger("stfm_jax")


def slides(root: Path, tissue: str) -> dict[str, tuple[str, str]]:
    """Technology and study of the human slides of a tissue whose study is about cancer, by name.

    Args:
      root: of the data set.
      tissue: as its table spells it: breast, kidney, ...

    Raises:
      FileNotFoundError: there is no table, or none of its slides.
      InputError: the table is damaged, or does not know the tissue.
    """
    table = _meta(root)
    cancer = table["involve_cancer"].str.lower() == "true"
    human = table[(table["species"].str.lower() == "human") & cancer]
    here = human[human["tissue"].str.lower() == tissue.lower()]
    here = here[here["tech"].isin(TECHNOLOGIES)]
    if here.empty:
        there = human["tissue"].value_counts()
        raise InputError(
            f"config.data.task: {root} has no human slides of the tissue {tissue!r} from a study "
            f"of cancer; it has {', '.join(f'{name} ({n})' for name, n in there.items())}."
        )
    study = _studies(table)
    listed = {row.slide: (row.tech, study[row.slide]) for row in here.itertuples()}
    for name, (technology, _) in listed.items():
        require_inside(f"{technology}/{name}", root / "meta")
    found = {name: about for name, about in listed.items() if _counts(root, name, about[0])}
    if not found:
        raise FileNotFoundError(
            f"{root}: expected {{{','.join(TECHNOLOGIES)}}}/gene_exp/<slide>_count.csv for the "
            f"{len(listed)} slides of {tissue}, such as {next(iter(listed))}; found none. "
            f"{HOW_TO_GET}"
        )
    if len(found) < len(listed):
        _LOG.info("%s: %d of %d slides of %s are there", root, len(found), len(listed), tissue)
    return found


def read(root: Path, name: str, technology: str, study: str, rules: Rules = AS_USUAL) -> Slide:
    """Reads a slide; its study stands for the patient.

    Raises:
      FileNotFoundError: its coordinates are missing.
      InputError: a file is damaged, or the spots do not fit the counts or the image.
    """
    path = _counts(root, name, technology)
    if path is None:
        raise FileNotFoundError(f"{root}: has no counts of the slide {name!r}. {HOW_TO_GET}")
    with plain.reading(path, "spots x genes with commas between"):
        barcodes, genes, counts = dense_table.read(path, ",")
    coords_path = root / technology / "coord" / f"{name}_coord.csv"
    coords = _coords(coords_path).reindex(barcodes)
    kept = coords.notna().all(axis=1).to_numpy()
    if not kept.any():
        raise InputError(
            f"{path}: none of its {len(barcodes)} spots (such as {str(barcodes[0])!r}) is in "
            f"{coords_path}; both must be of the same slide."
        )
    if not kept.all():
        _LOG.info("%s: %d of %d spots have no place", path, (~kept).sum(), len(kept))
    spots = np.char.replace(barcodes[kept], f"{name}_", "")
    pixels = coords[kept].to_numpy(np.float64)
    scale = _um_per_px(spots, pixels, technology, name, coords_path)
    counts, genes = sum_duplicates(counts[np.flatnonzero(kept)], genes, name)
    image = root / technology / "image" / f"{name}.png"
    slide = Slide(
        name=name,
        barcodes=spots,
        coords_um=pixels * scale,
        coords_in=pixels,
        spatial_unit="pixel",
        counts=counts,
        genes=genes,
        patient=study,
        source=str(path),
    )
    return with_image(slide, image, rules) if image.is_file() else slide


def _counts(root: Path, name: str, technology: str) -> Path | None:
    folder = root / technology / "gene_exp"
    paths = (folder / f"{name}_count.csv{end}" for end in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _meta(root: Path) -> pd.DataFrame:
    tables = visible(root / "meta", "meta_all_gene*.csv") or visible(root / "meta", "meta_all*.csv")
    if not tables:
        raise FileNotFoundError(
            f"{root}: expected meta/meta_all_gene02122025.csv there, found none. {HOW_TO_GET}"
        )
    table = plain.read_table(tables[-1], ",", header=0)  # the newest: they end with a date
    absent = [column for column in _META if column not in table]
    if absent:
        raise InputError(
            f"{tables[-1]}: expected the columns {', '.join(_META)}, but {', '.join(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} missing. {HOW_TO_GET}"
        )
    wrong = [name for name in table["slide"] if "/" in name or name.startswith(".")]
    if wrong:
        raise InputError(f"{tables[-1]}: {wrong[0]!r} cannot be the name of a slide.")
    return table


def _studies(table: pd.DataFrame) -> dict[str, str]:
    """The study of each slide: named by the first of the keys that its slides share."""
    of: dict[str, str] = {}

    def root_of(key: str) -> str:
        while of.setdefault(key, key) != key:
            key = of[key]
        return key

    keys = {row.slide: _keys(row.slide, row.pmid) for row in table.itertuples()}
    for own in keys.values():
        first, *others = map(root_of, own)
        for other in others:
            of[other] = first
    return {name: root_of(own[0]) for name, own in keys.items()}


def _keys(name: str, pmid: str) -> list[str]:
    """What a slide shares with the others of its study: a GEO series or a source, and articles."""
    series = re.match(r"GSE\d+", name)
    source = re.match(r"[^_]+_[^_]+_.+?_\d{8}", name)  # Species_Organ_Source_MMDDYYYY
    own = series or source
    return [own.group() if own else name, *(f"pmid{each}" for each in re.findall(r"\d+", pmid))]


def _coords(path: Path) -> pd.DataFrame:
    """Places (x, y) by spot, those that are numbers."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. {HOW_TO_GET}")
    table = plain.read_table(path, ",", header=0, index_col=0)
    absent = [column for column in _COORDS if column not in table]
    if absent or table.index.has_duplicates:
        raise InputError(
            f"{path}: expected the columns yaxis, xaxis and r, and every spot once, found "
            f"{', '.join(map(str, table.columns))}. {HOW_TO_GET}"
        )
    return table[list(_COORDS)].apply(pd.to_numeric, errors="coerce")


def _um_per_px(
    spots: np.ndarray, pixels: np.ndarray, technology: str, name: str, path: Path
) -> float:
    """By the array that names of spots say (`10x13`), else by the distance of neighbours."""
    if len(pixels) < 2:
        raise InputError(f"{path}: one spot says nothing of micrometres per pixel.")
    places = [re.fullmatch(r"(\d+)x(\d+)", spot) for spot in spots]
    if technology == "ST" and all(places):
        array = np.array([match.groups() for match in places], dtype=float)
        step_um = _OTHER_STEPS_UM.get(name.split("_")[0], ST_STEP_UM)
        return step_um / pitch.similarity(array, pixels, str(path), "the spots' names", True)[0]
    between = float(np.median(cKDTree(pixels).query(pixels, k=2)[0][:, 1]))
    if not between > 0:
        raise InputError(f"{path}: most of its spots lie on one another. {HOW_TO_GET}")
    return (ST_STEP_UM if technology == "ST" else visium.PITCH_UM) / between
