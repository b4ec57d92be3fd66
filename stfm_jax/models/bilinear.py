"""Shares in proportion to the bilinear interpolation of the parents' counts per child."""

from __future__ import annotations

from stfm_jax.data import interpolation
from stfm_jax.data.coarsen import Pair
from stfm_jax.errors import InputError
from stfm_jax.models.method import NotApplicable
from stfm_jax.models.parts import Proportional


class Bilinear(Proportional):
    """Parents must lie on a lattice; where there is none (holes, edges) the nearest stands in."""

    name = "bilinear"

    def field(self, pair: Pair):
        low, high = pair.low, pair.high
        try:
            weights = interpolation.bilinear(low.coords_um, high.coords_um, low.where)
        except InputError as error:
            raise NotApplicable(str(error)) from error
        return lambda per_child: weights @ per_child
