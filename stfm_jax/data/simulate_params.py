"""What simulated tissue is made from: platforms, and the fields of `data.tissue`. [ours]"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from stfm_jax.errors import InputError

DIALS = (
    "stranger_stain",
    "stranger_scanner",
    "stranger_depth",
    "stranger_mixture",
    "stranger_programs",
    "stranger_genes",
    "stranger_panel",
)


@dataclasses.dataclass(frozen=True)
class Lattice:
    """A platform's spot layout."""

    pitch_um: float  # centre to centre
    cell: float  # area per spot over pitch squared
    capture_um2: float  # area whose RNA a spot captures
    mean_count: float  # default mean UMI count per gene and spot


LATTICES = {
    "square": Lattice(200.0, 1.0, np.pi * 50.0**2, 10.0),  # Spatial Transcriptomics
    "hex": Lattice(100.0, np.sqrt(3) / 2, np.pi * 27.5**2, 4.0),  # Visium
    "bins": Lattice(8.0, 1.0, 64.0, 0.1),  # Visium HD
    "random": Lattice(100.0, 1.0, np.pi * 27.5**2, 4.0),
}


@dataclasses.dataclass(frozen=True)
class TissueParams:
    """What to simulate. Volumes of equal params and different seeds share gene signatures."""

    num_sections: int = 5
    spots: int = 250  # expected per section, before losses; sets the tissue's area
    num_genes: int = 200
    lattice: str = "square"  # one of LATTICES
    pitch_um: float | None = None  # the lattice's own when None
    mean_count: float | None = None  # mean UMI count per gene and spot; the lattice's when None
    section_gap_um: float = 16.0
    z_stretch: float = 2.0  # how much faster the tissue changes along z than in the plane
    domain_length_um: float = 650.0
    local_length_um: float = 150.0
    program_length_um: float = 450.0
    num_programs: int = 4
    program_strength: float = 0.4  # std of the log mean due to the hidden programs
    program_nugget: float = 0.3  # share of a program's variance that differs from spot to spot
    depth_smooth: float = 0.25  # std of log depth, part that varies smoothly over a section
    depth_noise: float = 0.22  # std of log depth, part of its own for each spot
    patient_depth: float = 0.25  # std of log depth between volumes
    rotation_deg: float = 0.0  # sections are rotated by up to this, either way
    shift_um: float = 0.0  # sections are shifted by up to this along x and y
    flip: float = 0.0  # probability that a section lies upside down
    jitter_um: float = 0.0  # std of spots' displacement from the lattice
    lost: float = 0.0  # share of spots lost
    um_per_px: float = 1.0  # of the H&E image
    signature_seed: int = 0
    # How far patients differ beyond what their seeds make of them, see `simulate_patient`. 0: near
    # strangers, as they always were; 1: far ones.
    stranger_stain: float = 0.0
    stranger_scanner: float = 0.0  # blur, gain and pixel size
    stranger_depth: float = 0.0
    stranger_mixture: float = 0.0  # of domains and cell types
    stranger_programs: float = 0.0  # which hidden programs the image shows
    stranger_genes: float = 0.0  # level of each gene
    stranger_panel: float = 0.0  # genes that are not detected

    def __post_init__(self):
        if self.lattice not in LATTICES:
            raise InputError(
                f"simulated tissue: lattice must be one of {', '.join(LATTICES)}, found "
                f"{self.lattice!r}."
            )
        counts = ("num_sections", "spots", "num_genes", "num_programs")
        lengths = ("domain_length_um", "local_length_um", "program_length_um", "um_per_px")
        given = [name for name in ("pitch_um", "mean_count") if getattr(self, name) is not None]
        self._require(counts, "at least 1", lambda value: value >= 1)
        self._require((*lengths, *given), "positive", lambda value: value > 0)
        self._require(("flip", "lost", "program_nugget"), "in [0, 1]", lambda v: 0 <= v <= 1)
        self._require(("section_gap_um", "jitter_um", *DIALS), "not negative", lambda v: v >= 0)

    def _require(self, names: Sequence[str], what: str, holds: Callable[[float], bool]) -> None:
        for name in names:
            value = getattr(self, name)
            if not holds(value):
                raise InputError(
                    f"simulated tissue: expected {name} to be {what}, found {value}; set it so."
                )

    @property
    def pitch(self) -> float:
        """Distance between neighbouring spots in micrometres."""
        return self.pitch_um or LATTICES[self.lattice].pitch_um
