"""Settings of HoloTea, and the flow that they describe."""

from __future__ import annotations

import dataclasses

from stfm_jax.models.holotea.flow import BASES, PRIORS, HoloTea
from stfm_jax.models.neighbour_copy import StackSettings
from stfm_jax.models.stflow.settings import STFlowSettings
from stfm_jax.nn.control import ControlNet
from stfm_jax.settings import nested, setting


@dataclasses.dataclass(frozen=True)
class HoloTeaSettings(StackSettings):
    """What a stack adds to STFlow: the section `stack`. See configs/base.py."""

    expression: bool = setting(True)
    control: bool = setting(True)
    base: str = setting("frozen", one_of=BASES)
    epochs: int = setting(100, least=1)
    context_width: int = setting(64, least=1)
    global_attention: bool = setting(True)
    prior: str = setting("mix", one_of=PRIORS)
    rho: float = setting(0.5, least=0)
    prior_decay_um: float = setting(50.0)
    consistency: float = setting(0.0, least=0)
    slides_per_step: int = setting(1, at="train.slides_per_step", least=1)
    stflow: STFlowSettings = nested(STFlowSettings)  # noqa: RUF009

    def flow(self, num_genes: int) -> HoloTea:
        """The flow for this many genes."""
        base = self.stflow.flow(num_genes)
        control = ControlNet(
            base=base.network,
            width=self.context_width,
            noise=self.stflow.feature_noise,
            dropout=self.stflow.feature_dropout,
            global_attention=self.global_attention,
            slides=self.slides_per_step,
        )
        return HoloTea(
            base=base,
            control=control if self.control else None,
            reach=self.reach,
            context_width=self.context_width,
            trained_base=self.base == "trained",
            see_expression=self.expression,
            context_mix=self.prior == "mix",
            rho=self.rho,
            prior_decay_um=self.prior_decay_um,
            consistency=self.consistency,
        )
