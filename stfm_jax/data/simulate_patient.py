"""How simulated patients differ: stain, scanner, depth, mixture, programs shown, genes.

Seeds alone make near strangers: other tissue, a little other stain and depth. Each dial of
`TissueParams` (`stranger_*`) adds one difference more, in proportion to it and of a random stream
of its own, so that no dial moves what another one does. At 1 patients are meant to lie as far apart
as strangers of other laboratories; the sizes below are not fitted to any. [ours]
"""

from __future__ import annotations

import dataclasses

import numpy as np

from stfm_jax.data.simulate_params import TissueParams
from stfm_jax.data.simulate_patches import Scanner, Stain, draw_stain
from stfm_jax.data.simulate_tissue import CELL_TYPES, DOMAINS, Tissue, stream

# At a dial of 1, standard deviations between patients unless said.
STAIN_VECTOR, STAIN_STRENGTH = 0.08, 0.35  # of optical density, and of log strength
BLUR_UM, GAIN, PIXEL = 1.5, 0.12, 0.3  # the blur's sigma is half-normal; log gain; log pixel size
DEPTH = 0.8  # of log depth
DOMAIN, CELL_TYPE = 0.5, 0.7  # of the domains' logits, of the log shares of cell types
SHOWN = 0.9  # correlation of a shown program with the image; each is shown with probability 1/2
LEVEL, _MOST_LEVEL = np.log(4.0), np.log(100.0)  # of the log mean of a gene, and its bound
LOST = 0.15  # probability that a gene is not detected
_MOST_SHOWN, _MOST_LOST = 0.95, 0.9


@dataclasses.dataclass(frozen=True)
class Patient:
    """One patient, by whom all sections of a volume are changed alike."""

    name: str
    seed: int
    params: TissueParams
    scanner: Scanner
    depth: float  # factor of all counts
    domain_shift: np.ndarray  # [domains] added to the domains' bias
    type_shift: np.ndarray  # [types] float32, added to the log shares of cell types
    shown: np.ndarray  # [programs] float32, correlation of each with the shape of the domains
    level: np.ndarray  # [g] factor of each gene's mean, the same at all spots
    detected: np.ndarray  # [g] bool, whether the panel has a gene

    def stain(self, k: int) -> Stain:
        """Stain of section k."""
        rngs = (stream(self.seed, name) for name in ("stain", "stranger stain"))
        amount = self.params.stranger_stain * np.array([STAIN_VECTOR, STAIN_STRENGTH])
        own, stranger = rngs
        return draw_stain(own, stream(self.seed, "stain", k), stranger, *amount)

    def tissue(self, tissue: Tissue) -> Tissue:
        """The patient's tissue, of one that was grown without dials."""
        return dataclasses.replace(
            tissue,
            domain_bias=tissue.domain_bias + self.domain_shift,
            type_shift=self.type_shift,
            shown=self.shown,
            shown_axes=_shown_axes(self.params),
        )


def draw_patient(params: TissueParams, seed: int, name: str) -> Patient:
    """Draws the patient of a volume."""
    mixture = stream(seed, "stranger mixture")
    scanner = stream(seed, "stranger scanner")
    log_depth = params.patient_depth * stream(seed, "patient depth").normal()
    log_depth += params.stranger_depth * DEPTH * stream(seed, "stranger depth").normal()
    shown = stream(seed, "stranger programs").uniform(size=params.num_programs) < 0.5
    lost = min(params.stranger_panel * LOST, _MOST_LOST)
    shift = params.stranger_mixture * DOMAIN * mixture.normal(size=len(DOMAINS))
    types = params.stranger_mixture * CELL_TYPE * mixture.normal(size=len(CELL_TYPES))
    level = stream(seed, "stranger genes").normal(size=params.num_genes)
    level = np.clip(params.stranger_genes * LEVEL * level, -_MOST_LEVEL, _MOST_LEVEL)
    return Patient(
        name=name,
        seed=seed,
        params=params,
        scanner=_draw_scanner(params.stranger_scanner, scanner),
        depth=float(np.exp(log_depth)),
        domain_shift=shift,
        type_shift=types.astype(np.float32),
        shown=(shown * min(params.stranger_programs * SHOWN, _MOST_SHOWN)).astype(np.float32),
        level=np.exp(level),
        detected=stream(seed, "stranger panel").uniform(size=params.num_genes) >= lost,
    )


def _draw_scanner(dial: float, rng: np.random.Generator) -> Scanner:
    blur, pixel, *gain = rng.normal(size=5)
    return Scanner(
        blur_um=dial * BLUR_UM * abs(blur),
        gain=np.exp(dial * GAIN * np.array(gain)),
        pixel=float(np.exp(np.clip(dial * PIXEL * pixel, -1.0, 1.0))),
    )


def _shown_axes(params: TissueParams) -> np.ndarray:
    """What of the domains' shape each program follows where it is shown, [domains, programs].

    The same in all patients of equal signatures; of unit length, so that programs keep variance 1.
    """
    rng = stream(params.signature_seed, "shown axes")
    axes = rng.normal(size=(len(DOMAINS), params.num_programs))
    return (axes / np.linalg.norm(axes, axis=0)).astype(np.float32)
