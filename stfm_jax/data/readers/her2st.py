"""The HER2-positive breast tumours of Andersson et al. 2021, as released.

Reads both the flat folders (`ST-cnts/C2.tsv.gz`, `ST-imgs/C2.jpg`) and those of the public
repository (`data/ST-cnts/C2.tsv.gz`, `data/ST-imgs/C/C2/<anything>.jpg`). Sections are not
registered to one another here.

Reference: Andersson et al., Spatial deconvolution of HER2-positive breast cancer delineates
tumor-associated cell type interactions, Nature Communications 2021 (almaan/her2st, Zenodo 4751624).
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from stfm_jax.data import labels
from stfm_jax.data.image import AS_USUAL, Rules, with_image
from stfm_jax.data.listing import visible
from stfm_jax.data.panel import sum_duplicates
from stfm_jax.data.readers import dense_table, pitch, plain
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

PITCH_UM = 200.0  # [paper] centre to centre of neighbouring spots
_LOG = logging.getLogger("stfm_jax")
_GET = "Get the data from github.com/almaan/her2st (or Zenodo 4751624) and unpack it there."
_TABLE = "a tab-separated table with a header"
_COLUMNS = ("x", "y", "new_x", "new_y", "pixel_x", "pixel_y")
_IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def sections(root: str | Path) -> list[str]:
    """Names of the sections with both counts and spots, sorted.

    Raises:
      FileNotFoundError: the folder or its tables are not there.
    """
    base = _base(root)
    counts = {path.name.split(".")[0] for path in visible(base / "ST-cnts", "*.tsv*")}
    spots = {
        path.name.split("_selection")[0]
        for path in visible(base / "ST-spotfiles", "*_selection.tsv*")
    }
    if not counts & spots:
        raise FileNotFoundError(
            f"{base}: expected ST-cnts/<section>.tsv.gz and ST-spotfiles/<section>_selection.tsv, "
            f"found {len(counts)} and {len(spots)} with no section in common. {_GET}"
        )
    return sorted(counts & spots)


def read(
    root: str | Path, section: str, *, spacing_um: float = 16.0, rules: Rules = AS_USUAL
) -> Slide:
    """Reads one section.

    Spots are those that are selected (under tissue) and have a row of counts. Coordinates keep the
    geometry of the image: pixels times 200 um over the pitch in pixels, where the pitch is that of
    the similarity transform fitted from the adjusted array coordinates to pixels. [ours]

    Args:
      root: folder with ST-cnts, ST-spotfiles and ST-imgs, or the one with `data/` around them.
      section: such as `C2`; the first letter is the patient.
      spacing_um: distance between serial sections, which the data do not record [ours]; `z_um` is
        the number in the section's name times this.
      rules: how its image is taken.

    Raises:
      FileNotFoundError: a table of the section is missing.
      InputError: a table is damaged, or the spots do not fit the counts or the image.
    """
    base = _base(root)
    spots = _spots(_table(base, "ST-spotfiles", f"{section}_selection"))
    counts_path = _table(base, "ST-cnts", section)
    barcodes, genes, counts = _counts(counts_path)
    row = {barcode: i for i, barcode in enumerate(barcodes)}
    if len(row) < len(barcodes):
        raise InputError(f"{counts_path}: {len(barcodes) - len(row)} spots have several rows.")
    spots = spots[[barcode in row for barcode in spots.index]]
    if spots.empty:
        raise InputError(
            f"{counts_path}: none of its {len(row)} spots (such as '{barcodes[0]}') is selected in "
            f"{section}_selection.tsv; both must be of the same section."
        )
    counts, genes = sum_duplicates(
        counts[[row[barcode] for barcode in spots.index]], genes, f"section {section}"
    )
    pixels = spots[["pixel_x", "pixel_y"]].to_numpy(np.float64)
    array = spots[["new_x", "new_y"]].to_numpy(np.float64)
    where = f"section {section} ({base})"
    um_per_px = PITCH_UM / pitch.similarity(array, pixels, where, "new_x, new_y")[0]
    image = _image(base, section)
    slide = Slide(
        name=section,
        barcodes=spots.index.to_numpy().astype(str),
        coords_um=pixels * um_per_px,
        coords_in=pixels,
        spatial_unit="pixel",
        counts=counts,
        genes=genes,
        patient=section[:1],
        section=section,
        z_um=_number(section) * spacing_um,
        domains=_domains(base, section, spots.index),
        source=str(counts_path),
    )
    return slide if image is None else with_image(slide, image, rules)


def _base(root: str | Path) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. {_GET}")
    for base in (root, root / "data"):
        if (base / "ST-cnts").is_dir():
            return base
    raise FileNotFoundError(f"{root}: expected the folder ST-cnts (or data/ST-cnts) there. {_GET}")


def _table(base: Path, folder: str, stem: str) -> Path:
    for suffix in (".tsv.gz", ".tsv"):
        path = base / folder / f"{stem}{suffix}"
        if path.is_file():
            return path
    raise FileNotFoundError(f"{base / folder / stem}.tsv(.gz): no such file. {_GET}")


def _read_selection(path: Path) -> pd.DataFrame:
    table = plain.read_table(path, "\t", header=0, expected=_TABLE, advice=_GET)
    absent = [column for column in _COLUMNS if column not in table]
    if absent:
        raise InputError(
            f"{path}: expected the columns {', '.join(_COLUMNS)}, but {', '.join(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} missing. {_GET}"
        )
    return table


def _spots(path: Path) -> pd.DataFrame:
    """Selected spots, indexed by barcode `<x>x<y>`."""
    table = _read_selection(path)
    values = table[list(_COLUMNS)].apply(pd.to_numeric, errors="coerce")
    if not np.isfinite(values.to_numpy(np.float64)).all():
        raise InputError(
            f"{path}: expected numbers in the columns {', '.join(_COLUMNS)}, found others."
        )
    if "selected" in table:
        values = values[pd.to_numeric(table["selected"], errors="coerce") == 1]
    array = values[["x", "y"]].round().astype(int).astype(str)
    values.index = array["x"] + "x" + array["y"]
    return values


def _domains(base: Path, section: str, barcodes: pd.Index) -> np.ndarray | None:
    """A pathologist's labels of the spots; None where the section has none.

    They lie in ST-pat, or ST-pat/lbl of the public repository, by adjusted array coordinates; their
    pixels are of another image.
    """
    names = [f"{section}_labeled_coordinates{suffix}" for suffix in (".tsv", ".tsv.gz")]
    paths = [base / "ST-pat" / folder / name for folder in ("", "lbl") for name in names]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    table = plain.read_table(path, "\t", header=0, expected=_TABLE, advice=_GET)
    if not {"x", "y", "label"} <= set(table):
        raise InputError(f"{path}: expected the columns x, y, label, found {', '.join(table)}.")
    array = table[["x", "y"]].apply(pd.to_numeric, errors="coerce").round()
    there = np.isfinite(array).all(axis=1)  # a header may stand among the rows
    array = array[there].astype(int).astype(str)
    names = dict(zip(array["x"] + "x" + array["y"], table["label"][there], strict=True))
    return labels.domains(names.get(barcode, "") for barcode in barcodes)


def _counts(path: Path) -> tuple[np.ndarray, np.ndarray, sp.csr_matrix]:
    """Barcodes [n], genes [G] and counts [n, G] of a table."""
    with plain.reading(path, _TABLE, _GET):
        return dense_table.read(path, "\t")


def _image(base: Path, section: str) -> Path | None:
    """The section's H&E image, or None: not every section has one."""
    flat = [base / "ST-imgs" / f"{section}{suffix}" for suffix in _IMAGES]
    nested = visible(base / "ST-imgs" / section[:1] / section)
    images = [p for p in flat + nested if p.is_file() and p.suffix.lower() in _IMAGES]
    if len(images) > 1:
        _LOG.info("section %s: %d images, %s is used", section, len(images), images[0])
    return images[0] if images else None


def _number(section: str) -> int:
    """The number in a section's name: 2 for `C2`."""
    digits = re.search(r"\d+", section)
    return int(digits.group()) if digits else 0
