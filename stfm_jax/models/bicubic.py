"""Shares in proportion to the bicubic interpolation of the parents' counts per child."""

from __future__ import annotations

from stfm_jax.data import interpolation
from stfm_jax.data.coarsen import Pair
from stfm_jax.data.lattice import find_lattice
from stfm_jax.errors import InputError
from stfm_jax.models.method import NotApplicable
from stfm_jax.models.parts import Proportional


class Bicubic(Proportional):
    """Parents must lie on a lattice; where there is none (holes, edges) the nearest stands in."""

    name = "bicubic"

    def field(self, pair: Pair):
        low, high = pair.low, pair.high
        try:
            find_lattice(low.coords_um, low.where)
        except InputError as error:
            raise NotApplicable(str(error)) from error

        def interpolated(per_child):
            return interpolation.bicubic(per_child, low.coords_um, high.coords_um, low.where)

        return interpolated
