"""Attention of every spot to all spots of its slide or stack, at a cost linear in the spots."""

from __future__ import annotations

import flax.linen as nn
import jax

from stfm_jax.nn.blocks import QueryKeyValue
from stfm_jax.nn.mlp import Dense, LayerNorm
from stfm_jax.ops.linear_attention import linear_attention


class GlobalAttention(nn.Module):
    """`W_o linear_attention(W_qkv LN(h))`, to be added to h [HoloTea].

    With `zero_init` W_o starts at zero, so that a network starts as if it had no such part [ours].
    """

    heads: int
    dtype: str = "float32"
    zero_init: bool = True

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        mask: jax.Array,
        group: jax.Array | None = None,
        num_groups: int = 1,
        axis: str | None = None,
    ) -> jax.Array:
        """h [n, d], mask [n], group [n] -> [n, d]; arguments as of `linear_attention`."""
        n, d = h.shape
        projected = QueryKeyValue(self.dtype, name="qkv")(LayerNorm(name="norm")(h), n)
        q, k, v = (a.reshape(n, self.heads, d // self.heads) for a in projected)
        message = linear_attention(q, k, v, mask, group, num_groups, axis).reshape(n, d)
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        return Dense(d, dtype=self.dtype, kernel_init=init, name="out")(message)
