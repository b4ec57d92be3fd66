"""SRast: what it may know, mass, panels, paths, and that it finds what can be found."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest
import scipy.sparse as sp

from stfm_jax.data.coarsen import Pair, by_lattice
from stfm_jax.data.slide import Slide
from stfm_jax.flow import simplex_path
from stfm_jax.models.method import Genes, Request
from stfm_jax.models.parts import columns
from stfm_jax.models.srast import features, latents, pooling
from stfm_jax.models.srast.batches import SplitBatches, joined, padded
from stfm_jax.models.srast.flow import Fitted
from stfm_jax.models.srast.method import SRastMethod, SRastSettings, State
from stfm_jax.ops import simplex
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.store import Model
from stfm_jax.train.loop import Schedule, train
from stfm_jax.train.state import Optimizer

METHOD = SRastMethod(SRastSettings(width=8, evaluations=4, pairs_at_once=10_000))
FLOW = METHOD.settings.flow
EPOCHS = 3


def tissue(seed: int, side: int = 14, genes: int = 24, name: str = "s") -> Slide:
    """Two smooth programs, and spots on the left of each pair of columns twice as deep."""
    rng = np.random.default_rng(seed)
    at = np.argwhere(np.ones((side, side)))
    angle = rng.uniform(0, 6, 4)
    programs = np.stack([np.sin(at @ [0.5, 0.2] + angle[0]), np.cos(at @ [0.1, 0.6] + angle[1])], 1)
    mean = np.exp(programs @ rng.normal(0, 0.8, (2, genes)) + rng.normal(1.5, 0.5, genes))
    depth = np.where(at[:, 0] > side / 2, 2.0, 1.0)
    counts = rng.poisson(mean * depth[:, None]).astype(np.float32)
    return Slide(
        name=name,
        barcodes=np.array([f"{i}x{j}" for i, j in at]),
        coords_um=at * 100.0,
        counts=sp.csr_matrix(counts),
        genes=np.array([f"g{i}" for i in range(genes)]),
    )


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return [by_lattice(tissue(seed, name=f"s{seed}")) for seed in (0, 1)]


@pytest.fixture(scope="module")
def model(pairs, tmp_path_factory) -> Model:
    """Trained on the even genes of the first sample."""
    names = list(pairs[0].low.genes[::2])
    training = FLOW.training_set(pairs[:1], [names])
    trained = train(
        tmp_path_factory.mktemp("srast"),
        "stage",
        FLOW,
        Optimizer(learning_rate=3e-3),
        Schedule(EPOCHS),
        SplitBatches(joined(training.rows), ("s0",), 256),
        training.fitted.flow,
        0,
    )
    state = State(training.fitted, trained.params, EPOCHS)
    return Model(METHOD, state, Genes(tuple(names), ()))


def changed(model, **settings) -> Model:
    """The model with other settings."""
    settings = dataclasses.replace(model.method.settings, **settings)
    return dataclasses.replace(model, method=SRastMethod(settings))


def whole(model, pair, genes, draws=3, mesh=None):
    """Mean [P, g, s] and draws of all parents, even where there are no counts; their children."""
    table = pair.table()
    shape = len(table), len(genes), table.shape[1]
    even = (table >= 0) / pair.num_children[:, None]
    mean, sampled = (np.tile(even[:, None], (*n, len(genes), 1)) for n in ((1,), (draws, 1)))
    children = np.broadcast_to(table[:, None], shape).copy()
    wanted = Genes(tuple(pair.low.genes[genes]), ())
    request = Request(wanted, 0, draws, 0, mesh or make_mesh(1))
    for part in model.method.predict(model.state, pair, request):
        at = tuple(part.pairs)
        mean[at], sampled[(slice(None), *at)], children[at] = part.mean, part.draws, part.children
    return mean, sampled, children


def test_shares_are_shares_and_whole_counts_add_up(model, pairs):
    pair = Pair(pairs[1].low, pairs[1].high, pairs[1].parent)
    mean, draws, _ = whole(model, pair, np.arange(24))
    np.testing.assert_allclose(mean.sum(axis=2), 1.0, atol=1e-5)
    np.testing.assert_allclose(draws.sum(axis=3), 1.0, atol=1e-4)
    assert (draws > -1e-6).all()
    counts = pair.low.counts.toarray()
    mask = np.ones((len(counts), 1, 4), bool)
    exact = simplex.split(counts, mean, mask)
    np.testing.assert_allclose(exact.sum(axis=2), counts, rtol=1e-6)
    integers = simplex.split_largest_remainder(counts, draws[0], mask)
    np.testing.assert_array_equal(integers.sum(axis=2), counts)


def test_another_panel_and_another_order_of_genes(model, pairs):
    """Genes never trained on are split; permuted genes give permuted shares, draws aside."""
    genes = np.arange(1, 24, 2)
    assert not set(pairs[1].low.genes[genes]) & set(model.genes.scored)
    mean, draws, _ = whole(model, pairs[1], genes)
    order = np.random.default_rng(0).permutation(len(genes))
    mixed, mixed_draws, _ = whole(model, pairs[1], genes[order])
    np.testing.assert_allclose(mixed, mean[:, order], atol=1e-5)
    np.testing.assert_allclose(mixed_draws, draws[:, :, order], atol=1e-4)  # keyed to the gene


def test_genes_in_another_order_in_the_file(model, pairs):
    """Permuting the panel itself permutes the mean: no weight belongs to a gene."""
    order = np.random.default_rng(1).permutation(24)

    def permuted(slide):
        return dataclasses.replace(slide, counts=slide.counts[:, order], genes=slide.genes[order])

    pair = pairs[1]
    other = Pair(permuted(pair.low), permuted(pair.high), pair.parent)
    mean, _, _ = whole(model, pair, np.arange(24), 0)
    mixed, _, _ = whole(model, other, np.arange(24), 0)
    # Two fits of the sample's autoencoder to sums in another order: alike, not the same.
    assert np.abs(mixed - mean[:, order]).mean() < 0.01


def test_childrens_counts_are_not_looked_at(model, pairs):
    pair = pairs[1]
    blind = Pair(pair.low, dataclasses.replace(pair.high, counts=None, genes=None), pair.parent)
    for one, other in zip(
        whole(model, pair, np.arange(5)), whole(model, blind, np.arange(5)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_devices_share_the_pairs(model, pairs):
    """As on one device, though what is left over is not divisible by them."""
    some = pairs[1].of_parents(np.arange(41))
    expected = whole(model, some, np.arange(3))
    found = whole(changed(model, pairs_at_once=16), some, np.arange(3), mesh=make_mesh(4))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)


def test_draws_are_the_same_in_pieces(model, pairs, monkeypatch):
    """Also where the last piece is not full, or there is nothing in it."""
    arrays, params, key = model.state.fitted.flow, model.state.params, jax.random.key(0)
    learned = FLOW.learn(pairs[1], model.state.fitted)
    ((_, _, rows),) = features.blocks(pairs[1], learned, np.arange(3), 10_000)
    n = len(rows.counts)
    expected = np.asarray(FLOW.sample(params, arrays, rows, key, 2))
    monkeypatch.setattr("stfm_jax.models.srast.flow.IN_CACHE", 64)
    for size in (n, n + 100):
        found = np.asarray(FLOW.sample(params, arrays, padded(rows, size), key, 2))
        assert found.shape == (2, size, 4)
        np.testing.assert_allclose(found[:, :n], expected, atol=1e-5)


@pytest.mark.slow
def test_parts_are_the_whole(model, pairs, monkeypatch):
    """A sample done part by part, with what lies around each: the same shares."""
    pair = by_lattice(tissue(3, side=72))
    genes = np.arange(4)
    expected = whole(model, pair, genes)
    parts = []
    monkeypatch.setattr(features, "PART", 128)
    real = features.sample

    def counted(part, *args):
        parts.append(part.low.num_spots)
        return real(part, *args)

    monkeypatch.setattr(features, "sample", counted)
    found = whole(changed(model, pairs_at_once=200), pair, genes)
    assert len(parts) == 11 and max(parts) < pair.low.num_spots
    np.testing.assert_allclose(found[0], expected[0], atol=2e-4)
    np.testing.assert_array_equal(found[2], expected[2])


def test_better_than_even_and_than_the_gaussian_on_another_sample(model, pairs):
    """On genes it never saw: the likelihood of the children's counts."""
    pair, genes = pairs[1], np.arange(1, 24, 2)
    fitted = model.state.fitted
    learned = FLOW.learn(pair, fitted)
    ((_, _, rows),) = features.blocks(pair, learned, genes, 10_000)
    weight = pooling.pair_weight(rows.counts)
    gaussian = np.zeros(len(fitted.flow.pool))
    gaussian[features.PLAIN.index("gene 0.75")] = 1.0

    def loss(pool):
        shares = np.asarray(simplex_path.shares_of_logits(rows.proposals @ pool, rows.mask))
        return -(weight[:, None] * rows.ratios * np.log(shares)).sum() / weight.sum()

    assert loss(fitted.flow.pool) < loss(gaussian) - 1e-3 < loss(0 * gaussian) - 2e-3


def test_without_latents_nothing_of_them_is_seen(pairs):
    blind = dataclasses.replace(FLOW, latents=False)
    learned = FLOW.learn(pairs[0], Fitted(None, None))
    ((_, _, rows),) = features.blocks(pairs[0], learned, np.arange(6), 10_000)
    other = rows._replace(
        proposals=rows.proposals.copy(), facts=rows.facts + np.r_[np.zeros(6), np.ones(16)]
    )
    for k, name in enumerate(features.PLAIN):
        if name.startswith("rate"):
            other.proposals[..., k] += 1.0
    for flow, same in ((blind, True), (FLOW, False)):
        one, two = flow.seen(rows), flow.seen(other)
        assert np.array_equal(one.proposals, two.proposals) == same
        assert np.array_equal(one.facts, two.facts) == same


SPREAD = simplex_path.Spread(np.array([3.0, 0.1], np.float32), np.float32(0.3))
LINES = [("dirichlet", "fitted"), ("dirichlet", "uniform"), ("clr", "fitted")]


def some_rows(n=64, s=5):
    """Mask, counts, shares and logits of a mean split."""
    rng = np.random.default_rng(0)
    mask = rng.random((n, s)) < 0.7
    mask[:, 0] = True
    counts = rng.integers(1, 20, n).astype(np.float32)
    ratios = simplex.normalized(rng.random((n, s)), mask).astype(np.float32)
    return mask, counts, ratios, rng.normal(0, 0.5, (n, s)).astype(np.float32) * mask


@pytest.mark.parametrize("path, noise", LINES)
def test_paths_stay_among_shares(path, noise):
    mask, counts, ratios, logits = some_rows()
    line = simplex_path.line(path, noise, logits, counts, SPREAD, mask)
    x_0 = simplex_path.prior(path, jax.random.split(jax.random.key(0), 64), line, mask)
    x_1 = simplex_path.target(path, ratios, counts, mask)
    shares = np.asarray(simplex_path.shares(path, 0.5 * x_0 + 0.5 * x_1, mask))
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-5)
    assert (shares[~mask] == 0).all() and (shares >= 0).all()
    start = simplex_path.shown(path, x_0, np.zeros(64), mask)
    np.testing.assert_array_equal(start, 0.0)
    lifted = (ratios * counts[:, None] + 0.5) * mask
    expected = ratios if path == "dirichlet" else lifted / lifted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(simplex_path.shares(path, x_1, mask), expected, atol=1e-5)


@pytest.mark.parametrize("path, noise", LINES)
def test_the_linear_flow_needs_one_step(path, noise):
    """As many small steps of Euler; from fitted noise nothing moves."""
    mask, counts, _, logits = some_rows()
    line = simplex_path.line(path, noise, logits, counts, SPREAD, mask)
    x_0 = simplex_path.prior(path, jax.random.split(jax.random.key(0), 64), line, mask)

    def carried(x, times):
        for t, after in itertools.pairwise(times):
            x_1_hat = simplex_path.linear(line, x, np.full(64, t))
            x = simplex_path.step(line, x, x_1_hat, t, after)
        return np.asarray(x)

    found = carried(x_0, [0.0, 1.0])
    np.testing.assert_allclose(carried(x_0, [0.0, 0.3, 0.9, 1.0]), found, atol=1e-5)
    x = np.asarray(x_0, np.float64)
    for t in np.arange(2000) / 2000:
        x_1_hat = np.asarray(simplex_path.linear(line, x, np.full(64, t)))
        x = x + (x_1_hat - x) / (1.0 - t) / 2000
    np.testing.assert_allclose(x, found, atol=5e-3)
    np.testing.assert_allclose(found[~mask], 0.0, atol=1e-6)
    if noise == "fitted" and path == "dirichlet":
        np.testing.assert_allclose(found, x_0, atol=1e-5)


def test_a_rest_is_stepped_along_as_by_euler():
    """Many steps toward a constant x_1_hat end there."""
    mask, counts, ratios, logits = some_rows()
    for noise in simplex_path.NOISES:
        line = simplex_path.line("dirichlet", noise, logits, counts, SPREAD, mask)
        x = simplex_path.prior("dirichlet", jax.random.split(jax.random.key(0), 64), line, mask)
        for k in range(400):
            x = simplex_path.step(line, x, ratios, k / 400, (k + 1) / 400)
        np.testing.assert_allclose(x, ratios, atol=0.02)


def test_fitted_noise_lies_about_the_mean_as_counts_do():
    """Mean and variance of Dirichlet-multinomial counts' shares, few and many."""
    mean, counts = np.array([0.5, 0.3, 0.2]), np.array([1.0, 4.0, 500.0], np.float32)
    spread = simplex_path.Spread(np.array([np.log(12.0), 0.0], np.float32), np.float32(1.0))
    rng, n = np.random.default_rng(0), 8192
    for number in counts:
        row = np.full(n, number, np.float32)
        logits, mask = np.tile(np.log(mean), (n, 1)), np.ones((n, 3), bool)
        line = simplex_path.line("dirichlet", "fitted", logits, row, spread, mask)
        noise = np.asarray(
            simplex_path.prior("dirichlet", jax.random.split(jax.random.key(0), n), line, mask)
        )
        rates = rng.dirichlet(12.0 * mean, n)
        shares = np.stack([rng.multinomial(int(number), rate) for rate in rates]) / number
        np.testing.assert_allclose(noise.mean(axis=0), mean, atol=0.02)
        np.testing.assert_allclose(noise.std(axis=0), shares.std(axis=0), rtol=0.05)


def test_the_spread_of_shares_is_found():
    rng, n = np.random.default_rng(0), 4000
    proposals = rng.normal(0, 0.5, (n, 4, 1)).astype(np.float32)
    mask = np.ones((n, 4), bool)
    mask[::3, 3] = False
    mean = np.exp(proposals[..., 0]) * mask
    mean /= mean.sum(axis=1, keepdims=True)
    total = rng.integers(1, 60, n)
    a = np.exp(1.5 + 0.4 * np.log1p(total))
    rates = rng.gamma(np.maximum(a[:, None] * mean, 1e-9)) * mask
    counts = rng.multinomial(total, rates / rates.sum(axis=1, keepdims=True))
    rows = features.SplitRows(
        proposals, None, mask, total.astype(np.float32),
        (counts / total[:, None]).astype(np.float32), None,
    )  # fmt: skip
    found = pooling.spread(rows, np.ones(1, np.float32))
    at = np.array([2.0, 10.0, 50.0])
    logs = found.rate[0] + found.rate[1] * np.log1p(at)
    np.testing.assert_allclose(logs, 1.5 + 0.4 * np.log1p(at), atol=0.15)


def test_an_untrained_network_draws_the_fitted_noise(model, pairs):
    arrays = model.state.fitted.flow
    params = FLOW.init(jax.random.key(0), arrays, len(arrays.mean))
    untrained = dataclasses.replace(model, state=model.state._replace(params=params))
    drawn = [whole(changed(untrained, evaluations=n), pairs[1], np.arange(2))[1] for n in (1, 3)]
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-4)
    assert drawn[0].std(axis=0).min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("path, noise", LINES)
@pytest.mark.parametrize("pairing", simplex_path.PAIRINGS)
def test_every_switch_trains_and_draws(pairs, path, noise, pairing):
    """A step against the slope lowers the loss; draws are shares."""
    if pairing == "optimal" and noise == "fitted" and path == "dirichlet":
        pytest.skip("refused: fitted noise is each pair's own")
    flow = dataclasses.replace(FLOW, path=path, noise=noise, pairing=pairing)
    training = flow.training_set(pairs[:1], [list(pairs[0].low.genes[:4])])
    (rows,), arrays = training.rows, training.fitted.flow
    params = flow.init(jax.random.key(0), arrays, len(arrays.mean))

    @jax.jit
    def loss(params):
        total, weight = flow.loss(params, arrays, rows, jax.random.key(1))
        return total / weight

    before, slope = jax.value_and_grad(loss)(params)
    step = 0.003 / optax.tree.norm(slope)
    stepped = jax.tree.map(lambda p, g: p - step * g, params, slope)
    assert loss(stepped) < before - 3e-7
    draws = np.asarray(jax.jit(flow.sample, static_argnums=4)(
        stepped, arrays, rows, jax.random.key(2), 3
    ))  # fmt: skip
    np.testing.assert_allclose(draws.sum(axis=2), 1.0, atol=1e-5)
    assert (draws >= 0).all() and draws.std(axis=0).max() > 0.05


def test_optimal_pairing_exchanges_noise_within_groups():
    rng = np.random.default_rng(0)
    mask = np.ones((70, 3), bool)
    mask[::2, 2] = False
    x_0, x_1 = (simplex.normalized(rng.random((70, 3)), mask) for _ in range(2))
    paired = np.asarray(simplex_path.paired(x_0, x_1, mask))
    assert ((paired - x_1) ** 2).sum() < 0.5 * ((x_0 - x_1) ** 2).sum()
    assert (paired[~mask] == 0).all()
    np.testing.assert_allclose(paired[64:], x_0[64:], atol=1e-6)
    for group in (slice(0, 32), slice(32, 64)):
        before, after = (np.sort(a[group].ravel()) for a in (x_0, paired))
        np.testing.assert_allclose(after, before, atol=1e-6)


def test_latent_norm_gives_every_sample_the_same_axes(pairs):
    for pair in pairs:
        learned = latents.fit(pair.low)
        z = latents.normed(learned, latents.latents(learned, pair.low.counts, pair.low.coords_um))
        np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=1e-3)
        covariance = np.cov(z.T)
        np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=0.02)
        assert ((z**3).sum(axis=0) > -1e-2).all()


def test_the_rows_of_a_step_are_the_same_in_pieces(pairs):
    learned = FLOW.learn(pairs[0], Fitted(None, None))
    ((_, _, rows),) = features.blocks(pairs[0], learned, np.arange(6), 10_000)
    whole = SplitBatches(rows, ("s0",), 100)
    pieces = dataclasses.replace(whole, at_once=16)
    for devices, width in ((1, 16), (4, 64)):
        steps = [
            [list(step) for step in each.batches(0, 1, 0, devices)] for each in (whole, pieces)
        ]
        assert len(steps[0]) == whole.steps
        for (only,), parts in zip(*steps, strict=True):
            assert {len(part.counts) for part in parts} == {width}
            together = np.concatenate([part.place[part.counts > 0] for part in parts])
            np.testing.assert_array_equal(together, only.place[only.counts > 0])


def test_a_sample_is_fitted_once(pairs, monkeypatch):
    """Also where it was read again; other counts, places and seeds are other samples."""
    low, fitted = pairs[0].low, []
    monkeypatch.setattr(latents, "FITTED", {})
    monkeypatch.setattr(latents, "KEPT", 2)
    monkeypatch.setattr(latents, "_fitted", lambda *asked: fitted.append(asked) or asked)
    again = dataclasses.replace(low, counts=low.counts.copy(), coords_um=low.coords_um.copy())
    assert latents.fit(low) is latents.fit(again)
    others = [
        (dataclasses.replace(low, counts=2 * low.counts), 0),
        (dataclasses.replace(low, coords_um=low.coords_um + 1.0), 0),
        (low, 1),
    ]
    for k, other in enumerate(others):
        assert latents.fit(*other) is fitted[-1] and len(fitted) == k + 2
    assert len(latents.FITTED) == 2
    latents.fit(low)
    assert len(fitted) == 5


@pytest.mark.slow
def test_denoised_rates_are_nearer_the_truth_than_counts():
    slide = tissue(5, side=16)
    learned = latents.fit(slide)
    z = latents.normed(learned, latents.latents(learned, slide.counts, slide.coords_um))
    counts = slide.counts.toarray()
    rate = counts / counts.sum(axis=1, keepdims=True)
    rate /= rate.mean(axis=0)
    again = tissue(5, side=16)
    np.testing.assert_array_equal(again.counts.toarray(), counts)
    found = latents.denoised(learned, z, np.arange(24))
    other = np.random.default_rng(9).poisson(np.maximum(counts, 0.1))  # new counts, as if
    other = other / other.sum(axis=1, keepdims=True)
    other /= other.mean(axis=0)
    assert ((found - other) ** 2).mean() < ((rate.mean(axis=0) - other) ** 2).mean()


def test_columns(pairs):
    np.testing.assert_array_equal(columns(pairs[0], ["g3", "g0"]), [3, 0])
