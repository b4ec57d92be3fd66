"""Ridge regression on own features and their means over the neighbourhoods."""

from stfm_jax.models.regression import Regression


class RidgeContext(Regression):
    """Ridge regression on own features and their means over the neighbourhoods."""

    name = "ridge_context"
    kind = "ridge"
    around = True
