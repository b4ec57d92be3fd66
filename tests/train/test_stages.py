"""From slides to trained methods: STFlow, and HoloTea that stands on it."""

from __future__ import annotations

import dataclasses
from unittest import mock

import chex
import jax
import numpy as np
import pytest
import tiny
import tiny_stack

from stfm_jax.data.batching import in_order
from stfm_jax.models import sharded, table
from stfm_jax.models.holotea import method as holotea
from stfm_jax.models.holotea.settings import HoloTeaSettings
from stfm_jax.models.method import Genes, Section
from stfm_jax.models.stflow import joint
from stfm_jax.regression import regressors
from stfm_jax.runtime.checkpoint import Checkpoint
from stfm_jax.runtime.devices import make_mesh, shard
from stfm_jax.runtime.files import read_csv
from stfm_jax.train import stages
from stfm_jax.train.loop import Trained
from stfm_jax.train.stages import Run, TrainSettings


@pytest.fixture(scope="module")
def slides():
    """The training sections of the second fold of four."""
    return [s for i, s in enumerate(tiny.slides(registered=True)) if i != 1]


def fitted(slides, directory, names=("stflow", "holotea"), epochs=None, **overrides):
    """States of methods, fitted one after the other as the runner does, and their runs."""
    config = tiny_stack.config(**overrides)
    genes = tuple(tiny_stack.genes(slides))
    cases = [Section(slide, slides) for slide in slides]
    runs, states, shared = {}, {}, {}
    for name in names:
        runs[name] = Run(
            directory=directory / name,
            name=f"fold 1 {name}",
            seed=config.seed,
            mesh=make_mesh(1),
            settings=TrainSettings.of(config),
            epochs=(epochs or {}).get(name),
            of=runs.__getitem__,
            shared=shared,
        )
        method = table.build(name, config)
        states[name] = method.fit(cases, Genes(genes, genes), runs[name])
    return states


@dataclasses.dataclass
class Recorded:
    """Stands in for `train.loop.train`: what it was asked for, and made-up outcomes."""

    calls: list = dataclasses.field(default_factory=list)

    def __call__(self, directory, stage, flow, optimizer, schedule, data, arrays, seed, score, _):
        self.calls.append((directory, stage, flow, schedule, data.slides, arrays, score))
        return Trained({"call": np.float32(len(self.calls))}, schedule.epochs - 1, 0.5)


def recorded(*args, **kwargs):
    record = Recorded()
    with mock.patch.object(stages, "train", record):
        return record.calls, fitted(*args, **kwargs)


def test_the_base_is_trained_first_and_stood_on(slides, tmp_path):
    settings = {"stack__prior": "base", "train__epochs": 4, "stack__epochs": 7}
    calls, states = recorded(slides, tmp_path, **settings)
    directories, names, flows, schedules, parts, arrays, scores = zip(*calls, strict=True)
    kinds = ["stflow/select", "stflow/refit", "stflow/part", "holotea/select", "holotea/refit"]
    assert [d.relative_to(tmp_path).as_posix() for d in directories] == kinds
    assert names == tuple(f"fold 1 {kind.replace('/', ' ')}" for kind in kinds)
    assert flows[0].flow == flows[1] == flows[2] == flows[3].base and flows[3] == flows[4]
    assert [schedule.epochs for schedule in schedules] == [4, 3, 3, 7, 6]
    assert [len(part) for part in parts] == [2, 3, 2, 2, 3]
    assert [part[0].context is None for part in parts] == [True, True, True, False, False]
    assert [score is None for score in scores] == [False, True, True, False, True]
    for own, base in ((3, 2), (4, 1)):
        assert arrays[own].base_params == {"call": base + 1}  # trained on the same slides
        chex.assert_trees_all_equal(arrays[own].base, arrays[base])
    assert states["holotea"].params == {"call": 5} and states["holotea"].epochs == 6
    assert states["holotea"].fitted.flow.base_params == {"call": 2}
    assert states["stflow"].params == {"call": 2} and states["stflow"].epochs == 3


@pytest.mark.parametrize(
    ("settings", "given", "kinds", "expected"),
    [
        ({}, {"stflow": 2, "holotea": 9}, ["refit"], (2, 9)),
        ({"train__select": False}, None, ["refit"], (4, 7)),
        ({"train__refit": False}, None, ["select"], (3, 6)),
        ({}, None, ["select", "refit"], (3, 6)),
    ],
)
def test_which_stages_for_how_many_epochs(slides, tmp_path, settings, given, kinds, expected):
    settings = {"stack__prior": "base", "train__epochs": 4, "stack__epochs": 7, **settings}
    calls, states = recorded(slides, tmp_path, epochs=given, **settings)
    folders = [call[0].relative_to(tmp_path).as_posix() for call in calls]
    part = ["part"] if len(kinds) == 2 else []  # holotea's selection stands on it
    of_base = [f"stflow/{kind}" for kind in (*kinds, *part)]
    assert folders == [*of_base, *(f"holotea/{kind}" for kind in kinds)]
    assert (states["stflow"].epochs, states["holotea"].epochs) == expected
    if kinds[-1] == "refit":
        refits = [call[3].epochs for call in calls if call[0].name == "refit"]
        assert tuple(refits) == expected


def test_what_is_fitted_alike_is_fitted_once(slides, tmp_path):
    """Kernel ridge is the flow's anchor too; so is what holotea and stflow fit to the same."""
    with mock.patch.object(regressors, "choose", side_effect=regressors.choose) as choose:
        names = ("kernel_ridge", "centred_sum", "stflow", "holotea")
        _, states = recorded(slides, tmp_path, names=names, stack__prior="base")
    assert choose.call_count == 2  # on all slides, and on those that epochs are selected on
    chex.assert_trees_all_equal(states["kernel_ridge"].regressor, states["stflow"].fitted.anchor)


def test_what_the_best_epoch_is_chosen_by(slides, tmp_path):
    """The base's by the Pearson of its mean; its own by the loss, with measured neighbours seen."""
    calls, _ = recorded(slides, tmp_path, stack__prior="base")
    base, own = calls[0][6], calls[3][6]
    seen = {s.name for s in calls[0][4]}
    validation = next(s for s in slides if s.name not in seen)
    true = np.log1p(validation.counts.toarray()[:, :8])

    def mean(flow, mesh, params, arrays, batch, key, draws):
        np.testing.assert_allclose(in_order(batch, batch.expr), true, rtol=1e-6)
        return params * true + np.random.default_rng(0).normal(size=true.shape)

    def loss(flow, mesh, params, arrays, batch, key, draws):
        np.testing.assert_allclose(in_order(batch, batch.expr), true, rtol=1e-6)
        assert batch.context.known[batch.spot_mask].all() and draws == holotea.VALIDATION_DRAWS
        return params

    with (
        mock.patch.object(sharded, "posterior_mean", mean),
        mock.patch.object(sharded, "validation_loss", loss),
    ):
        assert base(100.0) > 0.99 > base(1.0) > base(-1.0)
        assert (own(2.0), own(3.0)) == (-2.0, -3.0)


def test_the_tower_is_selected_as_if_the_flow_were_trained_too(slides, tmp_path):
    """Same start, noise and score; only the gradient's common limit is the tower's own."""
    settings = {"train__epochs": 3, "train__clip_norm": 1e6}
    kept = {}
    for name, refit in (("alone", True), ("whole", False)):
        fitted(slides, tmp_path / name, ("stflow",), train__refit=refit, **settings)
        folder = tmp_path / name / "stflow" / "select"
        kept[name] = Checkpoint(folder / "latest").restore_as_saved()["params"]
        kept[name, "scores"] = [row["validation"] for row in read_csv(folder / "history.csv")]
    assert list(kept["alone"]) == ["image"] and set(kept["whole"]) == {"image", "flow"}
    chex.assert_trees_all_close(kept["alone"]["image"], kept["whole"]["image"], atol=1e-5)
    assert kept["alone", "scores"] == kept["whole", "scores"]
    assert len(set(kept["alone", "scores"])) == 3


@dataclasses.dataclass(frozen=True)
class Noisy:
    """A flow whose loss is that of a noise of its key."""

    def validation_loss(self, params, arrays, batch, key):
        noise = jax.vmap(lambda place: jax.random.normal(jax.random.fold_in(key, place)))(
            batch["place"]
        )
        error = params * (batch["x"] - arrays * noise) ** 2
        return error.sum(), np.float32(len(error))


@pytest.mark.parametrize("devices", [1, 2])
def test_validation_loss_is_the_mean_over_its_keys(devices):
    batch = {"x": np.linspace(-1, 1, 8, dtype=np.float32), "place": np.arange(8)}
    key, mesh = jax.random.key(4), make_mesh(devices)
    arguments = np.float32(2.0), np.float32(0.5)
    got = sharded.validation_loss(Noisy(), mesh, *arguments, shard(mesh, batch), key, 5)
    each = [Noisy().validation_loss(*arguments, batch, k)[0] / 8 for k in jax.random.split(key, 5)]
    assert got == pytest.approx(np.mean(each), rel=1e-5)
    assert np.std(each) > 0.01


def test_validation_sees_all_neighbours_and_no_noise():
    """Whichever of the two regimes the key would have hidden it in."""
    flow = HoloTeaSettings.of(tiny_stack.config()).flow(8)
    batch = mock.Mock(spot_mask=np.array([True, True, False]))
    error = np.ones((3, 8), np.float32)
    with (
        mock.patch.object(type(flow), "parts", return_value="parts") as parts,
        mock.patch.object(joint, "errors", return_value=(error, error)) as errors,
    ):
        for key in jax.random.split(jax.random.key(0), 4):
            assert flow.validation_loss(None, None, batch, key) == (16, 16)
    for call in parts.call_args_list:
        assert call.args == (None, None, batch) and call.kwargs == {}  # no noise
    for call in errors.call_args_list:
        assert call.args[1] == "parts" and call.args[3] is batch
