"""What predicting a slide takes of the host's memory.

Estimated and measured on 2 CPU cores (1,024 features, 50 genes, default sizes), beyond what the
process held before: 100,000 spots and 8 draws 1.0 GiB; 1,000,000 5.1.
"""

from __future__ import annotations

import jax

from stfm_jax.data.feature_store import BLOCK
from stfm_jax.models.stflow import whole_slide
from stfm_jax.models.stflow.flow import Fitted, STFlow

GIB = 1 << 30
BASE = 45 * GIB // 100  # compiled code and what is done at a time, whatever the slide's size
EDGES = 12  # of a spot, with ties and padding, for 8 neighbours
EDGE_BYTES, EDGE_WORK_BYTES = 29, 130  # kept of an edge; held of it while the graph is made


def bytes_needed(flow: STFlow, fitted: Fitted, targets: int, num_spots: int, draws: int) -> int:
    """Bytes that prediction adds at its peak to what is held before it, features included.

    Args:
      flow: settings.
      fitted: arrays.
      targets: genes predicted.
      num_spots: n.
      draws: joint draws.
    """
    width, (f, p) = flow.network.width, fitted.transform.components.shape
    kept = 0  # of edge features
    if flow.network.edge_bytes(flow.neighbors * num_spots) <= flow.edge_cache:
        kept = min(flow.network.edge_bytes(EDGES * num_spots), flow.edge_cache)
    if not whole_slide.pays(num_spots):
        seen = 3 * 4 * flow.input_width(fitted)  # as prepared, as batch, on the device
        seen += EDGES * EDGE_WORK_BYTES
        return BASE + kept + num_spots * (seen + 3 * 4 * targets * (draws + 2))
    encoded = EDGES * EDGE_BYTES + 4 * (width + targets)  # graph, tokens and mean
    stages = [
        num_spots * EDGES * EDGE_WORK_BYTES,
        num_spots * (encoded + 4 * p) + 3 * 8 * BLOCK * f,  # own components; blocks of features
    ]
    if jax.default_backend() == "cpu":  # else the state lies on the device
        stages.append(kept + num_spots * (encoded + 4 * (3 * width + 12 * targets)))
    return BASE + max(stages)
