"""timm and torch as a reference, without torchvision, of which timm needs names alone."""

from __future__ import annotations

import importlib.machinery
import sys
import types

import pytest


class _Named(type):
    """A class whose attributes are their own names."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Anything(types.ModuleType):
    """A module that has a class under every name."""

    def __init__(self, name):
        super().__init__(name)
        self.__path__ = []
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or _Named(name, (), {})


_STANDS_FOR = (
    "torchvision",
    "torchvision.models",
    "torchvision.models.feature_extraction",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.datasets",
    "torchvision.datasets.folder",
)


def import_timm():
    """timm, or a skipped test."""
    pytest.importorskip("torch", reason="parity: torch is not installed")
    try:
        import torchvision  # noqa: F401
    except ImportError:
        sys.modules.update({name: _Anything(name) for name in _STANDS_FOR})
    return pytest.importorskip("timm", reason="parity: timm is not installed")


def import_transformers():
    """transformers, or a skipped test."""
    pytest.importorskip("torch", reason="parity: torch is not installed")
    return pytest.importorskip("transformers", reason="parity: transformers is not installed")
