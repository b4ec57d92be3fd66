"""What may differ between runs of a workdir: all but the data and what has results there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny

import stfm_jax as stfm
from configs import base
from stfm_jax import workdir as workdirs
from stfm_jax.command import _fields
from stfm_jax.errors import InputError
from stfm_jax.models import table
from stfm_jax.problems.table import PROBLEMS
from stfm_jax.settings import paths

ANCHORED = "(of anchor, stflow)"


def stored(work: Path) -> dict:
    return json.loads((work / "config.json").read_text())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model__width": 32}, ["model.width is 16 there and 32 here", ANCHORED]),
        ({"train__epochs": 4}, ["train.epochs is 3 there and 4 here", ANCHORED]),
        ({"prior": "gaussian"}, ["prior is 'zinb_fit' there", ANCHORED]),
        ({"model__components": 4}, ["model.components", "(of mean, ridge, ridge_smooth,"]),
        ({"sample__draws": 5}, ["sample.draws", "(of mean, ridge,"]),
        ({"data__num_genes": 5}, ["data.num_genes is 8 there and 5 here. Use another --workdir"]),
        ({"encoder__patch_um": 1.0}, ["encoder.patch_um is 200.0 there and 1.0 here. Use another"]),
        ({"model__width": 32, "stack__kept": 3}, ["model.width", ANCHORED, "Use another"]),
    ],
)
def test_what_results_hang_on_is_refused(trained, tmp_path, capfd, changed, words):
    work = shutil.copytree(trained.workdir, tmp_path / "work")
    before = tiny.contents(work)
    assert tiny.run(trained.config(methods=("mean",), **changed), work) == 2
    err = capfd.readouterr().err
    assert "belongs to another config" in err and all(word in err for word in words), err
    assert "stack.kept" not in err
    assert tiny.contents(work) == before


def test_settings_of_methods_without_results_are_free(trained, tmp_path):
    """Of stacks, of the split problem, and of both together; the stored config follows."""
    work = shutil.copytree(trained.workdir, tmp_path / "work")
    changed = {"stack__kept": 3, "stack__registration": "none", "srast__width": 8}
    made = trained.config(methods=("mean",), seeds=(0,), coarsen__shift=(1, 0), **changed)
    assert tiny.run(made, work) == 0
    before, now = stored(trained.workdir), stored(work)
    assert (now["stack"]["kept"], now["stack"]["registration"]) == (3, "none")
    assert now["srast"]["width"] == 8 and now["coarsen"]["shift"] == [1, 0]
    kept = {name: before[name] for name in before if name not in ("stack", "srast", "coarsen")}
    assert kept.items() <= now.items()  # methods and seeds too


def test_a_method_that_comes_later_brings_its_settings(trained, tmp_path, capfd):
    work, both = tmp_path / "work", ("ridge", "stflow")
    assert tiny.run(trained.config(methods=("ridge",), fold=0), work) == 0
    rows = tiny.contents(work / "fold_0" / "ridge")
    made = trained.config(methods=both, fold=0, model__width=8, train__epochs=1)
    assert tiny.run(made, work) == 0
    assert tiny.contents(work / "fold_0" / "ridge") == rows
    assert stored(work)["model"]["width"] == 8 and stored(work)["methods"] == [*both]
    assert stfm.load(work, "stflow").predict(trained.unseen, draws=2).n_vars == 8
    assert tiny.run(trained.config(methods=both, fold=0), work) == 2
    err = capfd.readouterr().err
    assert "model.width is 8 there and 16 here (of stflow)" in err
    assert "train.epochs is 1 there and 3 here (of stflow)" in err


def test_a_training_that_was_stopped_counts(trained, tmp_path, capfd):
    """Its checkpoints are of its settings."""
    work = tmp_path / "work"
    assert tiny.run(trained.config(methods=("ridge",), fold=0), work) == 0
    (tiny.place(work, 0, "stflow", seed=4) / "select").mkdir(parents=True)
    assert tiny.run(trained.config(methods=("stflow",), fold=0, model__width=8), work) == 2
    assert "model.width is 16 there and 8 here (of stflow)" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["stflow", "srast"])
def test_results_of_the_first_form_count(name):
    """Versions to 0c00b60 kept one method, beside its baselines."""
    work = tiny.REPOSITORY / "tests" / "legacy" / name
    config = workdirs.read_config(work)
    workdirs.check(config, work, new=False)
    with config.unlocked():
        config.train.epochs += 1
    with pytest.raises(InputError, match=rf"train\.epochs is .* \(of .*{name}\)"):
        workdirs.check(config, work, new=False)


def test_every_field_is_somebodys():
    """A field that nobody names is taken to be everybody's; these two are."""
    found = {name for name, _ in _fields(base.get_config())}
    known = set().union(*(table.method_class(name).fields() for name in table.METHODS))
    known |= set().union(*(paths(problem.Settings) for problem in PROBLEMS.values()))
    loose = (*workdirs.FREE_FIELDS, *workdirs.SHARED)
    left = {name for name in found - known if name.split(".")[0] not in loose}
    assert left == {"sample.draws", "sample.mean_draws"}
    assert known <= found
