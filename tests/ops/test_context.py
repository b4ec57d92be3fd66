"""What a spot sees of other sections, by hand."""

import jax.numpy as jnp
import numpy as np

from stfm_jax.ops.context import Context, known_weight, weighted_mean, without_expression


def context():
    """Two spots that see two each; one of the second's is padding."""
    expr = jnp.arange(4.0).reshape(2, 2, 1) + 1.0
    return Context(
        features=jnp.ones((2, 2, 3)),
        distance=jnp.ones((2, 2, 2)),
        weight=jnp.array([[0.25, 0.75], [1.0, 0.0]]),
        known=jnp.array([[True, False], [True, True]]),
        expr=expr,
        residual=-expr,
    )


def test_means_are_weighted_whatever_weights_add_up_to():
    values = jnp.array([[[1.0, 10.0], [5.0, 30.0]]])
    for factor in (1.0, 0.5, 4.0):
        found = weighted_mean(factor * jnp.array([[0.25, 0.75]]), values)
        np.testing.assert_allclose(found, [[4.0, 25.0]])
    np.testing.assert_array_equal(weighted_mean(jnp.zeros((1, 2)), values), [[0.0, 0.0]])


def test_weights_of_what_is_known():
    np.testing.assert_array_equal(known_weight(context()), [[0.25, 0.0], [1.0, 0.0]])


def test_expression_is_hidden_unless_it_is_kept():
    whole = context()
    hidden = without_expression(whole)
    assert not hidden.known.any() and not hidden.expr.any() and not hidden.residual.any()
    np.testing.assert_array_equal(hidden.weight, whole.weight)
    np.testing.assert_array_equal(hidden.features, whole.features)
    for a, b in zip(without_expression(whole, True), whole, strict=True):
        np.testing.assert_array_equal(a, b)
