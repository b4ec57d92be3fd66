"""TRIPLEX: a spot, its neighbours and its slide, fused (Chung et al. 2024)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from stfm_jax.data.lattice import find_lattice, spot_spacing_um
from stfm_jax.errors import InputError
from stfm_jax.models.network import Network, NetworkSettings, OfSlide
from stfm_jax.nn.triplex import SIDE, TRIPLEX, Depths, Predictions, loss
from stfm_jax.ops.window import lattice_window
from stfm_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class TRIPLEXSettings(NetworkSettings):
    """The section `triplex`: narrower than published, for few spots and CPUs [ours]."""

    SECTION = "triplex"

    width: int = setting(64, least=1)
    heads: int = setting(4, least=1)
    fusion_depth: int = setting(1, least=1)
    slide_depth: int = setting(3, least=2)  # the convolution stands behind the first
    neighbours_depth: int = setting(1, least=1)
    fusion_dropout: float = setting(0.2)
    slide_dropout: float = setting(0.1)
    neighbours_dropout: float = setting(0.3)

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads:
            raise InputError(
                "config.triplex.width must be a multiple of config.triplex.heads, found "
                f"{self.width} and {self.heads}."
            )


@dataclasses.dataclass(frozen=True)
class TRIPLEXMethod(Network):
    """Neighbours are those of the lattice that the spots lie on; memory grows with their square."""

    settings: TRIPLEXSettings

    name = "triplex"
    papers = ("TRIPLEX, arXiv 2403.07592",)
    slidewise = True
    Settings = TRIPLEXSettings

    def module(self, num_genes: int) -> OfSlide:
        s = self.settings
        network = TRIPLEX(
            num_genes,
            s.width,
            fusion=Depths(s.fusion_depth, s.heads, 4, s.fusion_dropout),
            slide=Depths(s.slide_depth, s.heads, 4, s.slide_dropout),
            neighbours=Depths(s.neighbours_depth, s.heads, 1, s.neighbours_dropout),
        )
        return OfSlide(network)

    def placed(self, coords_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Spots of the 5 x 5 cells around each spot; of a square grid where there is no lattice."""
        try:
            steps = find_lattice(coords_um, "")[0].basis
        except InputError:
            steps = spot_spacing_um(coords_um) * np.eye(2)
        return lattice_window(coords_um, steps, SIDE)

    def losses(self, outputs: Predictions, y: jax.Array) -> jax.Array:
        return loss(outputs, y)

    def read(self, outputs: Predictions) -> Any:
        return outputs.fused

    def working_bytes(self, num_spots: int, training: bool) -> int:
        s, n = self.settings, num_spots
        scores, tokens, logits = (
            4 * s.heads * n**2, 4 * SIDE**2 * n * s.width, 4 * SIDE**4 * n * s.heads,
        )  # fmt: skip
        if not training:
            return scores + 4 * tokens + logits
        around = (s.neighbours_depth + 1) * (25 * tokens + 4 * logits)
        return s.slide_depth * 3 * scores + around
