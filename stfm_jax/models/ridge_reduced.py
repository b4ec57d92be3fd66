"""Ridge regression on own and neighbourhoods' features, reduced to few axes of the targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stfm_jax.models import regression
from stfm_jax.models.method import Genes, Run, Section
from stfm_jax.models.regression import Regression, State
from stfm_jax.regression import targets

AXES = 5  # of the targets [ours]


class RidgeReduced(Regression):
    """Reduced-rank ridge: targets in units of their slide, predictions on their principal axes."""

    name = "ridge_reduced"
    kind = "ridge"
    around = True

    def fit(self, cases: Sequence[Section], genes: Genes, run: Run) -> State:
        slides = [case.slide for case in cases]
        seen = regression.seen_of(self.settings, slides, genes.scored, True, run.seed, run.once)
        seen, scale = regression.scaled(seen)
        fit = regression.fitted(self.kind, slides, seen, run.once)
        axes = targets.principal_axes(np.concatenate(seen.y), AXES)
        regressor = targets.regressor_back(targets.reduced(fit.regressor, axes), scale)
        return State(seen.transform, regressor, fit.choice)
