"""BLEEP: expression of the training spots that lie nearest in a space learnt by contrast."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.models.method import within
from stfm_jax.models.network import Network, NetworkSettings, Rows, State
from stfm_jax.nn.bleep import Towers, contrastive_loss
from stfm_jax.settings import setting

NEAREST = 50  # training spots whose mean is predicted [BLEEP]


@dataclasses.dataclass(frozen=True)
class BLEEPSettings(NetworkSettings):
    """The section `bleep`; published values, but for those that the paper leaves open."""

    SECTION = "bleep"

    batch: int = setting(256, least=2)
    width: int = setting(256, least=1)
    dropout: float = setting(0.1)
    temperature: float = setting(1.0)


class _Module(nn.Module):
    """The towers, as `Network` calls them."""

    width: int
    dropout: float

    @nn.compact
    def __call__(self, rows: Rows, train: bool) -> tuple[jax.Array, jax.Array]:
        return Towers(self.width, self.dropout, name="towers")(rows.x, rows.y, train)


@dataclasses.dataclass(frozen=True)
class BLEEP(Network):
    """Retrieval: the mean of the training spots whose expression lies nearest to an image.

    Nearness is the cosine between the image's projection and those of training expression.
    """

    settings: BLEEPSettings

    name = "bleep"
    papers = ("BLEEP, arXiv 2306.01859",)
    Settings = BLEEPSettings

    def module(self, num_genes: int) -> nn.Module:
        return _Module(self.settings.width, self.settings.dropout)

    def losses(self, outputs: Any, y: jax.Array) -> jax.Array:
        return contrastive_loss(*outputs, self.settings.temperature)

    def remembered(self, params: Any, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        rows = Rows(np.zeros((len(y), x.shape[1]), np.float32), y, (), np.ones(len(y), bool))
        return {"keys": np.asarray(projected(self, params, rows)[1]), "expression": y}

    def predicted(self, params: Any, memory: dict, rows: Rows) -> np.ndarray:
        queries = projected(self, params, rows)[0]
        return np.asarray(_retrieved(queries, memory["keys"], memory["expression"]))

    def individual_data(self, state: State) -> dict[str, str]:
        (n, g), width = state.memory["expression"].shape, state.memory["keys"].shape[1]
        held = {
            "keys": f"of {n} single training spots: projections, {width} numbers",
            "expression": f"of {n} single training spots: measured less mean, {g} genes",
        }
        return within("memory", held)


@functools.partial(jax.jit, static_argnames="method")
def projected(method: BLEEP, params: Any, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Unit vectors [n, width] of images and of expression."""
    both = method.module(rows.y.shape[-1]).apply(params, rows, False)
    return tuple(z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in both)


@jax.jit
def _retrieved(queries: jax.Array, keys: jax.Array, expression: jax.Array) -> jax.Array:
    """Mean expression [m, g] of the keys [n, d] nearest to each query [m, d]."""
    _, nearest = jax.lax.top_k(queries @ keys.T, min(NEAREST, len(keys)))
    return jnp.mean(expression[nearest], axis=1)
