"""Imports point down only (DESIGN.md); read from the source, without importing it."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "stfm_jax"
LAYERS = (
    {"errors"},
    {"ops"},
    {"flow", "nn", "data", "runtime"},
    {"encoders", "regression"},
    {"models"},
    {"train"},
    {"eval"},
)
TOP = len(LAYERS)  # modules that lie directly in the package, and run.py
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Every other module or folder of models/ is a family.
SHARED_BY_MODELS = {"task"}  # families import it
GATHERS_MODELS = {"build"}  # it imports the families, none imports it
BASES = {"holotea": {"stflow"}}  # families that a family adds to


def imported_modules(source: str, package: tuple[str, ...] = ()) -> set[str]:
    """Dotted names of everything a source file imports, also inside functions.

    `from a import b` counts as `a.b`, since b may be a module.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{parts}.{alias.name}" for alias in node.names}
    return names


def internal(names: set[str]) -> list[tuple[str, ...]]:
    """Paths below the package: stfm_jax.ops.frames -> ("ops", "frames")."""
    return [tuple(n.split(".")[1:]) for n in sorted(names) if n.split(".")[0] == "stfm_jax"]


def level(path: tuple[str, ...]) -> int:
    """Of a module's path below the package. The package itself carries the version: lowest."""
    if not path or path[0].startswith("__"):
        return -1
    return LEVEL.get(path[0], TOP)


def violations(path: tuple[str, ...], names: set[str]) -> list[str]:
    """What the module at `path` below the package imports and may not."""
    wrong = []
    for target in internal(names):
        same_package = target[:1] == path[:1]
        if level(target) > level(path):
            wrong.append(f"{'.'.join(path)} imports {'.'.join(target)}, which lies above it")
        elif path[:1] == target[:1] == ("models",) and crosses_families(path, target):
            wrong.append(f"{'.'.join(path)} imports {'.'.join(target)}, another model family")
        elif level(path) == LEVEL["ops"] and not same_package and target[:1] != ("errors",):
            wrong.append(f"{'.'.join(path)} imports {'.'.join(target)}; ops may import errors only")
    return wrong


def crosses_families(path, target):
    """Whether a module of models/ imports what belongs to another family, or what gathers all."""
    here, there = path[1], target[1] if len(target) > 1 else None
    if here in GATHERS_MODELS or there in SHARED_BY_MODELS:
        return False
    return here != there and there not in BASES.get(here, ())


def source_files():
    return sorted(p for p in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", source_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(file):
    path = file.relative_to(PACKAGE).with_suffix("").parts
    names = imported_modules(file.read_text(), ("stfm_jax", *path[:-1]))
    assert violations(path, names) == []
    assert not {n for n in names if n.split(".")[0] in ("run", "configs", "benchmarks", "tests")}


def test_every_package_has_a_layer():
    packages = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert packages <= set(LEVEL)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_configs_import_ml_collections_and_siblings_alone(file):
    allowed = {"__future__", "ml_collections", "configs"}
    assert {name.split(".")[0] for name in imported_modules(file.read_text())} <= allowed


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (("ops", "a"), "from stfm_jax.flow import path"),
        (("ops", "a"), "import stfm_jax.data.slide"),
        (("data", "readers", "a"), "def f():\n    from stfm_jax.regression.features import x"),
        (("flow", "a"), "from stfm_jax import models"),
        (("train", "a"), "from stfm_jax.eval.report import table"),
        (("eval", "a"), "from stfm_jax.experiment import run"),
        (("data", "a"), "from ..models import stflow"),
        (("models", "stflow"), "from stfm_jax.models.holotea import f"),
        (("models", "baselines", "a"), "from stfm_jax.models import stflow"),
        (("models", "stflow"), "from stfm_jax.models import build"),
        (("models", "task"), "from stfm_jax.models.stflow import STFlow"),
        (("errors",), "from stfm_jax.ops import frames"),
    ],
)
def test_a_wrong_import_is_found(path, source):
    assert violations(path, imported_modules(source, ("stfm_jax", *path[:-1])))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (("ops", "a"), "from stfm_jax.ops.frames import x\nfrom stfm_jax.errors import InputError"),
        (("data", "a"), "from stfm_jax.nn import mlp\nimport numpy"),
        (("models", "stflow"), "from stfm_jax.models.task import Task"),
        (("models", "baselines", "a"), "from stfm_jax.models.baselines import b"),
        (("models", "build"), "from stfm_jax.models.stflow import STFlow"),
        (("models", "holotea"), "from stfm_jax.models.stflow import STFlow"),
        (("experiment",), "from stfm_jax.cli import x\nfrom stfm_jax.eval import report"),
        (("eval", "a"), "import stfm_jax\nfrom stfm_jax import __version__"),
    ],
)
def test_a_right_import_passes(path, source):
    assert violations(path, imported_modules(source, ("stfm_jax", *path[:-1]))) == []
