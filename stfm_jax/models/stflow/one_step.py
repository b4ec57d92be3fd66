"""STFlow's draws by one network evaluation, learned from its own of several.

With prior draw and slide given, a draw is determined: the solver is no more than a map, and a copy
of the network is trained to be that map at once [ours; Luhman & Luhman 2021 did so with images].
The mean is STFlow's, which takes no evaluation where it has an image tower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stfm_jax.data.batching import Batch
from stfm_jax.flow import gaussian
from stfm_jax.models.method import Genes, Run, Section
from stfm_jax.models.stflow import joint
from stfm_jax.models.stflow.flow import FlowArrays, STFlow, draw_prior
from stfm_jax.models.stflow.method import State, STFlowMethod, stage_of
from stfm_jax.models.stflow.settings import STFlowSettings
from stfm_jax.runtime.devices import fetch
from stfm_jax.settings import recast, setting


class Taught(NamedTuple):
    """What is fitted before a one-step flow is trained."""

    flow: FlowArrays
    teacher: dict  # parameters of the flow that it learns from


@dataclasses.dataclass(frozen=True)
class OneStep(STFlow):
    """A flow whose network carries a prior draw to t = 1 at once, so that no gate is shut."""

    evaluations: int = 1
    taught_by: int = 5  # evaluations of the teacher's draws

    @classmethod
    def of(cls, flow: STFlow) -> OneStep:
        """What learns from a flow."""
        return recast(cls, flow, evaluations=1, taught_by=flow.evaluations)

    @property
    def teacher(self) -> STFlow:
        """What it learns from."""
        return recast(STFlow, self, evaluations=self.taught_by)

    def gate(self, t: jax.Array) -> float:
        return 1.0

    def first_estimate(self, network, path: gaussian.GaussianPath, x_0, mean) -> jax.Array:
        """A draw, whose average over prior draws is the mean, where no image tower says it."""
        return dataclasses.replace(self, clip=False).draw(network, path, x_0, mean)

    def init(self, key: jax.Array, arrays: Taught, num_features: int) -> dict:
        """The teacher's network; its image tower is not trained on."""
        return {"flow": jax.tree.map(jnp.copy, arrays.teacher["flow"])}

    def loss(
        self, params: dict, arrays: Taught, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Sum of the squared distances to the teacher's draws, and the number of terms.

        In standard deviations of the genes, from the same prior draws, nothing clipped.
        """
        x_0 = draw_prior(arrays.flow, batch, key)

        def draw(flow: STFlow, params: dict) -> jax.Array:
            parts = flow.parts(params, arrays.flow, batch)
            flow = dataclasses.replace(flow, clip=False)
            return flow.draw(parts.network(), parts.path, x_0, parts.centre)

        wanted = jax.lax.stop_gradient(draw(self.teacher, arrays.teacher))
        error = (draw(self, arrays.teacher | params) - wanted) / arrays.flow.gene_std
        return joint.masked_sum(error**2, batch.spot_mask)


@dataclasses.dataclass(frozen=True)
class OneStepSettings(STFlowSettings):
    """Those of the flow that it learns from, and for how long."""

    epochs: int = setting(40, at="one_step.epochs", least=1)

    @property
    def base(self) -> STFlowSettings:
        """Of the flow it learns from."""
        return recast(STFlowSettings, self)

    def flow(self, num_genes: int) -> OneStep:
        return OneStep.of(super().flow(num_genes))


class STFlowOneStep(STFlowMethod):
    """Learns from the fitted `stflow`, on the same slides and regions."""

    name = "stflow_one_step"
    draws_as = "stflow_one_step_draw"
    stands_on = ("stflow",)
    compared_with = ("stflow",)
    Settings = OneStepSettings

    def fit(self, cases: Sequence[Section], genes: Genes, run: Run) -> State:
        slides = [case.slide for case in cases]
        base = STFlowMethod(self.settings.base)
        *_, of_base = base.outcomes(slides, genes, run.of(base.name)).values()
        training, teacher = of_base.fitted, of_base.trained.params
        stage = stage_of(self.settings.flow(len(genes.targets)), training, run)
        stage = stage._replace(arrays=Taught(stage.arrays, teacher))
        trained = run.stage("distil", stage, self.settings.epochs)
        return State(
            training.fitted,
            fetch(teacher | trained.params),
            None,
            self.settings.epochs,
            self.strangers(slides, genes, run),
        )
