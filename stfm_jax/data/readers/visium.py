"""Visium slides as Space Ranger 1 to 4 wrote them: a folder `outs`, or a public download.

Micrometres per pixel follow from the pitch of the spots, 100 um, and not from the diameter in
scalefactors_json.json: that is of a spot of 65 um by 10x Genomics' pages, of 55 by others. [ours]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stfm_jax.data.readers import pitch, space_ranger
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError

PITCH_UM = 100.0  # centre to centre of neighbouring spots
STEP_UM = (PITCH_UM / 2, PITCH_UM * np.sqrt(0.75))  # of a column and a row of the array
DIAMETERS_UM = (65.0, 55.0)  # that spot_diameter_fullres is taken to be of
LOOKED_FOR = "spatial/tissue_positions.csv or tissue_positions_list.csv"


def is_one(folder: Path) -> bool:
    """Whether a folder holds a capture area of Visium.

    Raises:
      InputError: it holds several, or an aggregated run.
    """
    return space_ranger.find(folder) is not None


def read(
    folder: str | Path,
    name: str,
    *,
    counts: bool = True,
    um_per_px: float | None = None,
    fields: str = "data",
) -> Slide:
    """Reads the spots in the tissue; see `space_ranger.slide` for the arguments.

    Raises:
      InputError, FileNotFoundError: the folder holds no capture area, or several; a file is
        damaged, or does not belong to the others.
    """
    folder = Path(folder)
    outs = space_ranger.find(folder)
    if outs is None:
        raise InputError(
            f"{folder}: expected a folder that Space Ranger wrote, with {LOOKED_FOR}, found none "
            "there nor in outs/; give the folder outs."
        )
    return space_ranger.slide(
        outs, name, STEP_UM, _scales, counts=counts, um_per_px=um_per_px, fields=fields
    )


def _scales(scalefactors: dict[str, Any], by_pitch: float) -> dict[str, float | None]:
    across = space_ranger.positive(scalefactors, "spot_diameter_fullres")
    return {
        "the distance of neighbouring spots": by_pitch,
        "spot_diameter_fullres of scalefactors_json.json": across and by_diameter(across, by_pitch),
    }


def by_diameter(across_px: float, by_pitch: float) -> float:
    """Micrometres per pixel by the spots' diameter: the one of DIAMETERS_UM that fits, or 65."""
    scales = [diameter / across_px for diameter in DIAMETERS_UM]
    fitting = [scale for scale in scales if pitch.agree(scale, by_pitch)] or scales[:1]
    return min(fitting, key=lambda scale: abs(np.log(scale / by_pitch)))
