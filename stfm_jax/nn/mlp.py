"""Multilayer perceptrons and embeddings shared by the models."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp


class LayerNorm(nn.Module):
    """Layer norm over the last axis, by mean and mean of squares.

    Written with `x.var` XLA's CPU code is three times slower.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (d,))
        bias = self.param("bias", nn.initializers.zeros, (d,))
        mean = jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.maximum(jnp.mean(x * x, axis=-1, keepdims=True) - mean * mean, 0.0)
        return (x - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias


def gate(x: jax.Array) -> jax.Array:
    """`SiLU(a) * b` of x = [a | b]; halves the last axis."""
    a, b = jnp.split(x, 2, axis=-1)
    return nn.silu(a) * b


class SwiGLU(nn.Module):
    """`W2 LN(SiLU(a) * b)` with `[a | b] = W1 x`; inner width hidden / 2 [STFlow]."""

    hidden: int
    out: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = gate(nn.Dense(self.hidden, name="w1")(x))
        return nn.Dense(self.out, name="w2")(LayerNorm(name="norm")(x))


class TimeEmbedding(nn.Module):
    """tau(t): sinusoidal features -> Linear -> SiLU -> Linear [STFlow].

    Unscaled, t in [0, 1] moves few of the sinusoids; `scale` = 1000 spreads it over them [ours].
    """

    width: int
    scale: float = 1000.0
    num_sinusoids: int = 256

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """t [...] -> [..., width]."""
        half = self.num_sinusoids // 2
        frequency = jnp.exp(-jnp.log(10000.0) * jnp.arange(half) / half)
        argument = self.scale * t[..., None] * frequency
        x = jnp.concatenate([jnp.cos(argument), jnp.sin(argument)], axis=-1)
        x = nn.silu(nn.Dense(self.width, name="w1")(x))
        return nn.Dense(self.width, name="w2")(x)


class ExpressionHead(nn.Module):
    """Linear -> LN -> GELU -> Linear from tokens [n, d] to genes [n, g] [STFlow].

    With `zero_init` the head starts at zero, and the model at its anchor [ours].
    """

    num_genes: int
    zero_init: bool

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        h = LayerNorm(name="norm")(nn.Dense(h.shape[-1], name="w1")(h))
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        return nn.Dense(self.num_genes, name="w2", kernel_init=init)(nn.gelu(h, approximate=False))
