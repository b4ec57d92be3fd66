"""Packages that `make test` does not install: tests that need one skip without it, saying so.

`make test-parity` and `make test-ecosystem` install them and let no test skip.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from unittest import mock

import pytest


def require(name: str, target: str) -> types.ModuleType:
    """The package; the test (or the module, at its head) skips where it is not installed."""
    return pytest.importorskip(name, reason=f"{name} is not installed: make {target}")


def torch() -> types.ModuleType:
    return require("torch", "test-parity")


def timm() -> types.ModuleType:
    """timm, whose vision transformers import torchvision but use nothing of it."""
    torch()
    with mock.patch.object(sys, "meta_path", [*sys.meta_path, _StandIns()]):
        return require("timm", "test-parity")


def transformers() -> types.ModuleType:
    torch()
    return require("transformers", "test-parity")


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module wherever torchvision is not installed."""

    def find_spec(self, fullname, path, target=None):
        if fullname.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        return _Empty(spec.name)

    def exec_module(self, module):
        pass


class _Nothing(type):
    """Of a class that has another under every name."""

    def __getattr__(cls, name):
        return _Empty.__getattr__(cls, name)


class _Empty(types.ModuleType):
    """Has an empty class under every name."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (), {})
