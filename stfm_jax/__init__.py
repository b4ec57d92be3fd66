"""Spatial transcriptomics from H&E by flow matching, in JAX.

`load`, `fit`, `export`, `get_config`, `Model` and `InputError` are imported when they are first
used: `import stfm_jax` is light.
"""

import importlib

__version__ = "0.1.0"

_FACE = {
    "load": "api",
    "fit": "api",
    "export": "api",
    "Model": "api",
    "get_config": "builtin",
    "InputError": "errors",
}
__all__ = ["InputError", "Model", "__version__", "export", "fit", "get_config", "load"]


def __getattr__(name: str):
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FACE[name]}"), name)
