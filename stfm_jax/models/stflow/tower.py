"""The image tower trained by itself, when epochs are selected.

Tower and flow share no parameters, and where the mean is closed the validation score is of the
tower's mean: the flow has no part in which epoch is best. Noise and initial parameters are those of
the whole network [ours].
"""

from __future__ import annotations

import dataclasses

import jax

from stfm_jax.data.batching import Batch
from stfm_jax.models.stflow import joint
from stfm_jax.models.stflow.flow import FlowArrays, STFlow


@dataclasses.dataclass(frozen=True)
class TowerAlone:
    """What `train` is given of a flow whose tower alone is to be trained."""

    flow: STFlow

    def init(self, key: jax.Array, arrays: FlowArrays, num_features: int) -> dict:
        """Parameters of the tower, as in `STFlow.init`."""
        return self.flow.init_image(key, num_features)

    def loss(
        self, params: dict, arrays: FlowArrays, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The tower's terms of `STFlow.loss`, and their number."""
        said = self.flow.image_says(params, batch, joint.noise_keys(key, batch))
        return joint.masked_sum(joint.image_errors(said, arrays, batch), batch.spot_mask)
