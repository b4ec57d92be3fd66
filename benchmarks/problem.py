"""What is measured: a made-up slide, STFlow in its published form, and jobs of ours and of torch.

A job (see harness) is one prediction or one training step of a slide of n spots, from coordinates,
features and weights to expression or new weights, the neighbour graph included. Ours and the
reference's start from the same weights; `agreement` is how far apart they come out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
from harness import Job, Row
from ready import KEY, LEARNING_RATE, Training, ready_to_draw
from scipy.spatial import cKDTree

from stfm_jax.data.batching import PreparedSlide, bucket_size, collate
from stfm_jax.flow import gaussian, priors
from stfm_jax.models.stflow.flow import FlowArrays, STFlow
from stfm_jax.models.stflow.joint import draw_keys
from stfm_jax.models.stflow.settings import default_tile
from stfm_jax.nn.stflow_net import STFlowNet
from stfm_jax.ops.neighbors import TIE_TOLERANCE

EVALUATIONS = 5  # of the network in a draw
SEEN_BY_EXPRESSION = 16  # features that the made-up expression depends on
# What a slide's edge features may take in the form driven from the host, where it is forced.
CACHES = {"stfm_kept": 1 << 62, "stfm_recomputed": 0}


# The problem.


def slide(order: Row, seed: int = 0) -> PreparedSlide:
    """n spots on a jittered lattice, so that no neighbours tie and no PCA is degenerate."""
    n, f, g = order["n"], order["features"], order["genes"]
    rng = np.random.default_rng(seed)
    coords = coordinates_without_ties(n, rng)
    features = rng.standard_normal((n, f), dtype=np.float32)
    expr = None
    if order["what"] == "train":
        seen = features[:, :SEEN_BY_EXPRESSION]
        weights = rng.standard_normal((seen.shape[1], g), dtype=np.float32)
        expr = np.maximum(1.0 + seen @ weights / np.float32(4.0), 0.0)
    return PreparedSlide(
        name=f"{n} spots",
        coords=coords,
        features=features,
        anchor=np.zeros((n, g), np.float32),
        expr=expr,
        place=np.arange(n, dtype=np.int32),
    )


def coordinates_without_ties(n: int, rng: np.random.Generator) -> np.ndarray:
    """Coordinates [n, 2], float32 numbers, of which the reference makes the same graph as we do.

    Ours keeps a neighbour at the distance of the k-th but for TIE_TOLERANCE, and among so many
    spots there are some; these are moved.
    """
    lattice = np.stack(np.divmod(np.arange(n), int(np.ceil(np.sqrt(n)))), axis=1)
    coords, moved = np.empty((n, 2)), np.arange(n)
    while len(moved):
        jitter = rng.uniform(-0.3, 0.3, (len(moved), 2))
        coords[moved] = (lattice[moved] + jitter).astype(np.float32)
        kth, following = cKDTree(coords).query(coords, k=STFlow.neighbors + 2)[0].T[-2:]
        moved = np.flatnonzero(following <= kth * (1.0 + 2.0 * TIE_TOLERANCE))
    return coords


def flow_of(order: Row, **changes: Any) -> STFlow:
    """STFlow as published: differences of expression, PCA frames, no anchor, plain error."""
    network = STFlowNet(
        order["genes"],
        width=order["width"],
        num_blocks=order["blocks"],
        dropout=0.2,
        expression="differences",
        frames="pca",
        time_scale=1.0,
        zero_init=False,
    )
    published = STFlow(
        network,
        anchor="none",
        prior="zinb_scalar",
        token_context=False,
        loss_weight="data",
        evaluations=EVALUATIONS,
        clip=False,
        tile=default_tile(),
    )
    return dataclasses.replace(published, **changes)


def flow_arrays(genes: int) -> FlowArrays:
    """Of the published form, which draws from the prior and uses nothing else; ours takes them."""
    prior = priors.zinb_scalar_prior(genes)
    path = gaussian.gaussian_path(prior.mean, prior.covariance, np.eye(genes))
    arrays = FlowArrays(prior, path, np.zeros(genes, np.float32), np.ones(genes, np.float32))
    return jax.device_put(arrays)


def weights(flow: STFlow, order: Row) -> dict:
    """Parameters that the seed decides."""
    return _initialised(flow, flow_arrays(order["genes"]), order["features"])


@functools.partial(jax.jit, static_argnums=(0, 2))
def _initialised(flow: STFlow, arrays: FlowArrays, num_features: int) -> dict:
    return flow.init(jax.random.key(0), arrays, num_features)


# Ours.


def draw(order: Row) -> Job:
    """One joint draw of a slide.

    `impl` is "stfm", the form the product takes for so many spots, or one of CACHES.
    """
    flow, arrays, prepared = flow_of(order), flow_arrays(order["genes"]), slide(order)
    params, cache = weights(flow, order), CACHES.get(order["impl"])

    def job():
        ready = ready_to_draw(flow, params, arrays, prepared, order["devices"], cache)
        ready.draw(flow.evaluations)
        return {"evaluations": EVALUATIONS, **jax_facts()}

    return job


def step(order: Row) -> Job:
    """One training step on a slide.

    `impl` is "stfm", or "stfm_untiled": one tile, where nothing is computed again backwards.
    """
    tile = bucket_size(order["n"]) if order["impl"] == "stfm_untiled" else default_tile()
    flow, prepared = flow_of(order, tile=tile), slide(order)
    take_step = step_on_devices(flow, prepared, order)
    losses: list[float] = []

    def job():
        losses.append(take_step())
        return {"losses": losses, "evaluations": 1, **jax_facts()}

    return job


def step_on_devices(flow: STFlow, prepared: PreparedSlide, order: Row) -> Callable[[], float]:
    """A function that takes one step, from the slide to new weights, and returns the loss."""
    training = Training(flow, flow_arrays(order["genes"]), order)
    return lambda: training.step(training.batch(prepared))


def jax_facts() -> Row:
    """The device, and its peak memory where it has its own."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return {"device": harness.cpu_name()}
    peak = max(d.memory_stats()["peak_bytes_in_use"] for d in jax.local_devices())
    return {"device": device.device_kind, "peak_gib": peak / 2**30}


# The reference: `impl` is "reference" (graph by the N x N matrix) or "reference_kdtree".


class Reference:
    """The published network in PyTorch with the weights of ours, on a GPU where torch sees one."""

    def __init__(self, order: Row, prepared: PreparedSlide):
        import reference
        import torch

        self.published, self.torch = reference, torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        self.model = reference.STFlow(
            order["features"],
            order["genes"],
            width=order["width"],
            num_blocks=order["blocks"],
            graph="kdtree" if order["impl"] == "reference_kdtree" else "matrix",
        ).to(self.device)
        reference.copy_weights_from_jax(weights(flow_of(order), order)["flow"], self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), LEARNING_RATE)
        self.generator = torch.Generator().manual_seed(0)
        self.features, self.expr = self._placed(prepared.features), self._placed(prepared.expr)
        self.coords = self._placed(prepared.coords)

    def _placed(self, array: np.ndarray | None):
        return None if array is None else self.torch.from_numpy(array).float().to(self.device)

    def prior(self):
        """A published prior draw [n, g]."""
        shape = len(self.coords), self.model.blocks[0].head[-1].out_features
        return self.published.published_prior(*shape, self.generator).to(self.device)

    def draw(self, x_0) -> np.ndarray:
        """x_1 [n, g] of a prior draw."""
        times = self.published.paper_times(EVALUATIONS)
        self.model.eval()
        drawn, _ = self.published.sample(self.model, x_0, self.features, self.coords, times)
        return drawn.cpu().numpy()

    def loss(self, x_0, t):
        """Mean squared error of the data predicted from the straight path at t."""
        x_t = (1.0 - t) * x_0 + t * self.expr
        predicted = self.model(x_t, t, self.features, self.coords)
        return self.torch.nn.functional.mse_loss(predicted, self.expr)

    def step(self) -> float:
        """Forward, backward, Adam; returns the loss."""
        self.model.train()
        self.optimizer.zero_grad()
        loss = self.loss(self.prior(), self.torch.rand((), generator=self.generator))
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def facts(self) -> Row:
        """The device, and its peak memory where it has its own."""
        if self.device == "cpu":
            return {"device": harness.cpu_name()}
        peak = self.torch.cuda.max_memory_allocated() / 2**30
        return {"device": self.torch.cuda.get_device_name(), "peak_gib": peak}


def reference_draw(order: Row) -> Job:
    """One draw by the reference, its prior included."""
    model = Reference(order, slide(order))

    def job():
        model.draw(model.prior())
        return {"evaluations": EVALUATIONS, **model.facts()}

    return job


def reference_step(order: Row) -> Job:
    """One training step of the reference."""
    model, losses = Reference(order, slide(order)), []

    def job():
        losses.append(model.step())
        return {"losses": losses, "evaluations": 1, **model.facts()}

    return job


# Same weights, same outputs.


def agreement(order: Row) -> Job:
    """Relative differences between ours and the reference, from the same weights and noise.

    Of a draw (the functions that are timed) the largest, in root mean squares of the draw; of the
    loss, and of the gradient's norm, without dropout.
    """
    prepared = slide({**order, "what": "train"})
    model = Reference(order, prepared)
    flow, arrays = flow_of(order), flow_arrays(order["genes"])
    params = weights(flow, order)

    def job():
        key = draw_keys(KEY, 1)[0]
        ours = ready_to_draw(flow, params, arrays, prepared).draw(flow.evaluations)
        x_0 = _prior_of(arrays, key, prepared)
        theirs = model.draw(model._placed(x_0))
        scale = float(np.sqrt(np.mean(theirs**2)))
        return {
            "difference": float(np.abs(ours - theirs).max()) / scale,
            **_training_differences(flow, params, arrays, prepared, model),
        }

    return job


def _prior_of(arrays: FlowArrays, key: jax.Array, prepared: PreparedSlide) -> np.ndarray:
    """The prior draw [n, g] that a key stands for, in the order of the input."""
    keys = priors.spot_keys(key, jnp.zeros_like(prepared.place), prepared.place)
    return np.array(priors.sample(arrays.prior, keys))


def _training_differences(flow, params, arrays, prepared, model) -> Row:
    network = dataclasses.replace(flow.network, dropout=0.0)
    flow = dataclasses.replace(flow, network=network)
    batch = collate([prepared], flow.neighbors, flow.tile)

    def mean_loss(params):
        total, count = flow.loss(params, arrays, batch, KEY)
        return total / count

    loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(params)
    key_t, key_0, _ = jax.random.split(KEY, 3)  # as joint.errors splits it
    t = float(jax.random.uniform(jax.random.fold_in(key_t, 0)))
    model.model.eval()
    model.model.zero_grad()
    expected = model.loss(model._placed(_prior_of(arrays, key_0, prepared)), model.torch.tensor(t))
    expected.backward()
    norm = np.sqrt(sum(float((p.grad**2).sum()) for p in model.model.parameters()))
    ours = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient)))
    return {
        "loss_difference": abs(float(loss) / float(expected.detach()) - 1.0),
        "gradient_difference": abs(float(ours / norm) - 1.0),
    }
