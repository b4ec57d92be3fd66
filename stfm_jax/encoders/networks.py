"""Encoders that are networks: 8-bit images to features, batch by batch on the device there is.

The networks themselves are `vit.py`, `efficientnet.py` and `resnet.py`; which file makes which is
`loading.py`.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import logging
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.data.feature_store import spans
from stfm_jax.data.patches import PatchSource, at_scale
from stfm_jax.encoders import efficientnet, preprocess, resnet, vit
from stfm_jax.encoders.encoder import Encoder, checked
from stfm_jax.encoders.preprocess import Preprocess
from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
# Images that go through a network together. On CPUs two at a time are quicker than more: their
# activations stay in the caches.
_CPU_BLOCK, _CPU_BATCH = 16, 2
_ACCELERATOR_BLOCK = 128
_COARSE = 1.05  # images this much coarser than a network sees are told of


@dataclasses.dataclass(frozen=True)
class Network(Encoder):
    """A network with its weights; those are known by their hash."""

    images: Preprocess
    sha256: str  # first 16 digits, of the file of weights
    options: str = ""  # what was chosen in place of the model's own, for the identity
    source: str = dataclasses.field(default="", compare=False)  # the file, for messages
    tensors: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def identity(self) -> str:
        fields = "_".join(f"{field:g}" for field in self.fields_um) + "um"
        parts = (self.name, self.pooling, fields, self.options, self.sha256)
        return "_".join(part for part in parts if part)

    @property
    def pooling(self) -> str:
        """How features are made of the network's map or tokens, where there is a choice."""
        return ""

    @property
    def width(self) -> int:
        return len(self.fields_um) * self.view_width

    @property
    @abc.abstractmethod
    def view_width(self) -> int:
        """Features of one field of view."""

    @property
    def um_per_px(self) -> tuple[float, ...]:
        return tuple(field / self.images.resize for field in self.fields_um)

    @property
    def preprocess(self) -> Preprocess:
        return self.images

    @functools.cached_property
    def params(self) -> Any:
        """The arrays, on the default device; made when they are first asked for."""
        return self._params()

    @abc.abstractmethod
    def _params(self) -> Any:
        """The arrays of `tensors`."""

    @abc.abstractmethod
    def apply(self, params: Any, images: jax.Array) -> jax.Array:
        """Features [b, view_width] of normalised images [b, h, w, 3]; jitted."""

    def one_way(self, params: Any, images: jax.Array) -> jax.Array:
        """The same without what `apply` averages over turns of the images."""
        return self.apply(params, images)

    def embed(self, images: np.ndarray) -> np.ndarray:
        images = checked(images)
        least = min(images.shape[1:3])
        if least < self.input_px:
            raise InputError(
                f"expected images of at least {self.input_px} pixels a side, as {self.name} sees "
                f"them, found {images.shape[1]} x {images.shape[2]}; give larger patches, or a "
                "slide by embed_slide, which knows its micrometres."
            )
        found = [self._computed(images[i]) for i in spans(len(images), _block()[0])]
        return np.concatenate([np.empty((0, self.view_width), np.float32), *found])

    def blocks(self, source: PatchSource, spots: np.ndarray) -> Iterator[np.ndarray]:
        """The next block is read while one is computed."""
        self._tell_of_coarse(source)
        size, waiting = _block()[0], None
        sources = [at_scale(source, each) for each in self.um_per_px]
        for some in spans(len(spots), size):
            at = spots[some]
            fields = zip(sources, self.fields_um, strict=True)
            views = [_padded(each.read(at, field), size) for each, field in fields]
            computing = jnp.concatenate([self._start(view) for view in views], axis=1)
            if waiting is not None:
                yield np.asarray(waiting[0])[: waiting[1]]
            waiting = computing, len(at)
        if waiting is not None:
            yield np.asarray(waiting[0])[: waiting[1]]

    def _start(self, images: np.ndarray) -> jax.Array:
        return _embedded(self, self.params, images, _block()[1])

    def _computed(self, images: np.ndarray) -> np.ndarray:
        """Of at most a block; padded to whole batches."""
        more = -len(images) % min(_block()[1], _CPU_BATCH)
        padded = _padded(images, len(images) + more)
        return np.asarray(self._start(padded))[: len(images)]

    def _tell_of_coarse(self, source: PatchSource) -> None:
        finest = min(self.um_per_px)
        if source.um_per_px > _COARSE * finest:
            _LOG.warning(
                "images have %.3g um a pixel, %s sees %.3g: they are enlarged, and look blurred "
                "to it",
                source.um_per_px,
                self.name,
                finest,
            )


def _padded(images: np.ndarray, size: int) -> np.ndarray:
    """So many images, the last one repeated."""
    return np.concatenate([images, np.repeat(images[-1:], size - len(images), axis=0)])


def _block() -> tuple[int, int]:
    """Images that are read together, and those that go through a network together."""
    if jax.default_backend() == "cpu":
        return _CPU_BLOCK, _CPU_BATCH
    return _ACCELERATOR_BLOCK, _ACCELERATOR_BLOCK


@functools.partial(jax.jit, static_argnums=(0, 3))
def _embedded(network: Network, params: Any, images: jax.Array, batch: int) -> jax.Array:
    """Features [b, f] of 8-bit images; `batch` of them at a time where that divides b."""

    def one(images):
        return network.apply(params, preprocess.apply(network.images, images))

    b = len(images)
    if b <= batch or b % batch:
        return one(images)
    grouped = images.reshape(b // batch, batch, *images.shape[1:])
    return jax.lax.map(one, grouped).reshape(b, -1)


@dataclasses.dataclass(frozen=True)
class Vit(Network):
    """A vision transformer; see `vit`."""

    architecture: vit.Architecture | None = None
    pool: vit.Pool = "cls"

    @property
    def pooling(self) -> str:
        return self.pool

    @property
    def view_width(self) -> int:
        return self.architecture.width * (2 if self.pool == "cls_mean" else 1)

    def _params(self) -> vit.Params:
        return vit.params(self.tensors, self.architecture, self.source)

    def apply(self, params: vit.Params, images: jax.Array) -> jax.Array:
        tokens = vit.tokens(params, images, self.architecture)
        return vit.pool(tokens, self.architecture, self.pool)


@dataclasses.dataclass(frozen=True)
class EfficientNet(Network):
    """EfficientNet-Lite0 in our recipe: two fields, three depths, quarter turns [ours]."""

    @property
    def view_width(self) -> int:
        net = efficientnet.LITE0
        return 2 * (sum(net.blocks[i].width for i in net.taps) + net.head)

    def _params(self) -> Any:
        return efficientnet.params(self.tensors, self.source)

    def apply(self, params: Any, images: jax.Array) -> jax.Array:
        return efficientnet.apply(params, images)

    def one_way(self, params: Any, images: jax.Array) -> jax.Array:
        return efficientnet.pooled(efficientnet.features(params, images))


@dataclasses.dataclass(frozen=True)
class ResNet(Network):
    """A ResNet cut behind some of its stages, averaged over the map."""

    stages: int = resnet.STAGES

    @functools.cached_property
    def view_width(self) -> int:
        return resnet.width(self.params)

    def _params(self) -> Any:
        return resnet.params(self.tensors, self.source, self.stages)

    def apply(self, params: Any, images: jax.Array) -> jax.Array:
        return resnet.apply(params, images)
