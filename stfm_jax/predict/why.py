"""Why a spot of a stack is predicted as it is: which spots of its neighbours it was given.

The picture of the same is `stack_plots.why`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stfm_jax.data.retrieval import Placed, Retrieved


def table(
    sections: Sequence[Placed],
    barcodes: Sequence[np.ndarray],
    target: int,
    spot: int,
    retrieved: Retrieved,
    known: Sequence[bool],
) -> list[dict]:
    """The spots retrieved for one spot, the heaviest first; rows for `runtime.files.write_csv`.

    Args:
      sections: of the stack.
      barcodes: per section [n_i], names of its spots.
      target: index of the section whose spot it is.
      spot: its row there.
      retrieved: of all spots of the target.
      known: per section, whether its expression was given to the model.

    Returns:
      Rows of rank (from 1), section, barcode, dx_um, dy_um, dz_um (from the spot to the retrieved
      one, common frame), distance_um (straight, dz included), image_cosine (of the features),
      weight, has_expression. Padding is left out.
    """
    weight = retrieved.weight[spot]
    order = [k for k in np.argsort(-weight, kind="stable") if weight[k] > 0]
    own = sections[target].features[spot]
    rows = []
    for rank, k in enumerate(order, start=1):
        s, j = int(retrieved.section[spot, k]), int(retrieved.spot[spot, k])
        offset = retrieved.offset_um[spot, k].astype(np.float64)
        row = {"rank": rank, "section": sections[s].name, "barcode": str(barcodes[s][j])}
        row |= dict(zip(("dx_um", "dy_um", "dz_um"), offset.tolist(), strict=True))
        row["distance_um"] = float(np.linalg.norm(offset))
        row["image_cosine"] = _cosine(own, sections[s].features[j])
        row["weight"] = float(weight[k])
        row["has_expression"] = bool(known[s])
        rows.append(row)
    return rows


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 0 else 0.0
