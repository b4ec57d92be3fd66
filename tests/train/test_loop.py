"""The loop with a linear model: history, selection, and going on after every kind of end."""

from __future__ import annotations

import csv
import dataclasses
import math
import signal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stfm_jax.data.batching import PreparedSlide
from stfm_jax.data.regions import Regions
from stfm_jax.errors import InputError
from stfm_jax.runtime.interrupt import Interrupted
from stfm_jax.train import loop
from stfm_jax.train.loop import Schedule, train
from stfm_jax.train.state import Optimizer

TRACES = []
OPTIMIZER = Optimizer(learning_rate=0.05, ema_decay=0.9)
SCHEDULE = Schedule(epochs=5, checkpoint_every=2)
STEPS = 4  # of an epoch, with two slides


@dataclasses.dataclass(frozen=True)
class Linear:
    """expression = features W, with noise on the features."""

    def init(self, key, arrays, num_features):
        return {"w": jax.random.normal(key, (num_features, 2))}

    def loss(self, params, arrays, batch, key):
        TRACES.append(1)
        noisy = batch.features + 0.1 * jax.random.normal(key, batch.features.shape)
        error = (noisy @ params["w"] + arrays - batch.expr) ** 2
        mask = batch.spot_mask[:, None]
        return jnp.sum(jnp.where(mask, error, 0.0)), jnp.sum(mask) * error.shape[1]


def slide(name: str, seed: int, poison: bool = False) -> PreparedSlide:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(30, 3)).astype(np.float32)
    expr = features @ np.array([[1.0, -1.0], [0.5, 0.0], [0.0, 2.0]], np.float32)
    if poison:
        expr[:] = np.inf
    return PreparedSlide(
        name=name,
        coords=rng.uniform(0, 6, (30, 2)),
        features=features,
        anchor=np.zeros_like(expr),
        expr=expr,
        place=np.arange(30, dtype=np.int32),
    )


SLIDES = [slide("s1", 1), slide("s2", 2)]
ARRAYS = np.float32(0.0)


def jagged(params) -> float:
    """A score that goes up and down, so that the best epoch is not the last."""
    return math.sin(55.0 * float(jnp.sum(params["w"])))


def regions(slides, per_slide=2):
    return Regions(slides, neighbors=3, tile=512, per_slide=per_slide, whole_share=0.5)


def fit(folder, score=jagged, schedule=SCHEDULE, data=regions(SLIDES), seed=0):  # noqa: B008
    stage = "fold 0 select"
    return train(folder, stage, Linear(), OPTIMIZER, schedule, data, ARRAYS, seed, score)


def history(folder) -> list[dict]:
    with open(folder / "history.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same(one, other):
    assert (one.best_epoch, one.best_score) == (other.best_epoch, other.best_score) or (
        one.best_epoch == other.best_epoch and math.isnan(one.best_score)
    )
    np.testing.assert_array_equal(one.params["w"], other.params["w"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, with the parameters its validation saw."""
    folder, seen = tmp_path_factory.mktemp("whole"), []
    result = fit(folder, lambda params: seen.append(np.asarray(params["w"])) or jagged(params))
    return folder, result, seen


def test_history_and_selection(whole):
    folder, result, seen = whole
    rows = history(folder)
    assert [(row["epoch"], row["step"]) for row in rows] == [
        (str(i), str(STEPS * i)) for i in range(1, 6)
    ]
    scores = [jagged({"w": w}) for w in seen]
    assert result.best_epoch == 1 + int(np.argmax(scores)) != 5, "choose a more jagged score"
    np.testing.assert_array_equal(result.params["w"], seen[result.best_epoch - 1])
    assert [float(row["validation"]) for row in rows] == pytest.approx(scores, abs=1e-6)
    losses = [float(row["train_loss"]) for row in rows]
    assert losses[-1] < 0.5 * losses[0]


def test_without_validation_the_last_epoch_counts(tmp_path):
    result = fit(tmp_path, score=None)
    assert result.best_epoch == 5 and math.isnan(result.best_score)
    assert {row["validation"] for row in history(tmp_path)} == {""}
    assert not [p for p in (tmp_path / "best").iterdir() if p.is_dir()]


def test_a_finished_stage_is_not_trained_again(whole):
    folder, result, _ = whole
    with mock.patch.object(loop, "train_step", side_effect=AssertionError("trained")):
        assert_same(fit(folder), result)


def test_same_seed_same_result_and_one_trace(tmp_path, whole):
    before = len(TRACES)
    assert_same(fit(tmp_path / "a"), whole[1])
    assert len(TRACES) == before, "traced again for the same shapes"
    other = fit(tmp_path / "b", seed=1)
    assert not np.allclose(other.params["w"], whole[1].params["w"])


class Killed(BaseException):
    """kill -9, as far as the files can tell."""


WRITES = ["write_csv", "Checkpoint.replace", "Checkpoint.save"]


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("write", WRITES)
def test_killed_around_any_write_it_goes_on_to_the_same_end(tmp_path, whole, write, nth, done):
    owner = loop.Checkpoint if "." in write else loop
    name = write.split(".")[-1]
    real, calls = getattr(owner, name), []

    def killing(*args):
        calls.append(1)
        if len(calls) == nth and not done:
            raise Killed
        real(*args)
        if len(calls) == nth:
            raise Killed

    with mock.patch.object(owner, name, killing):
        try:
            fit(tmp_path)
        except Killed:
            pass
        else:
            assert len(calls) < nth
    assert_same(fit(tmp_path), whole[1])
    assert history(tmp_path) == history(whole[0])


@pytest.mark.parametrize("steps", [3, 4, 20])
@pytest.mark.parametrize("score", [jagged, None], ids=["select", "refit"])
def test_sigterm_at_any_step_saves_that_step(tmp_path, whole, steps, score):
    """Also at the last step of an epoch, and of all epochs."""
    taken, real = [], loop.train_step

    def step(*args):
        taken.append(1)
        if len(taken) == steps:
            signal.raise_signal(signal.SIGTERM)
        return real(*args)

    with (
        mock.patch.object(loop, "train_step", step),
        pytest.raises(Interrupted, match=f"at step {steps} of fold 0 select"),
    ):
        fit(tmp_path, score)
    assert len(taken) == steps
    with mock.patch.object(loop, "train_step", wraps=loop.train_step) as counted:
        result = fit(tmp_path, score)
    assert counted.call_count == 20 - steps, "steps were lost or repeated"
    assert_same(result, whole[1] if score else fit(tmp_path / "uninterrupted", None))
    if score:
        assert history(tmp_path) == history(whole[0])


def test_handlers_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    fit(tmp_path, None, Schedule(epochs=1), regions(SLIDES, per_slide=1))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_infinite_loss_names_step_and_slide_and_keeps_the_last_good_checkpoint(tmp_path):
    good = fit(tmp_path, None, dataclasses.replace(SCHEDULE, epochs=1))
    bad = regions([SLIDES[0], slide("broken", 3, poison=True)])
    epoch = enumerate(bad.batches(0, 1))
    first = next(i for i, (batch,) in epoch if np.isinf(batch.expr).any())
    with pytest.raises(InputError, match=rf"at step {STEPS + first} \(epoch 1\), on slide broken"):
        fit(tmp_path, None, data=bad)
    assert_same(fit(tmp_path, None, dataclasses.replace(SCHEDULE, epochs=1)), good)


def test_a_shorter_schedule_does_not_take_a_longer_ones_checkpoint(tmp_path):
    """More folds may change the number of epochs of the final refit after it was stopped."""
    short = dataclasses.replace(SCHEDULE, epochs=2)
    expected = fit(tmp_path / "fresh", None, short)
    fit(tmp_path / "used", None)
    assert_same(fit(tmp_path / "used", None, short), expected)
    assert len(history(tmp_path / "used")) == 2


def scores_of(values):
    """A score that takes these values, epoch after epoch."""
    left = iter(values)
    return lambda params: next(left)


PATIENT = Schedule(epochs=9, checkpoint_every=4, patience=3)


def test_it_ends_where_nothing_was_better_for_long(tmp_path):
    """The third epoch is the best; three more, and no further one is trained."""
    found = fit(tmp_path, scores_of([0.1, 0.2, 0.5, 0.4, 0.5, 0.3]), PATIENT)
    assert (found.best_epoch, found.best_score) == (3, 0.5)
    assert [row["epoch"] for row in history(tmp_path)] == ["1", "2", "3", "4", "5", "6"]
    again = fit(tmp_path, scores_of([]), PATIENT)
    assert_same(again, found)
    every = fit(tmp_path / "all", scores_of([0.1, 0.2, 0.5, 0.4, 0.5, 0.3, 0.2, 0.6, 0.1]),
                Schedule(epochs=9, checkpoint_every=4))  # fmt: skip
    assert every.best_epoch == 8


def test_without_validation_patience_means_nothing(tmp_path):
    assert fit(tmp_path, None, PATIENT).best_epoch == 9
