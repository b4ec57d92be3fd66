"""Several devices share every batch: losses, draws and checkpoints are those of one device."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from stfm_jax.data.batching import collate
from stfm_jax.data.regions import Regions
from stfm_jax.errors import InputError
from stfm_jax.models import sharded
from stfm_jax.models.stflow.settings import STFlowSettings
from stfm_jax.runtime.devices import make_mesh, replicate, shard
from stfm_jax.runtime.files import read_csv
from stfm_jax.train.loop import Schedule, train
from stfm_jax.train.state import Optimizer, _sums, create

DEVICES = 4
SEED = 3
OPTIMIZER = Optimizer(learning_rate=3e-3)


@pytest.fixture(scope="module")
def flow():
    """Dropout and noise are on; tiles are so small that every device has several."""
    noisy = {"model__feature_noise": 0.3, "model__feature_dropout": 0.1}
    made = STFlowSettings.of(tiny.config(**noisy)).flow(8)
    return dataclasses.replace(made, tile=16)


@pytest.fixture(scope="module")
def quiet(flow):
    """Without noise and image tower, which compile slowly and have no part in the exchange."""
    return dataclasses.replace(
        flow,
        network=dataclasses.replace(
            flow.network, dropout=0.0, feature_noise=0.0, feature_dropout=0.0
        ),
        image=None,
    )


@pytest.fixture(scope="module")
def training(flow):
    slides = tiny.slides(3)
    return flow.training_set(slides, list(slides[0].genes[:8]))


def fit(folder, flow, training, devices, epochs=5, accumulate=1):
    """(parameters, loss of every epoch) of a run on so many devices.

    Of 10 steps an epoch, each of three slides: a device holds parts of one or two.
    """
    data = Regions(
        training.slides, flow.neighbors, flow.tile, whole_share=1.0, per_step=3,
        accumulate=accumulate,
    )  # fmt: skip
    arrays, mesh, schedule = training.fitted.flow, make_mesh(devices), Schedule(epochs)
    result = train(folder, "fold 0", flow, OPTIMIZER, schedule, data, arrays, SEED, None, mesh)
    losses = [float(row["train_loss"]) for row in read_csv(folder / "history.csv")]
    return jax.tree.map(np.asarray, result.params), np.array(losses)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, flow, training):
    folder = tmp_path_factory.mktemp("alone")
    return fit(folder, flow, training, 1)


def assert_close(result, expected):
    """Parameters less so than losses: Adam magnifies rounding where gradients are small."""
    np.testing.assert_allclose(result[1], expected[1], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(result[0]), jax.tree.leaves(expected[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.slow
def test_fifty_steps_on_four_devices_are_those_of_one(tmp_path, flow, training, alone):
    assert alone[1][-1] < alone[1][0] - 0.05
    assert_close(fit(tmp_path, flow, training, DEVICES), alone)


@pytest.mark.slow
def test_batches_of_a_step_add_up(tmp_path, flow, training, alone):
    """Three batches of one region each instead of one of three; on two devices."""
    assert_close(fit(tmp_path, flow, training, 2, accumulate=3), alone)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, DEVICES), (DEVICES, 1)])
def test_a_checkpoint_goes_on_with_other_devices(tmp_path, flow, training, alone, before, after):
    fit(tmp_path, flow, training, before, epochs=2)
    (tmp_path / "done.json").unlink()
    assert_close(fit(tmp_path, flow, training, after), alone)


def perturbed(flow, training):
    """Parameters of which none is zero."""
    rng, width = np.random.default_rng(0), flow.input_width(training.fitted)
    params = create(flow, OPTIMIZER, jax.random.key(0), training.fitted.flow, width).params
    return jax.tree.map(
        lambda a: np.asarray(a + 0.1 * rng.normal(size=a.shape), np.float32), params
    )


@pytest.mark.slow
def test_gradients_are_those_of_one_device(quiet, training):
    """Of three slides side by side, cut in four: neighbours lie on other devices."""
    key, params = jax.random.key(0), perturbed(quiet, training)
    results = []
    for devices in (1, DEVICES):
        mesh = make_mesh(devices)
        batch = collate(training.slides, quiet.neighbors, quiet.tile, devices)
        spots = batch.spot_mask.reshape(devices, -1).sum(axis=1)
        assert spots.max() - spots.min() <= 1  # the work is shared evenly
        arguments = replicate(mesh, (params, training.fitted.flow))
        results.append(_sums(quiet, mesh, *arguments, shard(mesh, batch), key, 0))
    one, several = results
    assert float(several.count) == float(one.count) == training.residuals.size
    for a, b in zip(jax.tree.leaves(several), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(b).max(), 1.0), rtol=1e-5)


def test_a_slide_is_predicted_as_by_one_device(quiet, training):
    key, params = jax.random.key(5), perturbed(quiet, training)
    drawn, means = [], []
    for devices in (1, DEVICES):
        mesh = make_mesh(devices)
        arguments = replicate(mesh, (params, training.fitted.flow))
        batch = sharded.batch_of(quiet, mesh, training.slides[0])
        assert len(batch.spot_mask.sharding.device_set) == devices
        drawn.append(sharded.sample(quiet, mesh, *arguments, batch, key, 2))
        means.append(sharded.posterior_mean(quiet, mesh, *arguments, batch, key, 2))
    assert drawn[0].shape == (2, len(training.slides[0].coords), 8)
    np.testing.assert_allclose(drawn[1], drawn[0], atol=1e-5)
    np.testing.assert_allclose(means[1], means[0], atol=1e-5)
    assert np.abs(drawn[0][0] - drawn[0][1]).max() > 0.1


def test_more_devices_than_there_are():
    have = jax.device_count()
    message = rf"asks for {have + 1} devices, found {have} \(cpu\).*device_count={have + 1}"
    with pytest.raises(InputError, match=message):
        make_mesh(have + 1)
    assert make_mesh(0).size == have
