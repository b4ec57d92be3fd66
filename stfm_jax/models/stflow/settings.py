"""Settings of STFlow, and the flow that they describe."""

from __future__ import annotations

import dataclasses

import jax

from stfm_jax.data.batching import TILE
from stfm_jax.errors import InputError
from stfm_jax.flow.priors import PRIORS
from stfm_jax.models.regression import RegressionSettings
from stfm_jax.models.stflow.flow import ANCHORS, STFlow
from stfm_jax.nn.blocks import FRAMES
from stfm_jax.nn.mlp import PRECISIONS
from stfm_jax.nn.stflow_net import ATTENTIONS, EXPRESSIONS, ImageTower, STFlowNet
from stfm_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class STFlowSettings(RegressionSettings):
    """Network, anchor and image tower: the section `model`. See configs/base.py."""

    width: int = setting(128)
    blocks: int = setting(4)
    heads: int = setting(4)
    neighbors: int = setting(8, least=1)
    dropout: float = setting(0.2)
    expression: str = setting("token", one_of=EXPRESSIONS)
    frames: str = setting("blended", one_of=FRAMES)
    time_scale: float = setting(1000.0)
    token_context: bool = setting(True)
    feature_noise: float = setting(0.0)
    feature_dropout: float = setting(0.0)
    anchor: str = setting("kernel", one_of=ANCHORS)
    image_weight: float = setting(0.5)
    image_width: int = setting(256)
    image_dropout: float = setting(0.6)
    image_noise: float = setting(0.8)
    precision: str = setting("float32", one_of=PRECISIONS)
    tile: int = setting(0)
    edge_cache_gib: float = setting(0.0)
    attention: str = setting("tiled", one_of=ATTENTIONS)
    stand_back: bool = setting(True)  # where a slide is far from the training slides
    targets: int = setting(0)  # genes trained on; the problem chooses them
    prior: str = setting("zinb_fit", at="prior", one_of=PRIORS)
    loss_weight: str = setting("velocity", at="train.loss_weight", one_of=("velocity", "data"))
    evaluations: int = setting(5, at="sample.evaluations", least=1)

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads:
            raise InputError(
                f"config.model.width ({self.width}) must be a multiple of config.model.heads "
                f"({self.heads})."
            )

    @property
    def stands_back(self) -> bool:
        """Whether strangers are predicted otherwise; the published form has no anchor to."""
        return self.stand_back and self.anchor != "none"

    def flow(self, num_genes: int) -> STFlow:
        """The flow for this many genes."""
        return STFlow(
            network=self._network(num_genes),
            image=self._image_tower(num_genes),
            image_weight=self.image_weight,
            normalization=self.normalization,
            standardize=self.standardize,
            components=self.components,
            context=self.context,
            token_context=self.token_context,
            anchor=self.anchor,
            prior=self.prior,
            neighbors=self.neighbors,
            tile=self.tile or default_tile(),
            edge_cache=int(self.edge_cache_gib * 2**30) or default_edge_cache(),
            loss_weight=self.loss_weight,
            evaluations=self.evaluations,
        )

    def _network(self, num_genes: int) -> STFlowNet:
        return STFlowNet(
            num_genes=num_genes,
            width=self.width,
            num_blocks=self.blocks,
            heads=self.heads,
            dropout=self.dropout,
            expression=self.expression,
            frames=self.frames,
            time_scale=self.time_scale,
            feature_noise=self.feature_noise,
            feature_dropout=self.feature_dropout,
            zero_init=self.expression == "token" or self.anchor != "none",
            attention=self.attention,
            dtype=self.precision,
        )

    def _image_tower(self, num_genes: int) -> ImageTower | None:
        stands = self.expression == "token" and self.anchor != "none"
        if not stands or self.image_weight <= 0:
            return None
        noise = {"dropout": self.image_dropout, "noise": self.image_noise}
        return ImageTower(num_genes, self.image_width, **noise)


def default_tile() -> int:
    """Spots of a tile: what a CPU's cache holds, or enough to fill an accelerator."""
    return TILE if jax.default_backend() == "cpu" else 16_384


def default_edge_cache() -> int:
    """Bytes for edge features, of what a machine surely has."""
    return (1 if jax.default_backend() == "cpu" else 4) << 30
