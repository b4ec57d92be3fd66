"""Ridge regression on a spot's own features."""

from stfm_jax.models.regression import Regression


class Ridge(Regression):
    """Ridge regression on a spot's own features.

    What `probe` is, but for the penalty, chosen out of fold, an intercept, and features that are
    standardised in each slide (`data.standardize`).
    """

    name = "ridge"
    kind = "ridge"
    around = False
