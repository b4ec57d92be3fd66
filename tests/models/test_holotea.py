"""What HoloTea adds to STFlow, on simulated sections with their true motions undone."""

import dataclasses
from unittest import mock

import chex
import jax
import numpy as np
import pytest
import tiny
import tiny_stack

from stfm_jax import store
from stfm_jax.data import batching
from stfm_jax.data.batching import collate, in_order
from stfm_jax.data.expression import expression
from stfm_jax.models.holotea.fitted import Neighbours, fingerprint
from stfm_jax.models.holotea.flow import HoloTea
from stfm_jax.models.holotea.method import HoloTeaFromImages, HoloTeaMethod, State
from stfm_jax.models.holotea.settings import HoloTeaSettings
from stfm_jax.models.method import Genes, Request, Section, gathered
from stfm_jax.models.stflow import flow as stflow
from stfm_jax.models.stflow import joint
from stfm_jax.models.stflow import method as stflow_method
from stfm_jax.models.stflow.method import STFlowMethod, in_one_call
from stfm_jax.ops.context import known_weight, without_expression
from stfm_jax.regression import regressors
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.store import Model

KEY = jax.random.key(0)
NO_RESIDUALS = np.zeros((1, 8), np.float32)


@pytest.fixture(scope="module")
def slides():
    return tiny.slides(5, registered=True)


@pytest.fixture(scope="module")
def genes(slides):
    return tiny_stack.genes(slides)


def build(**overrides):
    return HoloTeaSettings.of(tiny_stack.config(**overrides)).flow(8)


@pytest.fixture(scope="module")
def flow():
    return build()


def as_trained(flow, arrays, width, seed=1):
    """Parameters of which none is zero, as after training."""
    shapes = jax.eval_shape(lambda: flow.init(KEY, arrays, width))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: 0.3 * rng.normal(size=a.shape).astype(a.dtype), shapes)


def on_base(flow, slides, genes, base):
    """The training set with parameters of a base."""
    width = flow.base.input_width(base.fitted)
    base_params = as_trained(flow.base, base.fitted.flow, width, seed=0)
    return flow.training_set(slides, genes, base, base_params)


def measured(slides):
    """All sections but the middle one."""
    return [s for i, s in enumerate(slides) if i != 2]


@pytest.fixture(scope="module")
def base(flow, slides, genes):
    """The base's own training set."""
    return flow.base.training_set(measured(slides), genes)


@pytest.fixture(scope="module")
def training(flow, slides, genes, base):
    return on_base(flow, measured(slides), genes, base)


@pytest.fixture(scope="module")
def fitted(training):
    return training.fitted


def others(slides, genes, expression=True):
    return Neighbours(measured(slides), genes, expression)


@pytest.fixture(scope="module")
def prepared(flow, fitted, slides, genes):
    return flow.prepare(slides[2], fitted, genes, others(slides, genes))


def batch_of(flow, slide):
    return collate([slide], flow.neighbors, flow.tile)


@pytest.fixture(scope="module")
def params(flow, fitted):
    return as_trained(flow, fitted.flow, flow.base.input_width(fitted))


@pytest.fixture(scope="module")
def initial(flow, fitted):
    """Where training starts, with a frozen base and with one that is trained."""
    width, trained = flow.base.input_width(fitted), build(stack__base="trained")
    both = jax.jit(lambda arrays: [each.init(KEY, arrays, width) for each in (flow, trained)])
    return both(fitted.flow)


def predicted(flow, fitted, params, slide):
    """Mean [n, g] and draws [3, n, g] of a prepared slide."""
    return arrays_of(in_one_call(flow, State(fitted, params, NO_RESIDUALS, 1), slide, request()))


def predicted_by_base(flow, fitted, slide):
    """As `predicted`, by what the flow stands on."""
    of_base = stflow.Fitted(fitted.transform, fitted.anchor, fitted.flow.base)
    return predicted(flow.base, of_base, fitted.flow.base_params, slide)


def request(genes=()):
    genes = Genes(tuple(genes), tuple(genes))
    return Request(genes, seed=0, draws=3, mean_draws=1, mesh=make_mesh(1))


def arrays_of(prediction):
    """Mean [n, g] and draws [3, n, g]."""
    ((_, mean),) = prediction.mean
    return mean, np.stack([gathered(draw, len(mean)) for draw in prediction.draws])


def parts_of(flow, arrays, params, batch):
    """What a batch's draws are made of, as far as it is arrays."""

    def made(params, arrays, batch):
        return flow.parts(params, arrays, batch)._replace(network=None, prior=None)

    return jax.jit(made)(params, arrays, batch)


def neutral(fitted):
    """What was fitted, less what regression, path and prior know of the stack."""
    base = fitted.flow.base
    stands_alone = {"path": base.path, "alone": base.path, "shares": np.zeros((3, 8), np.float32)}
    return fitted._replace(flow=fitted.flow._replace(**stands_alone, mix=None))


def seeing(slide, context):
    return dataclasses.replace(slide, context=context)


def test_it_starts_as_the_base(flow, fitted, prepared, params, initial):
    """With other sections in sight, though not through regression and prior, which are fitted."""
    assert prepared.context.known.any()
    ours = predicted(flow, neutral(fitted), initial[0], prepared)
    theirs = predicted_by_base(flow, fitted, prepared)
    assert np.abs(theirs[1]).max() > 0.1 and np.abs(theirs[1] - theirs[0]).max() > 0.1
    chex.assert_trees_all_close(ours, theirs, atol=1e-6)
    after = predicted(flow, neutral(fitted), params, prepared)
    np.testing.assert_array_equal(after[0], ours[0])  # the base is frozen
    assert np.abs(after[1] - ours[1]).max() > 1e-2


def test_the_control_hears_the_neighbours(flow, fitted, prepared, params):
    """After training, what they look like and what was measured there changes draws."""

    def draws(context):
        slide = seeing(prepared, context)
        return predicted(flow, neutral(fitted), params, slide)[1]

    context = prepared.context
    before = draws(context)
    for changed in (
        without_expression(context),
        context._replace(features=context.features + 1),
        context._replace(distance=context.distance + 1),
    ):
        assert np.abs(draws(changed) - before).max() > 1e-3


def test_what_pads_the_context_is_not_seen(flow, fitted, prepared, params):
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
    both = [predicted(flow, fitted, params, seeing(prepared, c)) for c in (padded, noise)]
    chex.assert_trees_all_close(*both, atol=1e-6)
    unpadded = predicted(flow, fitted, params, prepared)
    assert np.abs(unpadded[1] - both[0][1]).max() > 1e-3


def test_the_held_out_section_is_not_looked_at(flow, fitted, slides, genes, prepared):
    bare = dataclasses.replace(slides[2], counts=None, genes=None)
    blind = flow.prepare(bare, fitted, None, others(slides, genes))
    chex.assert_trees_all_equal(blind.context, prepared.context)
    np.testing.assert_array_equal(blind.anchor, prepared.anchor)


def test_no_measured_neighbour_is_the_image_regime(flow, fitted, slides, genes, params):
    """A stack without counts, a stack whose counts may not be seen: the same prediction."""
    arrays = fitted.flow
    hidden = flow.prepare(slides[2], fitted, genes, others(slides, genes, expression=False))
    bare = [dataclasses.replace(s, counts=None, genes=None) for s in others(slides, genes).slides]
    without = flow.prepare(slides[2], fitted, genes, Neighbours(bare, genes))
    chex.assert_trees_all_equal(hidden.context, without.context)
    assert not hidden.context.known.any() and hidden.context.weight.any()
    batch = batch_of(flow, hidden)
    parts = parts_of(flow, arrays, params, batch)
    np.testing.assert_array_equal(parts.anchor, batch.anchor)
    np.testing.assert_allclose(parts.path.eigenvalues, arrays.alone.eigenvalues)
    assert np.isfinite(predicted(flow, fitted, params, hidden)[1]).all()


def test_a_section_without_a_stack_is_predicted_too(flow, fitted, slides, genes, params):
    alone = flow.prepare(slides[2], fitted, genes)
    assert not alone.context.weight.any()
    assert np.isfinite(predicted(flow, fitted, params, alone)[1]).all()


def test_a_common_motion_changes_nothing(flow, fitted, slides, genes, prepared):
    angle = 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = [
        dataclasses.replace(s, registered_um=s.registered_um @ turn.T + [300.0, -40.0])
        for s in slides
    ]
    again = flow.prepare(moved[2], fitted, genes, others(moved, genes))
    chex.assert_trees_all_close(again.context, prepared.context, rtol=1e-4, atol=1e-4)


def test_the_order_of_spots_changes_nothing(flow, fitted, slides, genes, prepared, params):
    """With each spot's noise, which is keyed to its place, they are drawn alike."""
    order = np.random.default_rng(0).permutation(slides[2].num_spots)
    mixed = flow.prepare(slides[2].subset(order), fitted, genes, others(slides, genes))
    first = predicted(flow, fitted, params, prepared)
    again = predicted(flow, fitted, params, mixed)
    np.testing.assert_allclose(again[0], first[0][order], atol=2e-5)
    assert np.abs(again[1] - first[1][:, order]).max() > 0.1
    keyed = dataclasses.replace(mixed, place=order.astype(np.int32))
    again = predicted(flow, fitted, params, keyed)
    chex.assert_trees_all_close(again, first, atol=2e-5)


def test_padding_changes_nothing(flow, fitted, prepared, params, monkeypatch):
    """More rows behind the slide's, which the global attention must not see."""
    arguments = flow, neutral(fitted), params, prepared
    first = predicted(*arguments)
    monkeypatch.setattr(batching, "bucket_size", lambda n: 96)
    assert len(batch_of(flow, prepared).place) == 96
    chex.assert_trees_all_close(predicted(*arguments), first, atol=2e-5)


def test_residuals_are_of_an_anchor_that_saw_neither_section(flow, base, slides, genes):
    """Section 0's own expression must not move what it is told of section 1."""
    seen = measured(slides)
    told = flow._residuals_seen(seen, base, 0)(0)[1]
    twisted = dataclasses.replace(base.slides[0], expr=base.slides[0].expr[::-1])
    other = dataclasses.replace(base, slides=[twisted, *base.slides[1:]])
    seen_by = flow._residuals_seen(seen, other, 0)
    np.testing.assert_allclose(seen_by(0)[1], told, atol=1e-6)
    assert np.abs(seen_by(2)[1] - flow._residuals_seen(seen, base, 0)(2)[1]).max() > 1e-2
    y = expression(seen[1], genes, "log1p")
    x = np.concatenate([p.features for p in base.slides[2:]])
    rest = np.concatenate([p.expr for p in base.slides[2:]])
    anchor = regressors.fit("kernel", x, rest, base.anchor_choice)
    expected = y - regressors.predict(anchor, base.slides[1].features)
    np.testing.assert_allclose(told, expected, atol=1e-4)


def test_the_anchor_is_moved_by_what_neighbours_measured(prepared, fitted, params, flow):
    context, mean, shares = prepared.context, fitted.flow.gene_mean, fitted.flow.shares
    weight = np.asarray(known_weight(context))
    weight = weight / weight.sum(axis=1, keepdims=True)
    residual, expr = (np.einsum("nk,nkg->ng", weight, v) for v in (context.residual, context.expr))
    expected = (
        shares[0] * residual + shares[1] * (expr - mean) + shares[2] * (prepared.anchor - mean)
    )
    batch = batch_of(flow, prepared)
    parts = parts_of(flow, fitted.flow, params, batch)
    of_base = parts_of(flow.base, fitted.flow.base, fitted.flow.base_params, batch)
    move = in_order(batch, parts.anchor - batch.anchor)
    assert np.abs(move).max() > 1e-2
    np.testing.assert_allclose(move, expected, atol=1e-5)
    centre = in_order(batch, parts.centre - of_base.centre)  # which the image tower is part of
    np.testing.assert_allclose(centre, expected, atol=1e-5)
    alone = batch._replace(context=without_expression(batch.context))
    anchor = parts_of(flow, fitted.flow, params, alone).anchor
    np.testing.assert_array_equal(anchor, batch.anchor)


def test_a_training_slide_is_told_its_stored_residuals(flow, training, fitted, slides, genes):
    """Each its own, though sections of one lattice share their places."""
    trained = others(slides, genes).slides
    np.testing.assert_array_equal(trained[0].coords_um, trained[1].coords_um)
    sizes = np.cumsum([s.num_spots for s in trained])[:-1]
    for slide, stored in zip(trained, np.split(training.residuals, sizes), strict=True):
        y = expression(slide, genes, "log1p")
        renamed = dataclasses.replace(slide, name="under another name")
        np.testing.assert_array_equal(flow._residual(renamed, y, fitted), stored)
        fewer = slide.subset(np.arange(40))  # of that name, not that slide
        fresh = flow._residual(fewer, y[:40], fitted)
        assert np.abs(fresh - stored[:40]).max() > 1e-3
    assert fingerprint(slides[2]) not in fitted.residuals


def test_expression_is_hidden_half_of_the_time(flow, training):
    """One model for both regimes: the loss is of one or the other context."""
    batch = batch_of(flow, training.slides[0])
    hidden = without_expression(batch.context)
    nothing = np.zeros_like(batch.expr)
    with (
        mock.patch.object(HoloTea, "parts", return_value=None) as parts,
        mock.patch.object(joint, "errors", return_value=(nothing, nothing)) as errors,
    ):
        for key in jax.random.split(KEY, 16):
            flow.loss(None, training.fitted.flow, batch, key)
    known = []
    for made_of, erred in zip(parts.call_args_list, errors.call_args_list, strict=True):
        told = made_of.args[2].context
        known.append(bool(told.known.any()))
        chex.assert_trees_all_equal(told, batch.context if known[-1] else hidden)
        chex.assert_trees_all_equal(erred.args[3].context, told)
    assert len(known) == 16 and 3 <= sum(known) <= 13


def test_what_is_trained(fitted, training, params, initial):
    """The control; with it the base where the config says so, from the base's own parameters."""
    frozen, trained = initial
    assert set(frozen) == {"control"} and set(trained) == {"control", "base"}
    chex.assert_trees_all_equal(trained["control"], frozen["control"])
    chex.assert_trees_all_equal(trained["base"], fitted.flow.base_params)
    block = fitted.flow.base_params["flow"]["block_0"]
    chex.assert_trees_all_equal(frozen["control"]["block_0"], block)
    other = ("model__dropout", "model__image_dropout", "model__image_noise")
    flow = build(**dict.fromkeys(other, 0.0))
    assert flow.control.noise > 0 and flow.control.dropout > 0
    batch = batch_of(flow, training.slides[0])
    both = {**params, "base": fitted.flow.base_params}
    loss = jax.jit(jax.grad(flow.loss, has_aux=True))
    gradient, _ = loss(both, neutral(fitted).flow, batch, KEY)
    for name, of_part in {**gradient["control"], **gradient["base"]}.items():
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_part)), name


def test_the_consistency_loss_draws_toward_neighbours(training):
    plain, drawn = (build(stack__consistency=c) for c in (0.0, 0.5))
    batch, arrays = batch_of(plain, training.slides[0]), training.fitted.flow
    key = next(  # which hides nothing
        k for k in jax.random.split(KEY, 16) if not jax.random.bernoulli(jax.random.split(k)[1])
    )
    x_1_hat = np.random.default_rng(0).normal(size=batch.expr.shape).astype(np.float32)
    error = np.ones_like(x_1_hat)
    with (
        mock.patch.object(HoloTea, "parts", return_value=None),
        mock.patch.object(joint, "errors", return_value=(x_1_hat, error)),
    ):
        (total, count), (less, _) = (flow.loss(None, arrays, batch, key) for flow in (drawn, plain))
    assert less == pytest.approx(batch.spot_mask.sum() * 8) and count == less
    weight = np.asarray(known_weight(batch.context))
    expected = sum(
        weight[i, j] * (((x_1_hat[i] - batch.context.expr[i, j]) / arrays.gene_std) ** 2).sum()
        for i in np.flatnonzero(batch.spot_mask)
        for j in range(weight.shape[1])
    )
    assert total - less == pytest.approx(0.5 * float(expected), rel=1e-4)


def test_from_images_alone_no_expression_is_looked_at(fitted, slides, genes, params):
    """Another method reads the same state as if the stack had no counts."""
    settings = HoloTeaSettings.of(tiny_stack.config())
    state, stack = State(fitted, params, NO_RESIDUALS, 1), measured(slides)
    bare = [dataclasses.replace(s, counts=None, genes=None) for s in stack]

    def by(kind, others):
        method = kind(settings)
        return arrays_of(method.predict(state, Section(slides[2], others), request(genes)))

    hidden = by(HoloTeaFromImages, stack)
    chex.assert_trees_all_equal(hidden, by(HoloTeaMethod, bare))
    assert np.abs(hidden[0] - by(HoloTeaMethod, stack)[0]).max() > 1e-2


@pytest.mark.parametrize("prior", ["mix", "base"])
def test_a_saved_model_predicts_the_same(tmp_path, slides, genes, base, training, prior):
    method = HoloTeaMethod(HoloTeaSettings.of(tiny_stack.config(stack__prior=prior)))
    flow = method.settings.flow(8)
    if prior == "base":
        some = [slides[0], slides[1], slides[3]]
        base = flow.base.training_set(some, genes)
        training = on_base(flow, some, genes, base)
        assert training.fitted.flow.mix is None
    fitted = training.fitted
    params = as_trained(flow, fitted.flow, flow.base.input_width(fitted))
    genes = Genes(tuple(genes[:2]), tuple(genes))
    own = State(fitted, params, training.residuals, 5)
    of_base = stflow_method.State(base.fitted, fitted.flow.base_params, base.residuals, 3)
    assert method.base == STFlowMethod(method.settings.stflow)
    for one, state in ((method, own), (method.base, of_base)):
        folder = tmp_path / one.name
        store.save(folder, Model(one, state, genes, tiny.ENCODER, tiny.WIDTH))
        loaded = store.load(folder, one)
        assert loaded.method == one and loaded.epochs == state.epochs
        assert (loaded.genes, loaded.encoder) == (genes, tiny.ENCODER)
        assert loaded.features == tiny.WIDTH
        chex.assert_trees_all_equal(loaded.state, state)
        if prior == "base":
            continue
        case, asked = Section(slides[2], measured(slides)), request(genes.targets)
        first, second = (arrays_of(one.predict(s, case, asked)) for s in (state, loaded.state))
        chex.assert_trees_all_equal(first, second)
