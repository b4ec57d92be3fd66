"""What super-resolution is compared with: splits in proportion to a smooth field of the parents.

| row | a child's share is in proportion to |
|---|---|
| uniform | 1 |
| bilinear, bicubic | the field that interpolates the parents' counts per child |
| gaussian | the counts per child around, weighted by distance |

Every row is renormalised to the parents' mass (`ops.simplex`). Interpolation needs parents on a
lattice; where there are none (holes, edges) the nearest stands in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stfm_jax.data import interpolation
from stfm_jax.data.coarsen import Pair
from stfm_jax.ops import simplex
from stfm_jax.ops.neighbors import median_spacing

ROWS = ("uniform", "bilinear", "bicubic", "gaussian")
GAUSSIAN_SPACINGS = 0.75  # sd in spacings of the parents [ours]


def predictions(
    pair: Pair, counts: np.ndarray, rows: Sequence[str] = ROWS
) -> dict[str, np.ndarray]:
    """Real counts [n, g] of the children, by row; each parent's add up to its own.

    Args:
      pair: of which the children's counts are not looked at.
      counts: [P, g] of the parents, for the genes to split.
      rows: which.

    Raises:
      InputError: interpolation of parents on no lattice.
    """
    field = counts / pair.num_children[:, None]  # per child
    low, high, where = pair.low.coords_um, pair.high.coords_um, pair.low.where
    sd = GAUSSIAN_SPACINGS * median_spacing(low)
    fields = {
        "uniform": lambda: np.ones((len(high), counts.shape[1])),
        "bilinear": lambda: interpolation.bilinear(low, high, where) @ field,
        "bicubic": lambda: interpolation.bicubic(field, low, high, where),
        "gaussian": lambda: interpolation.gaussian(low, high, pair.parent, sd) @ field,
    }
    return {name: in_proportion(pair, counts, fields[name]()) for name in rows}


def in_proportion(pair: Pair, counts: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Counts [P, g] of the parents split in proportion to a field [n, g] of the children."""
    table = pair.table()
    mask = (table >= 0)[:, None, :]
    shares = field[table].transpose(0, 2, 1)
    parts = simplex.split(counts, np.maximum(shares, 0.0), mask)
    out = np.empty(field.shape)
    out[table[table >= 0]] = parts.transpose(0, 2, 1)[table >= 0]
    return out
