"""What HoloTea adds to STFlow, on simulated sections with their true motions undone."""

import dataclasses
from unittest import mock

import chex
import jax
import numpy as np
import pytest
import tiny
import tiny_stack

from stfm_jax.data import batching
from stfm_jax.data.batching import collate, in_order
from stfm_jax.data.expression import expression
from stfm_jax.eval import model_store
from stfm_jax.models.build import build
from stfm_jax.models.holotea import HoloTea, Neighbours, fingerprint
from stfm_jax.ops.context import known_weight, without_expression
from stfm_jax.regression import regressors

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def slides():
    return tiny.slides(5, registered=True)


@pytest.fixture(scope="module")
def genes(slides):
    return tiny_stack.genes(slides)


@pytest.fixture(scope="module")
def task():
    return build(tiny_stack.config(), 8)


def as_trained(task, arrays, width, seed=1):
    """Parameters of which none is zero, as after training."""
    shapes = jax.eval_shape(lambda: task.init(KEY, arrays, width))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: 0.3 * rng.normal(size=a.shape).astype(a.dtype), shapes)


def on_a_base(task, training):
    """The training set with parameters of a base."""
    width = task.input_width(training.fitted)
    return task.stand_on(training, as_trained(task.base, training.base.fitted.flow, width, seed=0))


@pytest.fixture(scope="module")
def training(task, slides, genes):
    """On all sections but the middle one."""
    return on_a_base(task, task.fit([s for i, s in enumerate(slides) if i != 2], genes))


@pytest.fixture(scope="module")
def fitted(training):
    return training.fitted


def others(slides, genes, expression=True):
    return Neighbours([s for i, s in enumerate(slides) if i != 2], genes, expression)


@pytest.fixture(scope="module")
def prepared(task, fitted, slides, genes):
    return task.prepare(slides[2], fitted, genes, others(slides, genes))


def batch_of(task, slide):
    return collate([slide], task.neighbors, task.tile)


@pytest.fixture(scope="module")
def params(task, fitted):
    return as_trained(task, fitted.flow, task.input_width(fitted))


@pytest.fixture(scope="module")
def initial(task, fitted):
    """Where training starts, with a frozen base and with one that is trained."""
    width, trained = task.input_width(fitted), build(tiny_stack.config(stack__base="trained"), 8)
    both = jax.jit(lambda flow: [each.init(KEY, flow, width) for each in (task, trained)])
    return both(fitted.flow)


def predicted(task, fitted, params, slide):
    """Mean [n, g] and draws [3, n, g] of a prepared slide."""
    return model_of(task, fitted, params).predict(slide, 0, 3, 1)


def model_of(task, fitted, params):
    genes = tuple(f"GENE{i}" for i in range(8))
    return model_store.Model(task, fitted, params, genes, genes, np.zeros((1, 8), np.float32))


def neutral(fitted):
    """What was fitted, less what regression, path and prior know of the stack."""
    base = fitted.flow.base
    stands_alone = {"path": base.path, "alone": base.path, "shares": np.zeros((3, 8), np.float32)}
    return fitted._replace(flow=fitted.flow._replace(**stands_alone, mix=None))


def seeing(slide, context):
    return dataclasses.replace(slide, context=context)


def test_it_starts_as_the_base(task, fitted, prepared, params, initial):
    """With other sections in sight, though not through regression and prior, which are fitted."""
    assert prepared.context.known.any()
    ours = predicted(task, neutral(fitted), initial[0], prepared)
    theirs = model_of(task, fitted, params).base.predict(prepared, 0, 3, 1)
    assert np.abs(theirs[1]).max() > 0.1 and np.abs(theirs[1] - theirs[0]).max() > 0.1
    chex.assert_trees_all_close(ours, theirs, atol=1e-6)
    after = predicted(task, neutral(fitted), params, prepared)
    np.testing.assert_array_equal(after[0], ours[0])  # the base is frozen
    assert np.abs(after[1] - ours[1]).max() > 1e-2


def test_the_control_hears_the_neighbours(task, fitted, prepared, params):
    """After training, what they look like and what was measured there changes draws."""

    def draws(context):
        slide = seeing(prepared, context)
        return predicted(task, neutral(fitted), params, slide)[1]

    context = prepared.context
    before = draws(context)
    for changed in (
        without_expression(context),
        context._replace(features=context.features + 1),
        context._replace(distance=context.distance + 1),
    ):
        assert np.abs(draws(changed) - before).max() > 1e-3


def test_what_pads_the_context_is_not_seen(task, fitted, prepared, params):
    def last(value, **fields):
        """The context with another value in the last column of some fields."""
        for name, a in fields.items():
            fields[name] = np.array(a)
            fields[name][:, -1] = value
        return fields

    context = prepared.context
    padded = context._replace(**last(0, weight=context.weight, known=context.known))
    told = {name: getattr(padded, name) for name in ("features", "distance", "expr", "residual")}
    noise = padded._replace(**last(9.0, **told))
    both = [predicted(task, fitted, params, seeing(prepared, c)) for c in (padded, noise)]
    chex.assert_trees_all_close(*both, atol=1e-6)
    unpadded = predicted(task, fitted, params, prepared)
    assert np.abs(unpadded[1] - both[0][1]).max() > 1e-3


def test_the_held_out_section_is_not_looked_at(task, fitted, slides, genes, prepared):
    bare = dataclasses.replace(slides[2], counts=None, genes=None)
    blind = task.prepare(bare, fitted, None, others(slides, genes))
    chex.assert_trees_all_equal(blind.context, prepared.context)
    np.testing.assert_array_equal(blind.anchor, prepared.anchor)


def test_no_measured_neighbour_is_the_image_regime(task, fitted, slides, genes, params):
    """A stack without counts, a stack whose counts may not be seen: the same prediction."""
    flow = fitted.flow
    hidden = task.prepare(slides[2], fitted, genes, others(slides, genes, expression=False))
    bare = [dataclasses.replace(s, counts=None, genes=None) for s in others(slides, genes).slides]
    without = task.prepare(slides[2], fitted, genes, Neighbours(bare, genes))
    chex.assert_trees_all_equal(hidden.context, without.context)
    assert not hidden.context.known.any() and hidden.context.weight.any()
    batch = batch_of(task, hidden)
    np.testing.assert_array_equal(task.anchor_of(flow, batch), batch.anchor)
    eigenvalues = jax.jit(task.path)(flow, batch).eigenvalues
    np.testing.assert_allclose(eigenvalues, flow.alone.eigenvalues)
    assert np.isfinite(predicted(task, fitted, params, hidden)[1]).all()


def test_a_section_without_a_stack_is_predicted_too(task, fitted, slides, genes, params):
    alone = task.prepare(slides[2], fitted, genes)
    assert not alone.context.weight.any()
    assert np.isfinite(predicted(task, fitted, params, alone)[1]).all()


def test_a_common_motion_changes_nothing(task, fitted, slides, genes, prepared):
    angle = 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = [
        dataclasses.replace(s, registered_um=s.registered_um @ turn.T + [300.0, -40.0])
        for s in slides
    ]
    again = task.prepare(moved[2], fitted, genes, others(moved, genes))
    chex.assert_trees_all_close(again.context, prepared.context, rtol=1e-4, atol=1e-4)


def test_the_order_of_spots_changes_nothing(task, fitted, slides, genes, prepared, params):
    """With each spot's noise, which is keyed to its place, they are drawn alike."""
    order = np.random.default_rng(0).permutation(slides[2].num_spots)
    mixed = task.prepare(slides[2].subset(order), fitted, genes, others(slides, genes))
    first = predicted(task, fitted, params, prepared)
    again = predicted(task, fitted, params, mixed)
    np.testing.assert_allclose(again[0], first[0][order], atol=2e-5)
    assert np.abs(again[1] - first[1][:, order]).max() > 0.1
    keyed = dataclasses.replace(mixed, place=order.astype(np.int32))
    again = predicted(task, fitted, params, keyed)
    chex.assert_trees_all_close(again, first, atol=2e-5)


def test_padding_changes_nothing(task, fitted, prepared, params, monkeypatch):
    """More rows behind the slide's, which the global attention must not see."""
    arguments = task, neutral(fitted), params, prepared
    first = predicted(*arguments)
    monkeypatch.setattr(batching, "bucket_size", lambda n: 96)
    assert len(batch_of(task, prepared).place) == 96
    chex.assert_trees_all_close(predicted(*arguments), first, atol=2e-5)


def test_residuals_are_of_an_anchor_that_saw_neither_section(task, training, slides, genes):
    """Section 0's own expression must not move what it is told of section 1."""
    measured, base = others(slides, genes).slides, training.base
    told = task._residuals_seen(measured, base)(0)[1]
    twisted = dataclasses.replace(base.slides[0], expr=base.slides[0].expr[::-1])
    other = dataclasses.replace(base, slides=[twisted, *base.slides[1:]])
    seen_by = task._residuals_seen(measured, other)
    np.testing.assert_allclose(seen_by(0)[1], told, atol=1e-6)
    assert np.abs(seen_by(2)[1] - task._residuals_seen(measured, base)(2)[1]).max() > 1e-2
    y = expression(measured[1], genes, "log1p")
    x = np.concatenate([p.features for p in base.slides[2:]])
    rest = np.concatenate([p.expr for p in base.slides[2:]])
    anchor = regressors.fit("kernel", x, rest, training.anchor_choice)
    expected = y - regressors.predict(anchor, base.slides[1].features)
    np.testing.assert_allclose(told, expected, atol=1e-4)


def test_the_anchor_is_moved_by_what_neighbours_measured(prepared, fitted, task):
    context, mean, shares = prepared.context, fitted.flow.gene_mean, fitted.flow.shares
    weight = np.asarray(known_weight(context))
    weight = weight / weight.sum(axis=1, keepdims=True)
    residual, expr = (np.einsum("nk,nkg->ng", weight, v) for v in (context.residual, context.expr))
    expected = (
        shares[0] * residual + shares[1] * (expr - mean) + shares[2] * (prepared.anchor - mean)
    )
    batch = batch_of(task, prepared)
    move = in_order(batch, task.anchor_of(fitted.flow, batch) - batch.anchor)
    assert np.abs(move).max() > 1e-2
    np.testing.assert_allclose(move, expected, atol=1e-5)
    alone = batch._replace(context=without_expression(batch.context))
    np.testing.assert_array_equal(task.anchor_of(fitted.flow, alone), batch.anchor)


def test_a_training_slide_is_told_its_stored_residuals(task, training, fitted, slides, genes):
    """Each its own, though sections of one lattice share their places."""
    trained = others(slides, genes).slides
    np.testing.assert_array_equal(trained[0].coords_um, trained[1].coords_um)
    sizes = np.cumsum([s.num_spots for s in trained])[:-1]
    for slide, stored in zip(trained, np.split(training.residuals, sizes), strict=True):
        y = expression(slide, genes, "log1p")
        renamed = dataclasses.replace(slide, name="under another name")
        np.testing.assert_array_equal(task._residual(renamed, y, fitted), stored)
        fewer = slide.subset(np.arange(40))  # of that name, not that slide
        fresh = task._residual(fewer, y[:40], fitted)
        assert np.abs(fresh - stored[:40]).max() > 1e-3
    assert fingerprint(slides[2]) not in fitted.residuals


def test_expression_is_hidden_half_of_the_time(task, training):
    """One model for both regimes: the loss is of one or the other context."""
    batch = batch_of(task, training.slides[0])
    hidden = without_expression(batch.context)
    nothing = np.zeros_like(batch.expr)
    with mock.patch.object(HoloTea, "_errors", return_value=(nothing, nothing)) as errors:
        for key in jax.random.split(KEY, 16):
            task.loss(None, training.fitted.flow, batch, key)
    known = [bool(call.args[2].context.known.any()) for call in errors.call_args_list]
    for call, seen in zip(errors.call_args_list, known, strict=True):
        chex.assert_trees_all_equal(call.args[2].context, batch.context if seen else hidden)
    assert 3 <= sum(known) <= 13


def test_what_is_trained(fitted, training, params, initial):
    """The control; with it the base where the config says so, from the base's own parameters."""
    frozen, trained = initial
    assert set(frozen) == {"control"} and set(trained) == {"control", "base"}
    chex.assert_trees_all_equal(trained["control"], frozen["control"])
    chex.assert_trees_all_equal(trained["base"], fitted.flow.base_params)
    block = fitted.flow.base_params["flow"]["block_0"]
    chex.assert_trees_all_equal(frozen["control"]["block_0"], block)
    other = ("model__dropout", "model__image_dropout", "model__image_noise")
    task = build(tiny_stack.config(**dict.fromkeys(other, 0.0)), 8)
    assert task.control.noise > 0 and task.control.dropout > 0
    batch = batch_of(task, training.slides[0])
    both = {**params, "base": fitted.flow.base_params}
    loss = jax.jit(jax.grad(task.loss, has_aux=True))
    gradient, _ = loss(both, neutral(fitted).flow, batch, KEY)
    for name, of_part in {**gradient["control"], **gradient["base"]}.items():
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_part)), name


def test_the_consistency_loss_draws_toward_neighbours(training):
    plain, drawn = (build(tiny_stack.config(stack__consistency=c), 8) for c in (0.0, 0.5))
    batch, flow = batch_of(plain, training.slides[0]), training.fitted.flow
    key = next(  # which hides nothing
        k for k in jax.random.split(KEY, 16) if not jax.random.bernoulli(jax.random.split(k)[1])
    )
    x_1_hat = np.random.default_rng(0).normal(size=batch.expr.shape).astype(np.float32)
    error = np.ones_like(x_1_hat)
    with mock.patch.object(HoloTea, "_errors", return_value=(x_1_hat, error)):
        (total, count), (less, _) = (task.loss(None, flow, batch, key) for task in (drawn, plain))
    assert less == pytest.approx(batch.spot_mask.sum() * 8) and count == less
    weight = np.asarray(known_weight(batch.context))
    expected = sum(
        weight[i, j] * (((x_1_hat[i] - batch.context.expr[i, j]) / flow.gene_std) ** 2).sum()
        for i in np.flatnonzero(batch.spot_mask)
        for j in range(weight.shape[1])
    )
    assert total - less == pytest.approx(0.5 * float(expected), rel=1e-4)


@pytest.mark.parametrize("prior", ["mix", "base"])
def test_a_saved_model_predicts_the_same(tmp_path, slides, genes, training, prepared, prior):
    made = tiny_stack.config(stack__prior=prior)
    task = build(made, 8)
    if prior == "base":
        training = task.fit([slides[0], slides[1], slides[3]], genes)
        assert training.fitted.flow.mix is None
        training = on_a_base(task, training)
    fitted = training.fitted
    params = as_trained(task, fitted.flow, task.input_width(fitted))
    genes = tuple(genes)
    model = model_store.Model(task, fitted, params, genes, genes, training.residuals)
    model_store.save(tmp_path, model, (3, 5))
    loaded = model_store.load(tmp_path, made)
    assert loaded.task == task and model_store.epochs(tmp_path) == (3, 5)
    chex.assert_trees_all_equal(loaded.fitted, fitted)
    chex.assert_trees_all_equal(loaded.params, params)
    np.testing.assert_array_equal(loaded.residuals, training.residuals)
    if prior == "base":
        return
    for one, again in ((model, loaded), (model.base, loaded.base)):
        first, second = (each.predict(prepared, 0, 3, 1) for each in (one, again))
        chex.assert_trees_all_equal(first, second)
