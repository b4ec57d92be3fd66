"""Encoders of H&E patches: the built-in descriptor, and networks from downloaded weights."""

from stfm_jax.encoders.loading import load

__all__ = ["load"]
