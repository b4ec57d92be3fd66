"""ST-Net (He et al. 2020): a linear head on embeddings, or a whole encoder trained from patches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stfm_jax.data.feature_store import spans
from stfm_jax.data.patches import at_scale
from stfm_jax.data.slide import Slide
from stfm_jax.encoders import loading, preprocess
from stfm_jax.encoders.networks import Network as Encoder
from stfm_jax.errors import InputError
from stfm_jax.models.method import Run
from stfm_jax.models.network import Network, NetworkSettings, Rows, moved
from stfm_jax.models.regression import Seen
from stfm_jax.regression.features import FeatureTransform
from stfm_jax.runtime.memory import GIB, available_memory
from stfm_jax.settings import setting

BLOCK = 64  # images that are read and predicted together
FEW = 8  # that go through the encoder together


@dataclasses.dataclass(frozen=True)
class STNetSettings(NetworkSettings):
    """The section `stnet`."""

    SECTION = "stnet"

    encoder: str = setting("")  # network trained from patches; none: a head on the embeddings
    weights: str = setting("")  # its file or folder, where it is none that is built in
    rate: float = setting(0.02)  # its share of the learning rate


@dataclasses.dataclass(frozen=True)
class STNet(Network):
    """A linear head, trained by gradients on the squared error of every spot.

    With `stnet.encoder` the encoder is trained through as well, from patches in flips and quarter
    turns; a prediction is the mean over all eight views [ST-Net]. Its published optimiser is SGD at
    1e-6; here the encoder takes AdamW's steps at a share of the head's rate [ours].
    """

    settings: STNetSettings

    name = "stnet"
    papers = ("ST-Net, doi 10.1038/s41551-020-0578-x",)
    Settings = STNetSettings

    @property
    def encoder(self) -> Encoder | None:
        """What is trained from patches; None where the head sees embeddings."""
        return _encoder(self.settings.encoder, self.settings.weights)

    def check(self, slides: Sequence[Slide], devices: int) -> None:
        for slide in slides if self.encoder else ():
            self.check_input(slide)

    def check_input(self, slide: Slide) -> None:
        if self.encoder and slide.patches is None:
            raise InputError(
                f"{slide.where}: has no image, and config.stnet.encoder={self.settings.encoder} "
                "is trained from patches; give the slide its image, or set --config.stnet.encoder= "
                "for a head on the embeddings."
            )

    def seen(self, slides: Sequence[Slide], seen: Seen, run: Run) -> list[np.ndarray]:
        if self.encoder is None:
            return super().seen(slides, seen, run)
        side = self.encoder.images.crop
        needed = 12 * side * side * sum(slide.num_spots for slide in slides)
        there = available_memory()
        if needed > there:
            raise InputError(
                f"config.stnet.encoder={self.settings.encoder}: the patches of {len(slides)} "
                f"slides take {needed / GIB:,.1f} GiB, {there / GIB:,.1f} are free; "
                "train on fewer slides, or set --config.stnet.encoder= for a head on embeddings."
            )
        return [
            run.once(lambda s=s: _images(self.encoder, s, np.arange(s.num_spots)), [s], "images")
            for s in slides
        ]

    def blocks(
        self, transform: FeatureTransform, slide: Slide
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if self.encoder is None:
            yield from super().blocks(transform, slide)
            return
        for spots in spans(slide.num_spots, BLOCK):
            yield spots, _images(self.encoder, slide, spots)

    def given(self) -> Any:
        return () if self.encoder is None else self.encoder.params

    def init(self, key: jax.Array, arrays: Any, width: Rows) -> Any:
        """What is added to the encoder, and the head: it starts at the training mean [ST-Net]."""
        seen = width.x.shape[-1] if self.encoder is None else self.encoder.view_width
        genes = width.y.shape[-1]
        head = {"head": {"kernel": jnp.zeros((seen, genes)), "bias": jnp.zeros(genes)}}
        if self.encoder is None:
            return head
        return {**head, "encoder": jax.tree.map(jnp.zeros_like, arrays)}

    def finished(self, params: Any, given: Any) -> Any:
        """The encoder's own parameters with what training added to them."""
        if self.encoder is None:
            return params
        return {**params, "encoder": moved(given, params["encoder"], self.settings.rate)}

    def outputs(self, params: Any, given: Any, rows: Rows, key: jax.Array) -> jax.Array:
        x, params = rows.x, self.finished(params, given)
        if self.encoder is not None:
            which = jax.random.randint(key, (len(x),), 0, len(_VIEWS))
            x = jax.vmap(lambda image, i: jax.lax.switch(i, _VIEWS, image))(x, which)
        return _headed(self.encoder, params, x)

    def predicted(self, params: Any, memory: dict, rows: Rows) -> np.ndarray:
        return np.asarray(_mean_of_views(self.encoder, params, rows.x))


def _turned(k: int, flipped: bool):
    def view(image: jax.Array) -> jax.Array:
        turned = jnp.rot90(image, k, axes=(-3, -2))
        return jnp.flip(turned, axis=-2) if flipped else turned

    return view


_VIEWS = [_turned(k, flipped) for k in range(4) for flipped in (False, True)]


@functools.lru_cache(maxsize=4)
def _encoder(name: str, weights: str) -> Encoder | None:
    if not name:
        return None
    found = loading.load(name, weights)
    if not isinstance(found, Encoder):
        raise InputError(
            f"config.stnet.encoder must be a network, found {name!r}, which nothing is trained of; "
            "as in --config.stnet.encoder=efficientnet_lite0."
        )
    return found


def _images(encoder: Encoder, slide: Slide, spots: np.ndarray) -> np.ndarray:
    """What the encoder sees of some spots, [m, side, side, 3] float32, normalised."""
    source = at_scale(slide.patches, encoder.um_per_px[0])
    parts = [
        np.asarray(preprocess.apply(encoder.images, source.read(spots[some], encoder.fields_um[0])))
        for some in spans(len(spots), BLOCK)
    ]
    return np.concatenate(parts)


def _headed(encoder: Encoder | None, params: Any, x: jax.Array) -> jax.Array:
    """Expression [b, g] less the mean, of features [b, f] or of images.

    Few images' activations are held at a time, and computed again for gradients.
    """
    if encoder is not None:
        b = len(x)
        size = FEW if b % FEW == 0 else b
        one = jax.checkpoint(functools.partial(encoder.one_way, params["encoder"]))
        x = jax.lax.map(one, x.reshape(b // size, size, *x.shape[1:])).reshape(b, -1)
    return x @ params["head"]["kernel"] + params["head"]["bias"]


@functools.partial(jax.jit, static_argnums=0)
def _mean_of_views(encoder: Encoder | None, params: Any, x: jax.Array) -> jax.Array:
    """The same over all views of images; features have one."""
    if encoder is None:
        return _headed(encoder, params, x)
    return sum(_headed(encoder, params, view(x)) for view in _VIEWS) / len(_VIEWS)
