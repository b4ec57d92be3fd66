"""STFlow as published, in plain PyTorch: the yardstick for tests and benchmarks.

Written for this project from the paper's equations (arXiv 2506.05361) and the public code's
defaults as docs/methods.md states them, with none of our tricks: the attention MLP acts on the full
concatenation, the graph comes from an N x N distance matrix, neighbours are gathered into dense
[n, k] arrays, the four frames are explicit, and graph and frames are computed again in every block
of every evaluation. It therefore has the published form's weaknesses too: exactly k neighbours
whatever the ties, PCA frames that are noise on a lattice, no padding.

Needs the extra [bench] or [parity]; nothing in stfm_jax imports it. What it measures lies in the
benchmarks beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

GRAPHS = ("matrix", "kdtree")


class SwiGLU(nn.Module):
    """`W2 LN(SiLU(a) * b)` with `[a | b] = W1 x`; inner width hidden / 2 [paper]."""

    def __init__(self, width: int, hidden: int, out: int):
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden // 2)
        self.w2 = nn.Linear(hidden // 2, out)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.w1(x).chunk(2, dim=-1)
        return self.w2(self.norm(nn.functional.silu(a) * b))


class TimeEmbedding(nn.Module):
    """Sinusoidal features of t -> Linear -> SiLU -> Linear [paper]."""

    def __init__(self, width: int, scale: float = 1.0, num_sinusoids: int = 256):
        super().__init__()
        self.scale = scale
        self.num_sinusoids = num_sinusoids
        self.w1 = nn.Linear(num_sinusoids, width)
        self.w2 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """t [...] -> [..., width]."""
        half = self.num_sinusoids // 2
        index = torch.arange(half, dtype=t.dtype, device=t.device)
        argument = self.scale * t[..., None] * torch.exp(-math.log(10000.0) * index / half)
        x = torch.cat([torch.cos(argument), torch.sin(argument)], dim=-1)
        return self.w2(nn.functional.silu(self.w1(x)))


class Block(nn.Module):
    """Attention to k neighbours with frame features, feed-forward, expression head [paper]."""

    def __init__(self, width: int, heads: int, num_genes: int, neighbors: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.neighbors = neighbors
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.frame = SwiGLU(3, 128, width)
        self.logit = SwiGLU(3 * width // heads + num_genes, 128, 1)
        self.mix = SwiGLU(2 * width, width, width)
        self.feed_forward = SwiGLU(width, 4 * width, width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Sequential(
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.GELU(),
            nn.Linear(width, num_genes),
        )

    def forward(self, h: Tensor, y: Tensor, coords: Tensor, graph: str) -> tuple[Tensor, Tensor]:
        """h [n, d], y [n, g], coords [n, 2] -> new tokens [n, d], the head's y [n, g]."""
        n, d = h.shape
        near = nearest(coords, self.neighbors, graph)
        frames = self._split(frame_average(self.frame, coords, near, h.dtype))  # [n, k, heads, d_h]
        q, k, v = (self._split(x) for x in self.qkv(self.norm(h)).chunk(3, dim=-1))
        k, v = k[near], v[near]
        difference = (y[near] - y[:, None])[:, :, None].expand(-1, -1, self.heads, -1)
        pair = torch.cat([q[:, None].expand_as(k), k, frames, difference], dim=-1)
        weights = torch.softmax(self.logit(pair), dim=1)  # [n, k, heads, 1]
        message = torch.cat(
            [(weights * v).sum(dim=1).reshape(n, d), (weights * frames).sum(dim=1).reshape(n, d)],
            dim=-1,
        )
        h = h + self.drop(self.mix(message))
        h = h + self.drop(self.feed_forward(h))
        return h, self.head(h)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1)


class STFlow(nn.Module):
    """The published network: 1,147,724 parameters for 1,024 features and 50 genes."""

    def __init__(
        self,
        num_features: int = 1024,
        num_genes: int = 50,
        width: int = 128,
        num_blocks: int = 4,
        heads: int = 4,
        neighbors: int = 8,
        dropout: float = 0.2,
        time_scale: float = 1.0,
        graph: str = "matrix",
    ):
        """`graph` is "matrix" (N x N distances, published) or "kdtree" (same neighbours)."""
        super().__init__()
        if graph not in GRAPHS:
            raise ValueError(f"graph must be one of {', '.join(GRAPHS)}, found {graph!r}.")
        self.graph = graph
        self.evaluations = 0  # forward calls so far
        self.embed_features = nn.Linear(num_features, width)
        self.embed_time = TimeEmbedding(width, time_scale)
        self.blocks = nn.ModuleList(
            Block(width, heads, num_genes, neighbors, dropout) for _ in range(num_blocks)
        )

    def forward(self, x_t: Tensor, t: Tensor, features: Tensor, coords: Tensor) -> Tensor:
        """Predicts x_1.

        Args:
          x_t: [n, g] state.
          t: [] or [n] time in [0, 1].
          features: [n, f].
          coords: [n, 2] in units of the spot spacing; graph and frames are computed in their
            precision, everything else in that of the weights.

        Returns:
          [n, g] mean of the blocks' heads.
        """
        self.evaluations += 1
        h = self.embed_features(features) + self.embed_time(t)
        y, heads = x_t, []
        for block in self.blocks:
            h, y = block(h, y, coords, self.graph)
            heads.append(y)
        return torch.stack(heads).mean(dim=0)


def nearest(coords: Tensor, k: int, graph: str = "matrix") -> Tensor:
    """The k nearest others of every spot [n, k]; which of several tied ones is left to chance."""
    if graph == "kdtree":
        points = coords.detach().cpu().numpy()
        index = cKDTree(points).query(points, k=k + 1)[1][:, 1:]
        return torch.as_tensor(index, device=coords.device)
    # The faster mode by matrix products rounds so coarsely that it swaps neighbours.
    distance = torch.cdist(coords, coords, compute_mode="donot_use_mm_for_euclid_dist")
    distance.fill_diagonal_(float("inf"))
    return distance.topk(k, largest=False).indices


def frame_average(network: nn.Module, coords: Tensor, near: Tensor, dtype: torch.dtype) -> Tensor:
    """F_ij [n, k, d]: the mean of a network over the four sign-flipped PCA frames [paper].

    Args:
      network: 3 -> d, sees [U_g^T (r_ij - mean_j r_ij), |r_ij|].
      coords: [n, 2].
      near: [n, k] neighbours.
      dtype: precision of the network.
    """
    r = coords[near] - coords[:, None]
    centred = r - r.mean(dim=1, keepdim=True)
    covariance = centred.transpose(1, 2) @ centred / near.shape[1]
    axes = torch.linalg.eigh(covariance).eigenvectors.flip(-1)  # columns, largest first
    distance = torch.linalg.vector_norm(r, dim=-1, keepdim=True)
    outputs = []
    for signs in ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)):
        frame = axes * coords.new_tensor(signs)
        outputs.append(network(torch.cat([centred @ frame, distance], dim=-1).to(dtype)))
    return torch.stack(outputs).mean(dim=0)


# Sampling.


def published_times(points: int = 5) -> Tensor:
    """The code's time points, from 0.01 to 1: `points - 1` network evaluations."""
    return torch.linspace(0.01, 1.0, points)


def paper_times(steps: int = 5) -> Tensor:
    """The paper's steps, from 0 to 1: `steps` network evaluations."""
    return torch.linspace(0.0, 1.0, steps + 1)


def published_prior(num_spots: int, num_genes: int, generator: torch.Generator) -> Tensor:
    """x_0 [n, g]: log1p of a ZINB with total_count 1, logits 0.1 and zero-inflation logit 0.

    With total_count 1 the negative binomial is geometric: P(count >= c) = p^c, p = sigmoid(0.1).
    """
    shape = (num_spots, num_genes)
    success = 1.0 / (1.0 + math.exp(-0.1))
    u = torch.rand(shape, generator=generator, dtype=torch.float64)
    counts = torch.floor(torch.log1p(-u) / math.log(success))
    kept = torch.rand(shape, generator=generator) >= 0.5
    return torch.log1p(counts * kept).float()


@torch.no_grad()
def sample(
    model: STFlow, x_0: Tensor, features: Tensor, coords: Tensor, times: Tensor
) -> tuple[Tensor, int]:
    """Euler steps from a prior draw; the last one returns the prediction of the data itself.

    Args:
      model: network.
      x_0: [n, g] prior draw.
      features: [n, f].
      coords: [n, 2].
      times: ascending to 1.

    Returns:
      [n, g] draw, and the number of network evaluations it took.
    """
    x, before = x_0, model.evaluations
    times = times.to(x_0)
    for t, t_next in pairwise(times[:-1]):
        velocity = (model(x, t, features, coords) - x) / (1.0 - t)
        x = x + (t_next - t) * velocity
    x = model(x, times[-2], features, coords)
    return x, model.evaluations - before


# Weights, to and from stfm_jax.nn.stflow_net.STFlowNet(expression="differences").


def copy_weights_to_jax(model: STFlow) -> dict:
    """Parameters of STFlowNet, as NumPy arrays, with the weights of a torch model."""
    params: dict = {}
    for tensor, path in _correspondence(model):
        *folders, leaf = path
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        array = tensor.detach().cpu().numpy()
        node[leaf] = np.array(array.T if array.ndim == 2 else array)
    return params


@torch.no_grad()
def copy_weights_from_jax(params: dict, model: STFlow) -> None:
    """Overwrites the weights of a torch model with parameters of STFlowNet.

    Raises:
      ValueError: a parameter is missing, left over or of another shape.
    """
    used = 0
    for tensor, path in _correspondence(model):
        node = params
        for name in path:
            if name not in node:
                raise ValueError(f"the Flax parameters lack {'/'.join(path)}.")
            node = node[name]
        array = np.array(node).T if tensor.ndim == 2 else np.array(node)
        if array.shape != tuple(tensor.shape):
            raise ValueError(
                f"{'/'.join(path)}: expected {tuple(tensor.shape)}, found {array.shape}."
            )
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(array)))
        used += 1
    found = _count_leaves(params)
    if found != used:
        raise ValueError(f"the torch model has {used} parameters, the Flax ones are {found}.")


def _correspondence(model: STFlow) -> Iterator[tuple[Tensor, tuple[str, ...]]]:
    """Every torch parameter with its path in the Flax tree; matrices are transposed there."""
    yield from _linear(model.embed_features, "embed_features")
    yield from _linear(model.embed_time.w1, "embed_time", "w1")
    yield from _linear(model.embed_time.w2, "embed_time", "w2")
    for i, block in enumerate(model.blocks):
        here = f"block_{i}"
        yield from _norm(block.norm, here, "norm")
        yield from _linear(block.qkv, here, "qkv")
        yield block.frame.w1.weight, (f"frames_{i}", "w1_kernel")
        yield block.frame.w1.bias, (f"frames_{i}", "w1_bias")
        yield from _norm(block.frame.norm, f"frames_{i}", "norm")
        yield from _linear(block.frame.w2, f"frames_{i}", "w2")
        yield block.logit.w1.weight, (here, "logits", "w1_kernel")
        yield block.logit.w1.bias, (here, "logits", "w1_bias")
        yield from _norm(block.logit.norm, here, "logits", "project")
        yield block.logit.w2.weight, (here, "logits", "project", "kernel")
        yield block.logit.w2.bias, (here, "logits", "project", "shift")
        yield from _swiglu(block.mix, here, "mix")
        yield from _swiglu(block.feed_forward, here, "feed_forward")
        yield from _linear(block.head[0], here, "head", "w1")
        yield from _norm(block.head[1], here, "head", "norm")
        yield from _linear(block.head[3], here, "head", "w2")


def _linear(layer: nn.Linear, *path: str):
    yield layer.weight, (*path, "kernel")
    yield layer.bias, (*path, "bias")


def _norm(layer: nn.LayerNorm, *path: str):
    yield layer.weight, (*path, "scale")
    yield layer.bias, (*path, "bias")


def _swiglu(layer: SwiGLU, *path: str):
    yield from _linear(layer.w1, *path, "w1")
    yield from _norm(layer.norm, *path, "norm")
    yield from _linear(layer.w2, *path, "w2")


def _count_leaves(node) -> int:
    return sum(map(_count_leaves, node.values())) if hasattr(node, "values") else 1
