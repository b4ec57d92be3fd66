"""STFlow from slide to prediction: what moving, permuting, padding and tiling may not change.

Networks get large random weights, so that every path through them counts and the tests can fail;
`test_published_frames_fail_on_lattices` shows that they do.
"""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
import scipy.sparse as sp

from stfm_jax.data.batching import Batch, bucket_size, collate, in_order, take
from stfm_jax.data.slide import Slide
from stfm_jax.models.stflow.flow import STFlow
from stfm_jax.nn.stflow_net import ImageTower, STFlowNet

NUM_GENES, NUM_FEATURES, K = 10, 16, 8
GENES = [f"gene{i}" for i in range(NUM_GENES)]
NETWORK = STFlowNet(NUM_GENES, width=16, num_blocks=2, heads=2, dropout=0.0)
PLAIN = STFlow(
    NETWORK, anchor="none", prior="zinb_scalar", context=(), components=12, clip=False
)  # unclipped: a prediction cut off at 0 would hide changes
FLOWS = {
    "no anchor": PLAIN,
    "ridge": dataclasses.replace(PLAIN, anchor="ridge", context=(9, 25), token_context=False),
    "kernel": dataclasses.replace(
        PLAIN, anchor="kernel", context=(9, 25), image=ImageTower(NUM_GENES, width=16)
    ),
    "published": dataclasses.replace(
        PLAIN, network=dataclasses.replace(NETWORK, expression="differences")
    ),
}
FLOWS["tiles"] = dataclasses.replace(FLOWS["kernel"], tile=64)
PUBLISHED_FRAMES = dataclasses.replace(PLAIN, network=dataclasses.replace(NETWORK, frames="pca"))


def square_lattice(side=14):
    return 200.0 * np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)


def hexagonal_lattice(side=14):
    """Visium: 100 um between centres."""
    row, column = np.divmod(np.arange(side * side), side)
    return 100.0 * np.stack([column + 0.5 * (row % 2), np.sqrt(0.75) * row], axis=1)


def random_points(n=196):
    return np.random.default_rng(5).uniform(0.0, 1500.0, (n, 2))


POINTS = {"random": random_points, "square": square_lattice, "hexagonal": hexagonal_lattice}


def make_slide(coords_um, seed):
    """Features in smooth patches with noise, counts that depend on them."""
    rng = np.random.default_rng(seed)
    n = len(coords_um)
    phase = coords_um @ rng.normal(0.0, 3e-3, (2, NUM_FEATURES)) + rng.uniform(0, 6, NUM_FEATURES)
    features = np.sin(phase) + 0.5 * rng.normal(size=(n, NUM_FEATURES))
    weights = np.random.default_rng(0).normal(0.0, 0.3, (NUM_FEATURES, NUM_GENES))
    counts = sp.csr_matrix(rng.poisson(np.exp(1.0 + features @ weights)).astype(np.float32))
    return Slide(
        name=f"simulated {seed}",
        barcodes=np.array([f"spot{i}" for i in range(n)]),
        coords_um=np.asarray(coords_um, np.float64),
        counts=counts,
        genes=np.array(GENES),
        features=features.astype(np.float32),
    )


def moved(slide, degrees, mirror=False, shift=(0.0, 0.0)):
    a = np.deg2rad(degrees)
    rotation = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    coords = slide.coords_um * [-1 if mirror else 1, 1] @ rotation + shift
    return dataclasses.replace(slide, coords_um=coords, coords_in=coords)


MOVES = {
    "37 degrees": {"degrees": 37.0},
    "quarter turn": {"degrees": 90.0},
    "mirrored": {"degrees": 0.0, "mirror": True},
    "shifted": {"degrees": 0.0, "shift": (31_234.5, -8_000.25)},
    "all at once": {"degrees": -201.3, "mirror": True, "shift": (-777.0, 12_345.0)},
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A flow, fitted, with weights that are all far from zero."""

    flow: STFlow
    fitted: object
    params: dict

    def prepare(self, slide):
        return self.flow.prepare(slide, self.fitted, GENES)

    def collate(self, *slides):
        return collate(slides, K, self.flow.tile)

    def draw(self, batch, draws=1):
        """[draws, n, g], slide by slide, each in the order of its input."""
        arrays = (self.params, self.fitted.flow, batch, jax.random.key(7))
        return np.asarray(self.flow.sample(*arrays, draws=draws))[:, rows_of(batch)]

    def posterior_mean(self, batch):
        arrays = (self.params, self.fitted.flow, batch, jax.random.key(7))
        return np.asarray(self.flow.posterior_mean(*arrays, draws=2))[rows_of(batch)]

    def predict(self, slide):
        return self.draw(self.collate(self.prepare(slide)))[0]


def rows_of(batch):
    """The batch's rows that are spots, ordered by slide and place."""
    rows = np.flatnonzero(batch.spot_mask)
    return rows[np.lexsort((batch.place[rows], batch.slide[rows]))]


@functools.cache
def training_slides():
    rng = np.random.default_rng(1)
    return [make_slide(rng.uniform(0, 1000.0, (90, 2)), seed) for seed in (1, 2)]


def perturbed(params, scale=0.3, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: np.asarray(a + scale * rng.normal(size=a.shape), np.float32), params
    )


@functools.cache
def model_of(flow):
    fitted = flow.training_set(training_slides(), GENES).fitted
    params = jax.jit(flow.init, static_argnums=2)(
        jax.random.key(0), fitted.flow, flow.input_width(fitted)
    )
    return Model(flow, fitted, perturbed(params))


def change(a, b):
    """Largest difference in units of the gene's standard deviation over the spots."""
    assert np.isfinite(a).all() and np.isfinite(b).all()
    assert a.std(axis=0).min() > 0.05  # a prediction that is constant would prove nothing
    return float((np.abs(a - b).max(axis=0) / a.std(axis=0)).max())


@functools.cache
def unmoved(name, points):
    slide = make_slide(POINTS[points](), seed=9)
    return slide, model_of(FLOWS[name]).predict(slide)


# Tiles are cut anew after every move, and other shapes are compiled: one move stands for all.
MOVED = [(name, move) for name in ("no anchor", "kernel", "published") for move in MOVES]
MOVED.append(("tiles", "all at once"))


# Where compiling takes most: one tile is a special case of several.
ONE_TILE_OR_SEVERAL = [pytest.param("kernel", marks=pytest.mark.slow), "tiles"]


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize(("name", "move"), MOVED)
def test_moving_a_slide_changes_nothing(name, points, move):
    slide, base = unmoved(name, points)
    assert change(base, model_of(FLOWS[name]).predict(moved(slide, **MOVES[move]))) < 1e-4


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("name", ["ridge", "kernel"])  # read from the flow, and from the tower
def test_moving_a_slide_keeps_the_posterior_mean(name, points):
    model = model_of(FLOWS[name])
    slide = make_slide(POINTS[points](), seed=9)
    base, other = (
        model.posterior_mean(model.collate(model.prepare(s)))
        for s in (slide, moved(slide, **MOVES["all at once"]))
    )
    assert change(base, other) < 1e-4


@pytest.mark.parametrize("points", [pytest.param("square", marks=pytest.mark.slow), "hexagonal"])
def test_published_frames_fail_on_lattices(points):
    """That the tests above can fail: with PCA alone rounding noise chooses the frames."""
    model = model_of(PUBLISHED_FRAMES)
    slide = make_slide(POINTS[points](), seed=9)
    assert change(model.predict(slide), model.predict(moved(slide, 37.0))) > 1e-2


def test_coordinates_do_matter():
    """That the tests above can fail: another arrangement of the same spots predicts otherwise."""
    model = model_of(FLOWS["no anchor"])
    slide = make_slide(square_lattice(), seed=9)
    stretched = slide.coords_um * [1.0, 1.3]
    other = dataclasses.replace(slide, coords_um=stretched, coords_in=stretched)
    assert change(model.predict(slide), model.predict(other)) > 1e-2


@pytest.mark.parametrize("points", ["random", "square", "hexagonal"])
def test_tiles_change_nothing(points):
    """Four tiles of 64 against one, with the same weights."""
    tiled, whole = model_of(FLOWS["tiles"]), model_of(FLOWS["kernel"])
    slide, base = unmoved("kernel", points)
    assert tiled.collate(tiled.prepare(slide)).tiles.num_tiles == 4
    assert whole.collate(whole.prepare(slide)).tiles.num_tiles == 1
    jax.tree.map(np.testing.assert_array_equal, tiled.params, whole.params)
    assert change(base, unmoved("tiles", points)[1]) < 1e-4


@pytest.mark.parametrize("points", ["square", "hexagonal"])
@pytest.mark.parametrize("name", ["kernel", "tiles"])
def test_permuting_spots_with_their_noise_changes_nothing(name, points):
    """The batch's rows are permuted, or other tiles cut; read by place, the output is the same."""
    model = model_of(FLOWS[name])
    slide, base = unmoved(name, points)
    order = np.random.default_rng(3).permutation(slide.num_spots)
    prepared = dataclasses.replace(model.prepare(slide.subset(order)), place=order.astype(np.int32))
    assert change(base, model.draw(model.collate(prepared))[0]) < 1e-4
    # Without its place a spot would get another's noise.
    assert change(base[order], model.predict(slide.subset(order))) > 1e-2


@pytest.mark.parametrize("name", ["kernel", "tiles"])
def test_in_order_gives_rows_as_in_the_input(name):
    """Of a shuffled slide: features, draws and their mean."""
    model = model_of(FLOWS[name])
    slide = unmoved(name, "hexagonal")[0]
    shuffled = slide.subset(np.random.default_rng(3).permutation(slide.num_spots))
    for s in (slide, shuffled):
        prepared = model.prepare(s)
        batch = model.collate(prepared)
        np.testing.assert_array_equal(in_order(batch, batch.features), prepared.features)
        arrays = (model.params, model.fitted.flow, batch, jax.random.key(7))
        draws = in_order(batch, model.flow.sample(*arrays, draws=1))
        assert draws.shape == (1, slide.num_spots, NUM_GENES)
        np.testing.assert_array_equal(draws, model.draw(batch))
    batch = model.collate(model.prepare(slide))
    np.testing.assert_array_equal(in_order(batch, batch.expr), model.prepare(slide).expr)


def with_garbage(batch: Batch) -> Batch:
    """The same batch with large numbers, and other rows, wherever there is padding."""
    spot, tiles = batch.spot_mask, batch.tiles
    assert not tiles.mask.all()
    rng = np.random.default_rng(0)

    def fill(value, mask):
        out = np.array(value)
        out[~mask] = 50.0 * rng.normal(size=out[~mask].shape)
        return out

    size, (p, width) = tiles.size, tiles.halo.shape
    unused = np.ones((p, width), bool)
    for i in range(p):
        looked_at = tiles.senders[i][tiles.mask[i]]
        unused[i, looked_at[looked_at >= size] - size] = False
    anywhere = rng.integers(0, size + width, tiles.senders.shape)
    tiles = tiles._replace(
        halo=np.where(unused, rng.integers(0, len(spot), unused.shape), tiles.halo).astype(
            np.int32
        ),
        senders=np.where(tiles.mask, tiles.senders, anywhere).astype(np.int32),
        geometry=jax.tree.map(lambda a: fill(a, tiles.mask), tiles.geometry),
    )
    return batch._replace(
        **{name: fill(getattr(batch, name), spot) for name in ("features", "anchor", "expr")},
        place=np.where(spot, batch.place, 3),
        tiles=tiles,
    )


@pytest.mark.parametrize("num_spots", [196, 192])
@pytest.mark.parametrize("name", ["no anchor", "tiles"])
def test_what_lies_in_the_padding_does_not_matter(name, num_spots):
    """192 spots fill their bucket: the padded edges then lie at real spots alone."""
    model = model_of(FLOWS[name])
    batch = model.collate(model.prepare(make_slide(hexagonal_lattice()[:num_spots], seed=9)))
    assert batch.spot_mask.all() == (num_spots == 192)
    garbage = with_garbage(batch)
    assert (garbage.tiles.senders != batch.tiles.senders).any()
    assert (garbage.tiles.halo != batch.tiles.halo).any() == (name == "tiles")
    rows = rows_of(batch)
    arrays = (model.params, model.fitted.flow)
    base, other = (
        np.asarray(model.flow.sample(*arrays, b, jax.random.key(7), draws=1))[0, rows]
        for b in (batch, garbage)
    )
    assert change(base, other) < 1e-5


@pytest.mark.parametrize("name", ONE_TILE_OR_SEVERAL)
def test_company_and_bigger_buckets_change_nothing(name):
    """Two slides in one batch, which is a bigger bucket for both; a tile holds spots of either."""
    model = model_of(FLOWS[name])
    slides = [make_slide(hexagonal_lattice(), seed=9), make_slide(random_points(190), seed=10)]
    first, second = (model.prepare(s) for s in slides)
    both = model.collate(first, second)
    alone_0, alone_1 = model.collate(first), model.collate(second)
    assert len(both.spot_mask) == bucket_size(386) > len(alone_0.spot_mask)
    together_0, together_1 = np.split(model.draw(both)[0], [196])
    assert change(model.draw(alone_0)[0], together_0) < 1e-5
    # In company the second slide draws noise of its own: it is keyed to the slide's index too.
    assert change(model.draw(alone_1)[0], together_1) > 1e-2
    alone_1 = alone_1._replace(slide=np.ones_like(alone_1.slide))
    assert change(model.draw(alone_1)[0], together_1) < 1e-5


def test_draws_are_the_same_however_many_are_taken():
    model = model_of(FLOWS["kernel"])
    batch = model.collate(model.prepare(make_slide(hexagonal_lattice(), seed=9)))
    one, two = model.draw(batch), model.draw(batch, draws=2)
    assert change(two[0], one[0]) < 1e-5 and change(two[0], two[1]) > 1e-2


@pytest.mark.parametrize("name", ONE_TILE_OR_SEVERAL)
def test_loss_ignores_the_padding(name):
    model = model_of(FLOWS[name])
    batch = model.collate(model.prepare(make_slide(square_lattice(), seed=9)))
    step = jax.jit(jax.value_and_grad(model.flow.loss, has_aux=True))
    results = [
        step(model.params, model.fitted.flow, b, jax.random.key(0))
        for b in (batch, with_garbage(batch))
    ]
    (loss, count), gradient = results[0]
    assert int(count) == 196 * NUM_GENES and loss > 0
    (other, other_count), other_gradient = results[1]
    assert int(other_count) == count
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    scale = max(np.abs(g).max() for g in jax.tree.leaves(gradient))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True):
        assert np.isfinite(a).all() and np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, atol=1e-4 * scale)


def test_noise_of_training_is_the_spots_own():
    """With dropout everywhere, neither tiles nor padding nor an order of spots change the loss."""
    network = dataclasses.replace(NETWORK, dropout=0.3, feature_noise=0.5, feature_dropout=0.2)
    slide = make_slide(hexagonal_lattice(), seed=9)
    order = np.random.default_rng(3).permutation(slide.num_spots)
    losses = {}
    for name in ("kernel", "tiles"):
        model = model_of(FLOWS[name])
        loss = jax.jit(dataclasses.replace(model.flow, network=network).loss)
        prepared = model.prepare(slide)
        batches = {
            "": model.collate(prepared),
            "garbage": with_garbage(model.collate(prepared)),
            "order": model.collate(take(prepared, order)),
        }
        for how, batch in batches.items():
            arrays = (model.params, model.fitted.flow, batch)
            losses[name, how] = float(loss(*arrays, jax.random.key(0))[0])
        losses[name, "other noise"] = float(loss(*arrays, jax.random.key(1))[0])
    base = losses["kernel", ""]
    for (_, how), value in losses.items():
        assert value == pytest.approx(base, rel=1e-4) or how == "other noise"
        assert abs(value / base - 1) > 0.01 or how != "other noise"


def test_one_trace_serves_all_folds_of_a_bucket():
    """Other training slides, other genes' moments, other sizes within the bucket: no new trace."""
    traces = []

    class Counted(STFlow):
        def evaluator(self, params, batch, noise=None):
            traces.append((len(batch.spot_mask), "sample" if noise is None else "loss"))
            return super().evaluator(params, batch, noise)

    flow = Counted(**{f.name: getattr(FLOWS["ridge"], f.name) for f in dataclasses.fields(STFlow)})
    step = jax.jit(chex.assert_max_traces(flow.loss, n=1))  # raises at a second trace
    params = model_of(FLOWS["ridge"]).params
    slides = [*training_slides(), make_slide(random_points(85), seed=3)]
    for fold in range(3):
        training = [s for i, s in enumerate(slides) if i != fold]
        fitted = flow.training_set(training, GENES).fitted
        batch = collate([flow.prepare(slides[fold], fitted, GENES)], K, flow.tile)
        assert len(batch.spot_mask) == 128
        jax.eval_shape(step, params, fitted.flow, batch, jax.random.key(fold))
        draws = flow.sample(params, fitted.flow, batch, jax.random.key(fold), draws=2)
        assert np.isfinite(draws).all()
    assert traces == [(128, "loss"), (128, "sample")]
