"""HisToGene: a transformer over all spots of a slide (Pang et al. 2021)."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from stfm_jax.data.lattice import grid_cells
from stfm_jax.models.network import Network, NetworkSettings, OfSlide
from stfm_jax.nn.histogene import HisToGene
from stfm_jax.settings import setting

_LOG = logging.getLogger("stfm_jax")


@dataclasses.dataclass(frozen=True)
class HisToGeneSettings(NetworkSettings):
    """The section `histogene`: smaller than published, for few spots and CPUs [ours]."""

    SECTION = "histogene"

    width: int = setting(256, least=1)
    depth: int = setting(4, least=1)
    heads: int = setting(4, least=1)
    dropout: float = setting(0.1)
    positions: int = setting(128, least=1)


@dataclasses.dataclass(frozen=True)
class HisToGeneMethod(Network):
    """All spots see all, so memory grows with their square; too large a slide has no row."""

    settings: HisToGeneSettings

    name = "histogene"
    papers = ("HisToGene, doi 10.1101/2021.11.28.470212",)
    slidewise = True
    Settings = HisToGeneSettings

    def module(self, num_genes: int) -> OfSlide:
        s = self.settings
        return OfSlide(HisToGene(num_genes, s.width, s.depth, s.heads, s.dropout, s.positions))

    def placed(self, coords_um: np.ndarray) -> tuple[np.ndarray]:
        cells, last = grid_cells(coords_um), self.settings.positions - 1
        beyond = int((cells > last).any(axis=1).sum())
        if beyond:
            _LOG.warning(
                "histogene: %s of %s spots of a slide lie beyond %s positions in x or y, and share "
                "the last; set --config.histogene.positions=%s for places of their own",
                f"{beyond:,}", f"{len(cells):,}", last + 1, int(cells.max()) + 1,
            )  # fmt: skip
        return (np.minimum(cells, last),)

    def working_bytes(self, num_spots: int, training: bool) -> int:
        s, n = self.settings, num_spots
        scores, activations = 4 * s.heads * n**2, 4 * s.width * n
        if not training:
            return scores + 8 * activations
        return s.depth * (3 * scores + 40 * activations)
