"""Extremely randomised trees on own and neighbourhoods' features."""

from __future__ import annotations

from stfm_jax.models.forest import Forest, extra_trees
from stfm_jax.models.regression import Seen
from stfm_jax.regression.trees import Trees


class ExtraTrees(Forest):
    """Extra-trees (Geurts et al. 2006), fitted to targets in units of their slide [ours]."""

    name = "extra_trees"
    around = True

    def grown(self, seen: Seen, seed: int) -> Trees:
        return extra_trees(seen, seed)
