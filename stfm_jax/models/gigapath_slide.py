"""GigaPath's slide encoder, trained from scratch (Xu et al. 2024)."""

from __future__ import annotations

import dataclasses

import numpy as np

from stfm_jax.data.lattice import grid_cells
from stfm_jax.errors import InputError
from stfm_jax.models.network import Network, NetworkSettings, OfSlide
from stfm_jax.nn.longnet import LongNet, score_bytes
from stfm_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class LongNetSettings(NetworkSettings):
    """The section `longnet`: smaller than published, for few slides and CPUs [ours]."""

    SECTION = "longnet"

    width: int = setting(256, least=4)
    depth: int = setting(4, least=1)
    heads: int = setting(8, least=1)
    dropout: float = setting(0.1)

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads or self.width % 4:
            raise InputError(
                "config.longnet.width must be a multiple of 4 and of config.longnet.heads, found "
                f"{self.width} and {self.heads}."
            )


@dataclasses.dataclass(frozen=True)
class GigaPathSlide(Network):
    """Dilated attention over the spots of a slide, row by row."""

    settings: LongNetSettings

    name = "gigapath_slide"
    papers = ("GigaPath, doi 10.1038/s41586-024-07441-w",)
    slidewise = True
    Settings = LongNetSettings

    def module(self, num_genes: int) -> OfSlide:
        s = self.settings
        return OfSlide(LongNet(num_genes, s.width, s.depth, s.heads, s.dropout))

    def placed(self, coords_um: np.ndarray) -> tuple[np.ndarray]:
        return (grid_cells(coords_um),)

    def working_bytes(self, num_spots: int, training: bool) -> int:
        s = self.settings
        scores, activations = score_bytes(num_spots, s.heads), 4 * s.width * num_spots
        if not training:
            return 2 * scores + 8 * activations
        return s.depth * (3 * scores + 48 * activations)
