"""Shares in proportion to the counts per child around, weighted by distance."""

from __future__ import annotations

from stfm_jax.data import interpolation
from stfm_jax.data.coarsen import Pair
from stfm_jax.models.parts import Proportional
from stfm_jax.ops.neighbors import median_spacing

SPACINGS = 0.75  # sd in spacings of the parents [ours]


class Gaussian(Proportional):
    """A smooth field that needs no lattice."""

    name = "gaussian"

    def field(self, pair: Pair):
        low, high = pair.low.coords_um, pair.high.coords_um
        sd = SPACINGS * median_spacing(low)
        weights = interpolation.gaussian(low, high, pair.parent, sd)
        return lambda per_child: weights @ per_child
