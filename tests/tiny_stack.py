"""The tiny experiment on a stack of serial sections, by HoloTea.

Tests share its settings and so, within a process, what is compiled for them.
"""

from __future__ import annotations

import tiny
from ml_collections import ConfigDict

from configs import base
from stfm_jax.data.slide import Slide

SETTINGS = {
    "methods": base.STACK,
    "stack__kept": 6,
    "stack__candidates": 5,
    "stack__context_width": 6,
    "stack__epochs": 2,
    "train__epochs": 2,
    "sample__draws": 3,
    "sample__mean_draws": 1,
    "predict__draws": 3,
}


def config(**overrides) -> ConfigDict:
    """The tiny config for stacks, HoloTea last; overrides as of `tiny.config`."""
    return tiny.config(**{**SETTINGS, **overrides})


def genes(slides: list[Slide]) -> list[str]:
    """The first of the slides' genes, as many as the config asks for."""
    return list(slides[0].genes[: tiny.OVERRIDES["data.num_genes"]])
