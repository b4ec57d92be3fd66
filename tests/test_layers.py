"""Imports point down only; read from the source, without importing it."""

import ast
import configparser
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "stfm_jax"
LAYERS = (
    {"errors", "settings", "layout", "seeds"},
    {"ops"},
    {"flow", "nn", "data", "runtime"},
    {"encoders", "regression"},
    {"train"},
    {"models"},
    {"store", "score", "plots"},
    {"report"},
    {"problems"},
    {"predict"},
)
TOP = len(LAYERS)  # modules that lie directly in the package, and run.py
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# What the methods of models/ share; every other module or folder there is a method.
SHARED = {"method", "regression", "forest", "strangers", "parts", "sharded", "network"}
LISTS_METHODS = {"table"}  # imports none of them: it names them
STAND_ON = {  # methods that a method is made of
    "ridge_smooth": {"ridge"},
    "centred_sum": {"neighbour_copy"},
    "anchor": {"stflow"},
    "holotea": {"stflow", "neighbour_copy"},
}


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
    if not path or path[0] in ("__init__", "__version__"):
        return -1
    return LEVEL.get(path[0], TOP)


def violations(path: tuple[str, ...], names: set[str]) -> list[str]:
    """What the module at `path` below the package imports and may not."""
    wrong = []
    for target in internal(names):
        same_package = target[:1] == path[:1]
        if level(target) > level(path):
            wrong.append(f"{'.'.join(path)} imports {'.'.join(target)}, which lies above it")
        elif path[:1] == target[:1] == ("models",) and crosses_methods(path, target):
            wrong.append(f"{'.'.join(path)} imports {'.'.join(target)}, another method")
        elif (
            level(path) == LEVEL["ops"]
            and not same_package
            and target[:1] not in (("errors",), ("settings",))
        ):
            wrong.append(f"{'.'.join(path)} imports {'.'.join(target)}; ops may import errors only")
    return wrong


def crosses_methods(path, target):
    """Whether a module of models/ imports another method than those it is made of."""
    here, there = path[1], target[1] if len(target) > 1 else None
    if here in LISTS_METHODS:
        return there not in SHARED
    return here != there and there not in SHARED | STAND_ON.get(here, set())


def source_files():
    return sorted(p for p in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", source_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(file):
    path = file.relative_to(PACKAGE).with_suffix("").parts
    names = imported_modules(file.read_text(), ("stfm_jax", *path[:-1]))
    assert violations(path, names) == []
    assert not {n for n in names if n.split(".")[0] in ("run", "configs", "benchmarks", "tests")}


def test_no_modules_import_each_other_in_a_circle():
    """Nor do packages of models/; what a function imports counts too."""
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in source_files()}
    edges = {}
    for name, path in modules.items():
        found = imported_modules(path.read_text(), tuple(name.split(".")[:-1]))
        parents = {n.rpartition(".")[0] for n in found}
        edges[name] = (found | parents) & modules.keys() - {name}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*above, name))
            done.add(name)

    for name in modules:
        visit(name, ())


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
        (("train", "a"), "from stfm_jax.models.method import Method"),
        (("predict", "a"), "from stfm_jax.experiment import run"),
        (("report", "a"), "from stfm_jax.problems.table import problem_of"),
        (("data", "a"), "from ..models import stflow"),
        (("models", "stflow", "flow"), "from stfm_jax.models.holotea.flow import f"),
        (("models", "ridge"), "from stfm_jax.models import stflow"),
        (("models", "stflow", "a"), "from stfm_jax.models import table"),
        (("models", "table"), "from stfm_jax.models.ridge import Ridge"),
        (("models", "method"), "from stfm_jax.models.stflow.flow import STFlow"),
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
        (("models", "stflow", "a"), "from stfm_jax.models.method import Method"),
        (("models", "ridge"), "from stfm_jax.models.regression import Regression"),
        (("models", "method"), "from stfm_jax.train.stages import Run"),
        (("models", "holotea", "flow"), "from stfm_jax.models.stflow.flow import STFlow"),
        (("experiment",), "from stfm_jax.cli import x\nfrom stfm_jax.report import write"),
        (("predict", "a"), "import stfm_jax\nfrom stfm_jax import __version__"),
    ],
)
def test_a_right_import_passes(path, source):
    assert violations(path, imported_modules(source, ("stfm_jax", *path[:-1]))) == []


IMPORTED_AS = {  # where the name of a package is not that of its module
    "absl-py": "absl",
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
}
BY_OTHERS = {"array_record"}  # by tensorflow-datasets
IN_EXTRAS = {"plotly", "openslide", "hdf5plugin", "igraph"}


def test_what_is_required_is_imported_and_nothing_else():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].split()
    names = [re.match(r"[\w-]+", line).group() for line in lines]
    required = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}
    found = set().union(*(imported_modules(p.read_text()) for p in source_files()))
    imported = {name.split(".")[0] for name in found} - {"stfm_jax", "", *sys.stdlib_module_names}
    assert required - BY_OTHERS == imported - IN_EXTRAS


@pytest.mark.parametrize("file", source_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_is_longer_than_400_lines(file):
    assert len(file.read_text().splitlines()) <= 400
