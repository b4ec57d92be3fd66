"""From slides to a trained model: a base, and the method that stands on it."""

from __future__ import annotations

import dataclasses
import functools
from unittest import mock

import chex
import jax
import numpy as np
import pytest
import tiny
import tiny_stack

from stfm_jax import training
from stfm_jax.data.batching import in_order
from stfm_jax.eval import sampling
from stfm_jax.models.build import build
from stfm_jax.models.holotea import HoloTea
from stfm_jax.runtime.devices import make_mesh, split
from stfm_jax.train.loop import Trained
from stfm_jax.training import Training


@pytest.fixture(scope="module")
def slides():
    """The training sections of the second fold of four."""
    return [s for i, s in enumerate(tiny.slides(registered=True)) if i != 1]


def prepared(slides, directory, **overrides):
    """`Training.run` of a config, and the config."""
    config = tiny_stack.config(**overrides)
    genes = tiny_stack.genes(slides)
    run = Training(config, make_mesh(1), directory, "fold 1").run
    return functools.partial(run, build(config, len(genes)), slides, genes)


@dataclasses.dataclass
class Recorded:
    """Stands in for `train.loop.train`: what it was asked for, and made-up outcomes."""

    calls: list = dataclasses.field(default_factory=list)

    def __call__(self, directory, stage, task, optimizer, schedule, data, arrays, seed, score, _):
        self.calls.append((directory, stage, task, schedule, data.slides, arrays, score))
        return Trained({"call": np.float32(len(self.calls))}, schedule.epochs - 1, 0.5)


def recorded(run, *args):
    record = Recorded()
    with mock.patch.object(training, "train", record):
        return record.calls, run(*args)


def test_the_base_is_trained_first_and_stood_on(slides, tmp_path):
    run = prepared(slides, tmp_path, stack__prior="base", train__epochs=4, stack__epochs=7)
    calls, (fitted, trained, epochs) = recorded(run)
    directories, stages, tasks, schedules, parts, arrays, scores = zip(*calls, strict=True)
    kinds = ["base/select", "select", "base/refit", "refit"]
    assert [d.relative_to(tmp_path).as_posix() for d in directories] == kinds
    assert stages == tuple(
        f"fold 1 {kind}" for kind in ("base select", "select", "base refit", "refit")
    )
    assert [task.name for task in tasks] == ["stflow", "holotea"] * 2
    assert tasks[0] == tasks[1].base
    assert [schedule.epochs for schedule in schedules] == [4, 7, 3, 6]
    assert [len(part) for part in parts] == [2, 2, 3, 3]
    assert [part[0].context is None for part in parts] == [True, False] * 2
    assert [score is None for score in scores] == [False, False, True, True]
    for i in (1, 3):
        assert arrays[i].base_params == {"call": i}  # of the call before
        chex.assert_trees_all_equal(arrays[i].base, arrays[i - 1])
    assert trained.params == {"call": 4} and epochs == (3, 6)
    assert fitted.fitted.flow.base_params == {"call": 3}
    assert len(fitted.slides) == 3


@pytest.mark.parametrize(
    ("settings", "given", "kinds", "expected"),
    [
        ({}, (2, 9), ["base/refit", "refit"], (2, 9)),
        ({"train__select": False}, None, ["base/refit", "refit"], (4, 7)),
        ({"train__refit": False}, None, ["base/select", "select"], (3, 6)),
        ({"method": "stflow"}, None, ["select", "refit"], (3,)),
    ],
)
def test_which_stages_for_how_many_epochs(slides, tmp_path, settings, given, kinds, expected):
    given = () if given is None else (given,)
    settings = {"stack__prior": "base", "train__epochs": 4, "stack__epochs": 7, **settings}
    run = prepared(slides, tmp_path, **settings)
    calls, (_, _, epochs) = recorded(run, *given)
    assert [call[0].relative_to(tmp_path).as_posix() for call in calls] == kinds
    assert epochs == expected
    if kinds[-1] == "refit":
        assert tuple(call[3].epochs for call in calls[-len(expected) :]) == expected


def test_what_the_best_epoch_is_chosen_by(slides, tmp_path):
    """The base's by the Pearson of its mean; its own by the loss, with measured neighbours seen."""
    calls, _ = recorded(prepared(slides, tmp_path, stack__prior="base"))
    (base, own), seen = [call[6] for call in calls[:2]], {s.name for s in calls[0][4]}
    validation = next(s for s in slides if s.name not in seen)
    true = np.log1p(validation.counts.toarray()[:, :8])

    def mean(task, mesh, params, flow, batch, key, draws):
        np.testing.assert_allclose(in_order(batch, batch.expr), true, rtol=1e-6)
        return params * true + np.random.default_rng(0).normal(size=true.shape)

    def loss(task, mesh, params, flow, batch, key, draws):
        np.testing.assert_allclose(in_order(batch, batch.expr), true, rtol=1e-6)
        assert batch.context.known[batch.spot_mask].all() and draws == training.VALIDATION_DRAWS
        return params

    with (
        mock.patch.object(sampling, "posterior_mean", mean),
        mock.patch.object(sampling, "validation_loss", loss),
    ):
        assert base(100.0) > 0.99 > base(1.0) > base(-1.0)
        assert (own(2.0), own(3.0)) == (-2.0, -3.0)


@dataclasses.dataclass(frozen=True)
class Noisy:
    """A task whose loss is that of a noise of its key."""

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
    got = sampling.validation_loss(Noisy(), mesh, *arguments, split(mesh, batch), key, 5)
    each = [Noisy().validation_loss(*arguments, batch, k)[0] / 8 for k in jax.random.split(key, 5)]
    assert got == pytest.approx(np.mean(each), rel=1e-5)
    assert np.std(each) > 0.01


def test_validation_sees_all_neighbours_and_no_noise():
    """Whichever of the two regimes the key would have hidden it in."""
    task = build(tiny_stack.config(), 8)
    batch = mock.Mock(spot_mask=np.array([True, True, False]))
    error = np.ones((3, 8), np.float32)
    with mock.patch.object(HoloTea, "_errors", return_value=(error, error)) as errors:
        for key in jax.random.split(jax.random.key(0), 4):
            assert task.validation_loss(None, None, batch, key) == (16, 16)
    for call in errors.call_args_list:
        assert call.args[2] is batch and call.kwargs == {"noisy": False}
