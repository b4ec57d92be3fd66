"""Every child of a parent gets an equal share."""

from __future__ import annotations

import numpy as np

from stfm_jax.data.coarsen import Pair
from stfm_jax.models.parts import Proportional


class Uniform(Proportional):
    """What a split is worth that knows nothing."""

    name = "uniform"

    def field(self, pair: Pair):
        n = pair.high.num_spots
        return lambda per_child: np.ones((n, per_child.shape[1]))
