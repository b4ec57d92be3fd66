"""Every file in configs/ loads, says its command, and describes a method that can be built."""

from __future__ import annotations

import ast
import importlib
import json
import pathlib

import pytest

from configs import base, hest
from stfm_jax.data.datasets import READERS
from stfm_jax.data.readers.hest import TASKS
from stfm_jax.data.simulate import TissueParams
from stfm_jax.models import table
from stfm_jax.problems.table import problem_of

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")


def load(name: str):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", NAMES)
def test_config_builds_its_methods(name):
    config = load(name)
    methods = [table.build(each, config) for each in config.methods]
    assert [method.name for method in methods] == list(config.methods)
    for method in methods:
        again = table.build(method.name, load(name))
        assert hash(method) == hash(again), "no static argument of jitted functions"
    assert problem_of(config, methods).methods == tuple(methods)
    assert config.data.reader in READERS
    TissueParams(**config.data.tissue)


@pytest.mark.parametrize("name", NAMES)
def test_config_has_the_fields_of_base_and_can_be_kept(name):
    """A misspelt field would be new; the workdir's config.json holds what was run."""
    config, fields = load(name), base.get_config()
    fields.data.tissue = config.data.tissue  # the simulation's own fields

    def names(section):
        return {key: names(v) if hasattr(v, "items") else None for key, v in section.items()}

    assert names(config) == names(fields)
    assert tuple(json.loads(config.to_json_best_effort())["methods"]) == config.methods


@pytest.mark.parametrize("name", [name for name in NAMES if name != "base"])
def test_header_says_the_command(name):
    header = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text()))
    assert f"python run.py --config=configs/{name}.py" in header
    assert "--workdir=" in header


def test_every_hest_task_has_its_config():
    for task in TASKS:
        config = load(f"hest_{task.lower()}")
        assert (config.data.reader, config.data.task) == ("hest", task)
        assert config == hest.get_config(task)
