"""Features of several encoders on one slide: blocks of columns, each with the encoder's name.

A slide has one matrix of features. Where several encoders made it, `Slide.encoder` joins their
names by `+`, and `Slide.widths` says how many columns each has.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from stfm_jax.data.feature_store import Features
from stfm_jax.data.slide import JOINED_BY, Slide

KEY = "features"  # of one encoder; of several KEY_<name>
# What follows an encoder's own name in what embeddings carry: pooling, fields of view, weights.
_SUFFIX = re.compile(r"(_cls|_cls_mean)?_[\d.]+(_[\d.]+)*um(_.*)?$")


def encoder_names(encoder: str | None, widths: Sequence[int] = ()) -> tuple[str, ...]:
    """Names of the encoders of a matrix of features; of one encoder without a name "" alone."""
    return tuple(encoder.split(JOINED_BY)) if len(widths) else (encoder or "",)


def short_name(encoder: str) -> str:
    """`uni2-h` of `uni2-h_cls_112um_6e077eda12345678`: as keys of AnnData spell it."""
    return _SUFFIX.sub("", encoder)


def keys(encoders: Sequence[str]) -> dict[str, str]:
    """Under which key of `obsm` the features of each encoder lie, by the encoder's name."""
    times = Counter(map(short_name, encoders))
    names = (n if times[n := short_name(each)] == 1 else each for each in encoders)
    return {each: f"{KEY}_{name}" for each, name in zip(encoders, names, strict=True)}


def by_encoder(slide: Slide) -> dict[str, Features]:
    """The slide's features by encoder; nothing where it has none."""
    if slide.features is None:
        return {}
    names = encoder_names(slide.encoder, slide.widths)
    if not slide.widths:
        return {names[0]: slide.features}
    ends = np.cumsum(slide.widths)
    parts = np.split(np.asarray(slide.features), ends[:-1], axis=1)
    return dict(zip(names, parts, strict=True))


def joined(slide: Slide, features: Mapping[str, Features]) -> Slide:
    """The slide with these features in place of those that it has.

    Args:
      slide: of n spots.
      features: [n, f] by the encoder's name; of several they are held in memory, side by side.
    """
    if len(features) == 1:
        ((name, only),) = features.items()
        return dataclasses.replace(slide, features=only, encoder=name or None, widths=())
    arrays = [np.asarray(each) for each in features.values()]
    return dataclasses.replace(
        slide,
        features=np.concatenate(arrays, axis=1),
        encoder=JOINED_BY.join(features),
        widths=tuple(each.shape[1] for each in arrays),
    )
