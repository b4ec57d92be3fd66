"""Spatial transcriptomics from H&E by flow matching, in JAX."""

__version__ = "0.1.0"
