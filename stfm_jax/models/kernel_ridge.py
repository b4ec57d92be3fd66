"""RBF kernel ridge regression on own features and their means over the neighbourhoods."""

from stfm_jax.models.regression import Regression


class KernelRidge(Regression):
    """RBF kernel ridge regression on own features and their means over the neighbourhoods."""

    name = "kernel_ridge"
    kind = "kernel"
    around = True
