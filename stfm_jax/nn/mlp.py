"""Multilayer perceptrons and embeddings shared by the models."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

PRECISIONS = ("float32", "bfloat16")


class Dense(nn.Module):
    """`x W + b`, products in `dtype`, sums in float32; parameters are float32."""

    features: int
    use_bias: bool = True
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = matmul(x, kernel, self.dtype)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))
        return y


def matmul(x: jax.Array, kernel: jax.Array, dtype: str) -> jax.Array:
    """`x @ kernel` of x [..., a] and kernel [a, b] with operands rounded to dtype.

    "bfloat16" is accumulated in float32; "float32" takes the operands as they are.
    """
    if dtype == "float32":
        return x @ kernel
    operands = x.astype(dtype), kernel.astype(dtype)
    return jnp.matmul(*operands, preferred_element_type=jnp.float32)


def dropout(keys: jax.Array | None, tag: int, rate: float, x: jax.Array) -> jax.Array:
    """Inverted dropout of the rows of x [n, d], each by its own key [n]; none without keys.

    The mask of a spot follows from its key and the `tag` of the place in the network alone, so
    neither tiles nor devices change it.
    """
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))
    return jnp.where(keep(fold(keys, tag)), x / (1.0 - rate), 0.0)


def gaussian_noise(keys: jax.Array | None, tag: int, std: float, x: jax.Array) -> jax.Array:
    """x [n, d] with noise added, row by row as in `dropout`; none without keys."""
    if keys is None or std == 0.0:
        return x
    draw = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))
    return x + std * draw(fold(keys, tag))


def fold(keys: jax.Array, tag: int) -> jax.Array:
    """The keys [n], each folded with tag."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, tag)


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


class NormedProjection(nn.Module):
    """`Linear(LN(x))` to one number, from three sums over x: the normed x is never written out."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., d] -> [...]."""
        d = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (d,))
        bias = self.param("bias", nn.initializers.zeros, (d,))
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (d, 1))[:, 0]
        shift = self.param("shift", nn.initializers.zeros, (1,))[0]
        mean = jnp.mean(x, axis=-1)
        variance = jnp.maximum(jnp.mean(x * x, axis=-1) - mean * mean, 0.0)
        weights = scale * kernel
        centred = x @ weights - mean * jnp.sum(weights)
        return centred * jax.lax.rsqrt(variance + self.epsilon) + bias @ kernel + shift


def gate(x: jax.Array) -> jax.Array:
    """`SiLU(a) * b` of x = [a | b]; halves the last axis."""
    a, b = jnp.split(x, 2, axis=-1)
    return nn.silu(a) * b


class SwiGLU(nn.Module):
    """`W2 LN(SiLU(a) * b)` with `[a | b] = W1 x`; inner width hidden / 2 [STFlow]."""

    hidden: int
    out: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = gate(Dense(self.hidden, dtype=self.dtype, name="w1")(x))
        return Dense(self.out, dtype=self.dtype, name="w2")(LayerNorm(name="norm")(x))


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
        x = nn.silu(Dense(self.width, name="w1")(x))
        return Dense(self.width, name="w2")(x)


class ExpressionHead(nn.Module):
    """Linear -> LN -> GELU -> Linear from tokens [n, d] to genes [n, g] [STFlow].

    With `zero_init` the head starts at zero, and the model at its anchor [ours].
    """

    num_genes: int
    zero_init: bool
    dtype: str = "float32"

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        h = LayerNorm(name="norm")(Dense(h.shape[-1], dtype=self.dtype, name="w1")(h))
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        head = Dense(self.num_genes, dtype=self.dtype, kernel_init=init, name="w2")
        return head(nn.gelu(h, approximate=False))
