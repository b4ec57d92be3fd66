"""The methods: names to classes, which are imported when they are asked for.

A method is one file and one line here (docs/adding_a_method.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from stfm_jax.errors import InputError
from stfm_jax.models.method import Method

METHODS = {
    # expression of a slide's spots
    "mean": "stfm_jax.models.mean:Mean",
    "probe": "stfm_jax.models.probe:Probe",
    "ridge": "stfm_jax.models.ridge:Ridge",
    "ridge_smooth": "stfm_jax.models.ridge_smooth:RidgeSmooth",
    "ridge_context": "stfm_jax.models.ridge_context:RidgeContext",
    "kernel_ridge": "stfm_jax.models.kernel_ridge:KernelRidge",
    "ridge_reduced": "stfm_jax.models.ridge_reduced:RidgeReduced",
    "random_forest": "stfm_jax.models.random_forest:RandomForest",
    "extra_trees": "stfm_jax.models.extra_trees:ExtraTrees",
    "boosted_trees": "stfm_jax.models.boosted_trees:BoostedTrees",
    "stnet": "stfm_jax.models.stnet:STNet",
    "bleep": "stfm_jax.models.bleep:BLEEP",
    "histogene": "stfm_jax.models.histogene:HisToGeneMethod",
    "triplex": "stfm_jax.models.triplex:TRIPLEXMethod",
    "gigapath_slide": "stfm_jax.models.gigapath_slide:GigaPathSlide",
    "gated": "stfm_jax.models.gated:Gated",
    "neighbour_copy": "stfm_jax.models.neighbour_copy:NeighbourCopy",
    "centred_sum": "stfm_jax.models.centred_sum:CentredSum",
    "anchor": "stfm_jax.models.anchor:Anchor",
    "stflow": "stfm_jax.models.stflow.method:STFlowMethod",
    "stflow_one_step": "stfm_jax.models.stflow.one_step:STFlowOneStep",
    "stflow_published": "stfm_jax.models.stflow.published:STFlowPublished",
    "holotea_he": "stfm_jax.models.holotea.method:HoloTeaFromImages",
    "holotea": "stfm_jax.models.holotea.method:HoloTeaMethod",
    # counts of parents, split over their children
    "uniform": "stfm_jax.models.uniform:Uniform",
    "bilinear": "stfm_jax.models.bilinear:Bilinear",
    "bicubic": "stfm_jax.models.bicubic:Bicubic",
    "gaussian": "stfm_jax.models.gaussian:Gaussian",
    "srast": "stfm_jax.models.srast.method:SRastMethod",
}


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
      InputError: there is none of this name; says which is nearest.
    """
    if name not in METHODS:
        near = get_close_matches(name, METHODS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(f"config.methods must be of {', '.join(METHODS)}, found {name!r}.{hint}")
    module, _, attribute = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def build(name: str, config: Any) -> Method:
    """A method with the settings that a config describes.

    Raises:
      InputError: no such method, or a setting has a value that may not be.
    """
    found = method_class(name)
    return found(found.Settings.of(config))


def with_needed(names: Sequence[str]) -> list[str]:
    """The methods, each after those whose states it asks for."""
    ordered: list[str] = []

    def add(name: str) -> None:
        found = method_class(name)
        for needed in (*found.stands_on, *([found.state_of] if found.state_of else [])):
            add(needed)
        if name not in ordered:
            ordered.append(name)

    for name in names:
        add(name)
    return ordered
