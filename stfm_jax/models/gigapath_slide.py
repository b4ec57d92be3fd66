"""GigaPath's slide encoder, trained from scratch or on from its weights (Xu et al. 2024)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.data import feature_store
from stfm_jax.data.lattice import grid_cells
from stfm_jax.data.slide import Slide
from stfm_jax.encoders import weights
from stfm_jax.errors import InputError
from stfm_jax.models.network import Network, NetworkSettings, OfSlide, Rows, moved
from stfm_jax.models.regression import Seen
from stfm_jax.nn.longnet import LongNet, score_bytes
from stfm_jax.regression.features import FeatureTransform
from stfm_jax.settings import setting
from stfm_jax.train.stages import Run

HEADS = 16  # of every published size


@dataclasses.dataclass(frozen=True)
class LongNetSettings(NetworkSettings):
    """The section `longnet`: smaller than published, for few slides and CPUs [ours]."""

    SECTION = "longnet"

    width: int = setting(256, least=4)
    depth: int = setting(4, least=1)
    heads: int = setting(8, least=1)
    dropout: float = setting(0.1)
    weights: str = setting("")  # GigaPath's slide_encoder.pth, whose sizes it then has
    rate: float = setting(0.02)  # share of the learning rate that these take

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads or self.width % 4:
            raise InputError(
                "config.longnet.width must be a multiple of 4 and of config.longnet.heads, found "
                f"{self.width} and {self.heads}."
            )


class Pretrained(NamedTuple):
    """Weights of a file."""

    params: dict  # of `LongNet`, without head and skip
    width: int
    depth: int
    sees: int  # numbers of an embedding


@dataclasses.dataclass(frozen=True)
class GigaPathSlide(Network):
    """Dilated attention over the spots of a slide, row by row.

    With `longnet.weights` it sees the embeddings as they are, GigaPath's of tiles, and what
    training adds to the weights takes a share of the head's rate [ours].
    """

    settings: LongNetSettings

    name = "gigapath_slide"
    papers = ("GigaPath, doi 10.1038/s41586-024-07441-w",)
    slidewise = True
    Settings = LongNetSettings

    @property
    def pretrained(self) -> Pretrained | None:
        """What it starts from; None from scratch."""
        return _pretrained(self.settings.weights) if self.settings.weights else None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Width, depth and heads."""
        s, found = self.settings, self.pretrained
        return (s.width, s.depth, s.heads) if not found else (found.width, found.depth, HEADS)

    def check(self, slides: Sequence[Slide], devices: int) -> None:
        for slide in slides:
            self.check_input(slide)

    def check_input(self, slide: Slide) -> None:
        found = self.pretrained
        if found and slide.features is not None and slide.features.shape[1] != found.sees:
            raise InputError(
                f"{slide.where}: config.longnet.weights take embeddings of {found.sees} numbers, "
                f"as GigaPath's of tiles are; found {slide.features.shape[1]} ({slide.encoder}). "
                "Embed by GigaPath, or set --config.longnet.weights= to train from scratch."
            )

    def module(self, num_genes: int) -> OfSlide:
        return OfSlide(LongNet(num_genes, *self.sizes, self.settings.dropout))

    def placed(self, coords_um: np.ndarray) -> tuple[np.ndarray]:
        return (grid_cells(coords_um),)

    def seen(self, slides: Sequence[Slide], seen: Seen, run: Run) -> list[np.ndarray]:
        if self.pretrained is None:
            return super().seen(slides, seen, run)
        return [_as_it_is(slide) for slide in slides]

    def blocks(
        self, transform: FeatureTransform, slide: Slide
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if self.pretrained is None:
            return super().blocks(transform, slide)
        return iter([(np.arange(slide.num_spots), _as_it_is(slide))])

    def given(self) -> Any:
        return () if self.pretrained is None else self.pretrained.params

    def init(self, key: jax.Array, arrays: Any, width: Rows) -> Any:
        """What is added to the weights, nothing at first, and the rest as from scratch."""
        params = super().init(key, arrays, width)
        if self.pretrained is None:
            return params
        return _with(params, jax.tree.map(jnp.zeros_like, arrays))

    def finished(self, params: Any, given: Any) -> Any:
        """The weights with what training added to them."""
        if self.pretrained is None:
            return params
        added = {name: params["params"]["network"][name] for name in given}
        return _with(params, moved(given, added, self.settings.rate))

    def outputs(self, params: Any, given: Any, rows: Rows, key: jax.Array) -> Any:
        return super().outputs(self.finished(params, given), given, rows, key)

    def working_bytes(self, num_spots: int, training: bool) -> int:
        width, depth, heads = self.sizes
        scores, activations = score_bytes(num_spots, heads), 4 * width * num_spots
        if not training:
            return 2 * scores + 8 * activations
        return depth * (3 * scores + 48 * activations)


def _with(params: Any, parts: dict) -> Any:
    """The parameters with some of the network's parts replaced."""
    return {"params": {"network": {**params["params"]["network"], **parts}}}


def _as_it_is(slide: Slide) -> np.ndarray:
    """Embeddings [n, f] float32 of all spots, as their encoder gave them."""
    return np.concatenate([x for _, x in feature_store.blocks(slide.features)]).astype(np.float32)


@functools.lru_cache(maxsize=2)
def _pretrained(path: str) -> Pretrained:
    """Weights under GigaPath's own names, as torch.save or safetensors keeps them.

    Raises:
      InputError: no such file, or of something else.
    """
    found = weights.strip(weights.read(path)).tensors
    depth = len({name.split(".")[2] for name in found if name.startswith("encoder.layers.")})
    try:
        params = {
            "cls": jnp.asarray(found["cls_token"][0], jnp.float32),
            "embed": _linear(found, "patch_embed.proj"),
            "norm_layers": _norm(found, "encoder.layer_norm"),
            "norm": _norm(found, "norm"),
            **{f"layer_{i}": _layer(found, f"encoder.layers.{i}") for i in range(depth)},
        }
    except KeyError as missing:
        raise InputError(
            f"config.longnet.weights={path}: expected GigaPath's slide encoder, found no "
            f"{missing.args[0]} in it; give the file slide_encoder.pth."
        ) from missing
    sees, width = params["embed"]["kernel"].shape
    return Pretrained(params, width, depth, sees)


def _layer(found: weights.Tensors, name: str) -> dict:
    attention, ffn = f"{name}.self_attn", f"{name}.ffn"
    each = [_linear(found, f"{attention}.{a}_proj") for a in "qkv"]
    return {
        "norm": _norm(found, f"{name}.self_attn_layer_norm"),
        "qkv": {part: jnp.concatenate([a[part] for a in each], axis=-1) for part in each[0]},
        "norm_mixed": _norm(found, f"{attention}.inner_attn_ln"),
        "out": _linear(found, f"{attention}.out_proj"),
        "norm_2": _norm(found, f"{name}.final_layer_norm"),
        "feed_forward": {
            "widen": _linear(found, f"{ffn}.fc1"),
            "norm": _norm(found, f"{ffn}.ffn_layernorm"),
            "narrow": _linear(found, f"{ffn}.fc2"),
        },
    }


def _linear(found: weights.Tensors, name: str) -> dict:
    kernel, bias = found[f"{name}.weight"], found[f"{name}.bias"]
    return {"kernel": jnp.asarray(kernel.T, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}


def _norm(found: weights.Tensors, name: str) -> dict:
    scale, bias = found[f"{name}.weight"], found[f"{name}.bias"]
    return {"scale": jnp.asarray(scale, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
