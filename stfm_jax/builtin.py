"""The configs that come with the library, by name: real files, also in the wheel."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from stfm_jax.errors import InputError

_PACKAGE = "configs"  # under which the files import each other


def folder() -> Path:
    """Where the files lie: in the installed package, or beside it in the repository."""
    here = Path(__file__).resolve().parent
    return here / _PACKAGE if (here / _PACKAGE).is_dir() else here.parent / _PACKAGE


def names() -> list[str]:
    """Names of the built-in configs, sorted."""
    return sorted(path.stem for path in folder().glob("*.py") if path.stem != "__init__")


def path_of(name: str) -> Path:
    """The file of a built-in config.

    Raises:
      InputError: there is none of this name; says which is nearest.
    """
    if name not in names():
        near = get_close_matches(name, names(), 1)
        hint = f" Did you mean {near[0]!r}?" if near else f" There are {', '.join(names())}."
        raise InputError(f"expected the name of a built-in config, found {name!r}.{hint}")
    return folder() / f"{name}.py"


def line_of(name: str) -> str:
    """What a config says of itself, in one line; nothing is imported."""
    said = ast.get_docstring(ast.parse(path_of(name).read_text(encoding="utf-8"))) or ""
    return said.splitlines()[0] if said else ""


def get_config(name: str) -> Any:
    """A built-in config, a ConfigDict of one's own to change.

    Raises:
      InputError: there is none of this name.

    >>> config = stfm.get_config("demo")
    >>> config.methods = ("ridge", "kernel_ridge")
    """
    path_of(name)
    with siblings():
        return importlib.import_module(f"{_PACKAGE}.{name}").get_config()


@contextlib.contextmanager
def siblings() -> Iterator[None]:
    """`from configs import base` finds the built-in ones, whatever else is called so here."""
    before = {n: m for n, m in sys.modules.items() if n.split(".")[0] == _PACKAGE}
    package = types.ModuleType(_PACKAGE)
    package.__path__ = [str(folder())]
    for name in before:
        del sys.modules[name]
    sys.modules[_PACKAGE] = package
    try:
        yield
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == _PACKAGE]:
            del sys.modules[name]
        sys.modules.update(before)


def make_importable() -> None:
    """For configs of the user's own that build on ours, where no folder `configs` is at hand."""
    if importlib.util.find_spec(_PACKAGE) is None:
        package = types.ModuleType(_PACKAGE)
        package.__path__ = [str(folder())]
        sys.modules[_PACKAGE] = package
