"""One evaluation in place of several: a network that learns where STFlow's own draws end."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
import tiny
from test_whole_slide import F, G, made, method

from stfm_jax.data.batching import TILE, collate, in_order
from stfm_jax.models import table
from stfm_jax.models.stflow.one_step import OneStep, Taught

STEPS = 60


def batch_of(slide, flow):
    return collate([dataclasses.replace(slide, expr=np.zeros((len(slide.coords), G)))],
                   flow.neighbors, TILE)  # fmt: skip


@pytest.fixture(scope="module")
def learned():
    """A teacher whose network bends its draws strongly, and a student of it after each epoch."""
    teacher, params, arrays = method()
    params["flow"] = jax.tree.map(lambda a: 1.5 * a, params["flow"])
    flow = OneStep.of(teacher)
    taught = jax.device_put(Taught(arrays, params))
    student = flow.init(jax.random.key(0), taught, F)
    rule = optax.adam(3e-3)
    batches = [batch_of(made(90, seed), flow) for seed in range(4)]

    @jax.jit
    def step(student, state, batch, key):
        def mean(student):
            total, count = flow.loss(student, taught, batch, key)
            return total / count

        value, gradient = jax.value_and_grad(mean)(student)
        updates, state = rule.update(gradient, state)
        return optax.apply_updates(student, updates), state, value

    state = rule.init(student)
    for i in range(STEPS):
        student, state, _ = step(student, state, batches[i % 4], jax.random.key(i))
    return teacher, flow, params, arrays, params | student


def draws(flow, params, arrays, slide):
    batch = batch_of(slide, flow)
    found = flow.sample(params, arrays, batch, jax.random.key(7), 8)
    return in_order(batch, found)


def test_it_knows_what_it_learns_from():
    for fields in ({}, {"model__expression": "differences", "model__frames": "pca"}):
        teacher, *_ = method(**fields)
        flow = OneStep.of(teacher)
        assert flow.teacher == teacher
        assert (flow.evaluations, flow.taught_by) == (1, teacher.evaluations)
        assert hash(flow) == hash(OneStep.of(teacher))


def test_a_draw_takes_one_evaluation(learned):
    teacher, flow, params, arrays, _ = learned
    batch, asked = batch_of(made(60), flow), []

    def counting(flow):
        parts = flow.parts(params, arrays, batch)
        network = parts.network()

        def evaluate(x, t):
            jax.debug.callback(lambda: asked.append(flow))
            return network(x, t)

        return flow.draw(evaluate, parts.path, parts.prior(jax.random.key(0)), parts.centre)

    for each in (teacher, flow):
        jax.block_until_ready(counting(each))
    jax.effects_barrier()
    assert asked.count(flow) == 1 and asked.count(teacher) == teacher.evaluations == 5


def test_its_draws_end_where_the_teachers_do(learned):
    """On a slide it did not see; the teacher's own single step is far from there."""
    teacher, flow, params, arrays, student = learned
    slide = made(120, seed=11)
    wanted = draws(teacher, params, arrays, slide)

    def distance(found):
        return np.mean((found - wanted) ** 2)

    at_once = draws(dataclasses.replace(teacher, evaluations=1), params, arrays, slide)
    assert distance(draws(flow, student, arrays, slide)) < 0.3 * distance(at_once)


def test_the_mean_is_the_teachers(learned):
    teacher, flow, params, arrays, student = learned
    batch, key = batch_of(made(60), flow), jax.random.key(2)
    of_teacher = teacher.posterior_mean(params, arrays, batch, key, 4)
    np.testing.assert_array_equal(flow.posterior_mean(student, arrays, batch, key, 4), of_teacher)


def test_without_a_tower_its_mean_is_that_of_its_draws():
    teacher, params, arrays = method(model__image_weight=0.0)
    flow = dataclasses.replace(OneStep.of(teacher), clip=False)
    batch, key = batch_of(made(60), flow), jax.random.key(2)
    mean = flow.posterior_mean(params, arrays, batch, key, 6)
    of_draws = flow.sample(params, arrays, batch, key, 6).mean(axis=0)
    np.testing.assert_allclose(mean, of_draws, atol=1e-5)


def test_its_settings_are_those_of_the_flow_it_learns_from():
    config = tiny.config(one_step__epochs=7)
    own = table.build("stflow_one_step", config).settings
    assert own.base == table.build("stflow", config).settings
    assert own.epochs == 7
    assert own.flow(G).teacher == own.base.flow(G)
