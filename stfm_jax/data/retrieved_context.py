"""From retrieved spots to what a network sees of them (`ops.context.Context`), host side."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.data.retrieval import Placed, Reach, Retrieved, gathered, has_values, retrieve
from stfm_jax.ops.context import Context


def context_of(
    sections: Sequence[Placed],
    expr: Sequence[np.ndarray | None],
    residuals: Sequence[np.ndarray | None],
    reach: Reach,
    spacing_um: float,
    features_width: int,
    num_genes: int,
) -> Context:
    """What the spots of the first section see of the others.

    Args:
      sections: of one stack, the one that looks first; their features rank the candidates.
      expr: [n_s, g] of every section, None where unknown; the first is not looked at.
      residuals: [n_s, g] likewise.
      reach: how neighbours are looked for; `reach.kept` is the width K of the table.
      spacing_um: unit of the distances.
      features_width: p, how many of the features are seen; zeros where there are fewer.
      num_genes: g.
    """
    if len(sections) == 1:
        return no_context(len(sections[0].coords_um), reach, features_width, num_genes)
    found = _widened(retrieve(sections, 0, range(len(sections)), reach), reach.kept)
    expr, residuals = [None, *expr[1:]], [None, *residuals[1:]]
    offset = found.offset_um / spacing_um
    plane = np.linalg.norm(offset[..., :2], axis=-1)
    distance = np.stack([plane, np.abs(offset[..., 2])], axis=-1)
    features = [narrowed(s.features, features_width) for s in sections]
    return Context(
        features=gathered(found, features, features_width),
        distance=np.where(found.weight[..., None] > 0, distance, 0.0).astype(np.float32),
        weight=found.weight,
        known=has_values(found, expr),
        expr=gathered(found, expr, num_genes),
        residual=gathered(found, residuals, num_genes),
    )


def no_context(n: int, reach: Reach, features_width: int, num_genes: int) -> Context:
    """Context of n spots of a section that is alone."""
    k = reach.kept

    def zeros(*shape, dtype=np.float32):
        return np.zeros((n, k, *shape), dtype)

    return Context(
        features=zeros(features_width),
        distance=zeros(2),
        weight=zeros(),
        known=zeros(dtype=bool),
        expr=zeros(num_genes),
        residual=zeros(num_genes),
    )


def narrowed(values: np.ndarray | jax.Array, width: int) -> np.ndarray | jax.Array:
    """The first `width` columns of values [n, p], zeros where there are fewer."""
    pad = np.pad if isinstance(values, np.ndarray) else jnp.pad
    return pad(values[:, :width], ((0, 0), (0, max(width - values.shape[1], 0))))


def _widened(found: Retrieved, kept: int) -> Retrieved:
    """With columns of weight 0 added up to `kept`."""
    more = kept - found.weight.shape[1]
    return Retrieved(*(np.pad(a, ((0, 0), (0, more), *((0, 0),) * (a.ndim - 2))) for a in found))
