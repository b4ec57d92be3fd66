"""Ridge regression on a spot's own features."""

from stfm_jax.models.regression import Regression


class Ridge(Regression):
    """Ridge regression on a spot's own features."""

    name = "ridge"
    kind = "ridge"
    around = False
