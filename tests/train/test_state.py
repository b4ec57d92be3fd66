"""The first state: parameters that follow from the widths alone, in buffers of their own."""

from __future__ import annotations

import functools
from unittest import mock

import chex
import jax
import numpy as np
import pytest
import tiny

from stfm_jax.data.batching import collate
from stfm_jax.models.stflow.flow import STFlow
from stfm_jax.models.stflow.settings import STFlowSettings
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.train.state import Optimizer, create, train_step

KEY = jax.random.key(3)
OPTIMIZER = Optimizer(weight_decay=0.1)


@pytest.fixture(scope="module")
def flow() -> STFlow:
    return STFlowSettings.of(tiny.config()).flow(8)


@pytest.fixture(scope="module")
def training(flow):
    slide = tiny.slides(1)[0]
    return flow.training_set([slide], list(slide.genes[:8]))


@pytest.fixture(scope="module")
def width(flow, training):
    return flow.input_width(training.fitted)


@pytest.fixture(scope="module")
def state(flow, training, width):
    return create(flow, OPTIMIZER, KEY, training.fitted.flow, width)


def test_parameters_are_those_of_an_initialisation(flow, training, state, width):
    expected = jax.jit(flow.init, static_argnums=2)(KEY, training.fitted.flow, width)
    chex.assert_trees_all_equal(state.params, expected)
    chex.assert_trees_all_equal(state.ema_params, expected)
    assert int(state.step) == 0 and int(state.first_bad_step) == -1


@pytest.mark.parametrize("tile", [16, 512])
def test_parameters_serve_slides_of_any_number_of_tiles(flow, training, state, width, tile):
    """Which `init` never saw: its parameters follow from the widths alone."""
    slide = training.slides[0]
    assert slide.features.shape[1] == width
    batch = collate([slide], flow.neighbors, tile)
    arrays = training.fitted.flow
    loss, count = jax.eval_shape(flow.loss, state.params, arrays, batch, KEY)
    assert loss.shape == count.shape == ()
    update = functools.partial(train_step, flow, OPTIMIZER, make_mesh(1))
    step = jax.eval_shape(update, state, arrays, [batch], KEY)
    assert jax.tree.map(np.shape, step) == jax.tree.map(np.shape, state)


def test_no_buffer_is_shared_since_the_state_is_donated(state):
    leaves = jax.tree.leaves(state)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_another_fold_is_not_traced_again(flow, training, width, state):
    with mock.patch.object(STFlow, "init", side_effect=AssertionError("traced again")):
        other = create(flow, OPTIMIZER, jax.random.key(4), training.fitted.flow, width)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(other.params, state.params)
