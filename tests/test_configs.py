"""Every file in configs/ loads, says its command, and describes a method that can be built."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import pathlib

import pytest

from configs import base, hest, stimage
from stfm_jax.data.datasets import READERS
from stfm_jax.data.readers.hest import TASKS
from stfm_jax.data.retrieval import Reach
from stfm_jax.data.simulate import TissueParams
from stfm_jax.experiment import RunSettings
from stfm_jax.models import table
from stfm_jax.models.holotea.settings import HoloTeaSettings
from stfm_jax.problems.expression import ExpressionSettings
from stfm_jax.problems.split import SplitSettings
from stfm_jax.problems.table import problem_of
from stfm_jax.train.stages import TrainSettings

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

    def names(section):
        return {key: names(v) if hasattr(v, "items") else None for key, v in section.items()}

    assert names(config) == names(fields)
    assert tuple(json.loads(config.to_json_best_effort())["methods"]) == config.methods


SETTINGS = {found.Settings for found in map(table.method_class, table.METHODS)} | {
    TrainSettings,
    RunSettings,
    ExpressionSettings,
    SplitSettings,
}


@pytest.mark.parametrize("settings", sorted(SETTINGS, key=lambda each: each.__name__))
def test_settings_have_the_defaults_of_base(settings):
    assert settings() == settings.of(base.get_config())


def test_neighbours_are_reached_for_as_base_says():
    assert Reach() == HoloTeaSettings.of(base.get_config()).reach


def test_every_field_of_the_tissue_is_there_with_its_default():
    """So that flags can set them."""
    fields = dict(base.get_config().data.tissue)
    assert fields == dataclasses.asdict(TissueParams())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "base"])
def test_header_says_the_command(name):
    header = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text()))
    assert f"python run.py --config=configs/{name}.py" in header
    assert "--workdir=" in header


@pytest.mark.parametrize("tissue", stimage.TISSUES)
def test_every_tissue_of_stimage_has_its_config(tissue):
    config = load(f"stimage_{tissue}")
    assert (config.data.reader, config.data.task) == ("stimage", tissue)
    assert config == stimage.get_config(tissue)


def test_every_hest_task_is_compared():
    assert load("compare_hest").compare.tasks == TASKS


def test_every_hest_task_has_its_config():
    for task in TASKS:
        config = load(f"hest_{task.lower()}")
        assert (config.data.reader, config.data.task) == ("hest", task)
        assert config == hest.get_config(task)
