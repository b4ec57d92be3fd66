"""Visium HD as Space Ranger 3 and 4 wrote it: bins of one size, of `binned_outputs/`.

    [outs/]binned_outputs/square_008um/spatial/{tissue_positions.parquet,scalefactors_json.json}
    [outs/]binned_outputs/square_008um/{filtered,raw}_feature_bc_matrix{.h5,/}

Cells of `segmented_outputs/` are not read. Counts stay sparse, and of the table of bins only those
in the tissue are kept.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from stfm_jax.data.listing import visible
from stfm_jax.data.readers import space_ranger
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
_BINS = re.compile(r"square_(\d+)um")
_CELLS = "segmented_outputs"
LOOKED_FOR = "binned_outputs/square_008um/spatial/tissue_positions.parquet"


def is_one(folder: Path) -> bool:
    """Whether a folder holds bins of Visium HD, or cells that were made of them."""
    return bool(bins(folder)) or _cells(folder) is not None


def bins(folder: Path) -> dict[int, Path]:
    """The folders of bins by their side in micrometres; of such a folder itself, that alone."""
    if match := _BINS.fullmatch(folder.name):
        return {int(match.group(1)): folder}
    for root in (folder, folder / "outs", folder / "binned_outputs",
                 folder / "outs/binned_outputs"):  # fmt: skip
        found = {int(m.group(1)): path for path in visible(root, "square_*um")
                 if path.is_dir() and (m := _BINS.fullmatch(path.name))}  # fmt: skip
        if found:
            return dict(sorted(found.items()))
    return {}


def read(
    folder: str | Path,
    name: str,
    bin_um: float,
    *,
    counts: bool = True,
    um_per_px: float | None = None,
    fields: str = "data",
) -> Slide:
    """Reads the bins in the tissue; see `space_ranger.slide` for the other arguments.

    Args:
      folder: `outs`, the folder around it, or one of bins.
      bin_um: side of the bins that are read.

    Raises:
      InputError, FileNotFoundError: there are no such bins; a file is damaged, or does not belong
        to the others.
    """
    folder = Path(folder)
    there = bins(folder)
    if not there:
        raise InputError(_no_bins(folder))
    if len(there) == 1 and folder in there.values():
        (bin_um,) = there
    if bin_um not in there:
        raise InputError(
            f"{folder}: has no bins of {bin_um:g} um, but of {', '.join(map(str, there))}; choose "
            f"one by --config.{fields}.bin_um."
        )
    if _cells(folder) is not None:
        _LOG.info("%s: %s is not read; bins of %g um are", folder, _CELLS, bin_um)
    outs = space_ranger.find(there[int(bin_um)])
    if outs is None:
        raise FileNotFoundError(
            f"{there[int(bin_um)]}: expected spatial/tissue_positions.parquet there, found none; "
            "get it from Space Ranger's outs."
        )
    return space_ranger.slide(
        outs, name, (bin_um, bin_um), _scales, counts=counts, um_per_px=um_per_px, fields=fields
    )


def _scales(scalefactors: dict[str, Any], by_pitch: float) -> dict[str, float | None]:
    # [ours] The file's own is exact here, and some who cut such folders number bins anew.
    return {
        "microns_per_pixel of scalefactors_json.json": space_ranger.positive(
            scalefactors, "microns_per_pixel"
        ),
        "the distance of neighbouring bins": by_pitch,
    }


def _cells(folder: Path) -> Path | None:
    there = (folder / _CELLS, folder / "outs" / _CELLS)
    return next((path for path in there if path.is_dir()), None)


def _no_bins(folder: Path) -> str:
    if (cells := _cells(folder)) is not None:
        return (
            f"{cells}: segmented cells are not read; expected {LOOKED_FOR} beside them: add the "
            "folder binned_outputs of the same run."
        )
    return f"{folder}: expected {LOOKED_FOR} there or in outs/, found none; give the folder outs."
