"""Epochs of SRast are chosen on a sample of which nothing was learned before."""

from __future__ import annotations

import dataclasses
from unittest import mock

import chex
import numpy as np
import pytest
import scipy.sparse as sp
import test_run_srast

from stfm_jax.data.coarsen import by_lattice
from stfm_jax.models import table
from stfm_jax.models.srast.method import hold_out
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.train import stages
from stfm_jax.train.loop import Trained
from stfm_jax.train.stages import Run, TrainSettings


def samples(count: int = 3):
    return [by_lattice(test_run_srast.section(f"P{i}", i)) for i in range(count)]


def altered(pair):
    """Other counts and other images at the same places."""
    rng = np.random.default_rng(5)
    slide = pair.high
    counts = sp.csr_matrix(rng.poisson(3.0, slide.counts.shape).astype(np.float32))
    features = rng.normal(size=slide.features.shape).astype(np.float32)
    return by_lattice(dataclasses.replace(slide, counts=counts, features=features))


def recorded(pairs, folder, **overrides):
    """Stages that were asked for, (kind, epochs, arrays, rows, score), and the state."""
    config = test_run_srast.config(srast__image=True, **overrides)
    method = table.build("srast", config)
    calls = []

    def train(directory, name, flow, optimizer, schedule, data, arrays, seed, score, mesh):
        calls.append((directory.name, schedule.epochs, arrays, data.rows, score))
        return Trained({"call": np.float32(len(calls))}, 1, 0.5)

    run = Run(folder, "fold 0 srast", 0, make_mesh(1), TrainSettings.of(config))
    genes = {pair.high.name: [str(g) for g in pair.low.genes[:8]] for pair in pairs}
    with mock.patch.object(stages, "train", train):
        return calls, method.fit(pairs, genes, run)


@pytest.mark.parametrize("count", [3, 1])
def test_nothing_is_learned_of_what_is_held_out(tmp_path, count):
    """Neither the weights of proposals, nor axes and depth from images, nor rows to train on."""
    pairs = samples(count)
    _, out = hold_out(pairs, 0)
    if count == 3:
        changed = [altered(pair) if pair is out[0] else pair for pair in pairs]
    else:
        parents = {name for pair in out for name in pair.low.barcodes}
        keep = np.array([name not in parents for name in pairs[0].low.barcodes])
        other = altered(pairs[0])
        mixed = [pairs[0].high, other.high]
        of_child = keep[pairs[0].parent]
        counts = sp.csr_matrix(
            np.where(of_child[:, None], *(slide.counts.toarray() for slide in mixed))
        )
        features = np.where(of_child[:, None], *(slide.features for slide in mixed))
        changed = [by_lattice(dataclasses.replace(pairs[0].high, counts=counts, features=features))]
    first, other = (recorded(given, tmp_path)[0] for given in (pairs, changed))
    assert [call[0] for call in first] == ["select", "refit"]
    chex.assert_trees_all_equal(first[0][2], other[0][2])
    chex.assert_trees_all_equal(first[0][3], other[0][3])
    assert np.abs(first[1][2].pool - other[1][2].pool).max() > 1e-3  # the refit sees all
    assert first[0][4] is not None and first[1][4] is None


def test_all_of_a_patient_is_held_out():
    pairs = samples(4)
    high = [dataclasses.replace(p.high, patient=f"patient {i // 2}") for i, p in enumerate(pairs)]
    kept, out = hold_out([by_lattice(slide) for slide in high], 1)
    patients = [{pair.high.patient for pair in part} for part in (kept, out)]
    assert len(kept) == len(out) == 2 and not patients[0] & patients[1]


def test_without_a_refit_the_selected_parameters_are_the_model(tmp_path):
    calls, state = recorded(samples(), tmp_path, train__refit=False)
    assert [call[0] for call in calls] == ["select"]
    assert state.params == {"call": 1} and state.epochs == 1
    chex.assert_trees_all_equal(state.fitted.flow, calls[0][2])
    calls, state = recorded(samples(), tmp_path, train__select=False)
    assert [(call[0], call[1]) for call in calls] == [("refit", 2)]
