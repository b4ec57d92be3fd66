"""Simulated patients: each dial changes what it says and nothing else."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tiny

from configs import simulated_patients
from stfm_jax.data import datasets, simulate
from stfm_jax.data.simulate import TissueParams
from stfm_jax.data.simulate_params import DIALS
from stfm_jax.errors import InputError

NEAR = TissueParams(num_sections=1, spots=60, num_genes=40)
SEED = 5
CHANGES = {
    "stranger_stain": {"stain", "image"},
    "stranger_scanner": {"pixel", "image"},
    "stranger_depth": {"depth", "mean", "counts"},
    "stranger_mixture": {"domains", "mixtures", "image", "mean", "counts"},
    "stranger_programs": {"programs", "mean", "counts"},
    "stranger_genes": {"mean", "counts"},
    "stranger_panel": {"mean", "counts"},
}


def far(dial: str, amount: float = 1.0, seed: int = SEED) -> simulate.Volume:
    return simulate.volume(dataclasses.replace(NEAR, **{dial: amount}), seed)


@pytest.fixture(scope="module")
def near() -> simulate.Volume:
    return simulate.volume(NEAR, SEED)


def facts(volume: simulate.Volume) -> dict[str, np.ndarray]:
    slide, truth = volume.slides[0], volume.truth[0]
    stain = slide.patches.stain
    return {
        "coords": slide.coords_um,
        "pixel": np.array(slide.patches.um_per_px),
        "stain": np.concatenate([stain.vectors.ravel(), stain.strength, stain.glass]),
        "image": slide.patches.read([7, 30], 80.0),
        "domains": truth.domains,
        "mixtures": truth.mixtures,
        "programs": truth.programs,
        "depth": truth.depth,
        "mean": truth.mean,
        "counts": slide.counts.toarray(),
        "genes": slide.genes,
    }


@pytest.mark.parametrize("dial", DIALS)
def test_a_dial_changes_what_it_says_and_nothing_else(near, dial):
    before, after = facts(near), facts(far(dial))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == CHANGES[dial]


def test_every_dial_has_its_test():
    fields = {field.name for field in dataclasses.fields(TissueParams)}
    assert set(DIALS) == set(CHANGES) == {name for name in fields if name.startswith("stranger_")}


def test_stain_differs_between_patients_and_not_within_one():
    params = dataclasses.replace(NEAR, num_sections=2, stranger_stain=1.0)
    strengths = [
        [np.log(s.patches.stain.strength) for s in simulate.volume(params, seed).slides]
        for seed in range(8)
    ]
    between = np.std([of[0] for of in strengths])
    within = np.std([of[0] - of[1] for of in strengths])
    assert between > 2 * within and between > 0.2


def test_a_scanner_blurs_without_seams_and_has_its_own_colours(near):
    """Overlapping patches still show the same picture."""
    blurring = max(range(6), key=lambda s: far("stranger_scanner", 1.0, s).patient.scanner.blur_um)
    volume = far("stranger_scanner", 1.0, blurring)
    source, scanner = volume.slides[0].patches, volume.patient.scanner
    assert scanner.blur_um > 1.0
    where = volume.slides[0].coords_um
    middle = int(np.argmin(np.linalg.norm(where - where.mean(axis=0), axis=1)))
    wide, narrow = (source.read([middle], side * source.um_per_px)[0] for side in (120, 60))
    np.testing.assert_array_equal(wide[30:90, 30:90], narrow)
    sharp = dataclasses.replace(scanner, blur_um=0.0, gain=np.ones(3))
    source.scanner = sharp
    plain = source.read([middle], 120 * source.um_per_px)[0]

    def grain(image):
        return np.abs(np.diff(image.astype(float), axis=0)).mean()

    assert grain(wide) < 0.7 * grain(plain)
    ratio = wide.mean(axis=(0, 1)) / plain.mean(axis=(0, 1))
    np.testing.assert_allclose(ratio, np.minimum(scanner.gain, ratio.max()), rtol=0.05)


def test_depth_is_one_factor_of_all_counts(near):
    half, whole = (far("stranger_depth", amount).truth[0].depth for amount in (0.5, 1.0))
    factor = whole / near.truth[0].depth
    np.testing.assert_allclose(factor, factor[0])
    np.testing.assert_allclose((half / near.truth[0].depth) ** 2, factor)
    logs = [np.log(far("stranger_depth", 1.0, seed).patient.depth) for seed in range(30)]
    assert 0.5 < np.std(logs) < 1.2


def test_genes_have_levels_of_their_own_in_each_patient(near):
    ratio = far("stranger_genes", 0.5).truth[0].mean / near.truth[0].mean
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[0], ratio.shape), rtol=1e-4)
    logs = np.log([far("stranger_genes", 1.0, seed).patient.level for seed in range(20)])
    assert np.std(logs) == pytest.approx(np.log(4.0), rel=0.1)


def test_patients_mixtures_lie_further_apart():
    def apart(amount):
        means = [
            far("stranger_mixture", amount, s).truth[0].mixtures.mean(axis=0) for s in range(6)
        ]
        return np.std(means, axis=0).sum()

    assert apart(1.0) > 1.3 * apart(0.0)


def test_some_programs_are_shown_by_the_image_others_in_other_patients():
    """Those that are follow the shape of the domains, the same way in everyone; variance stays."""
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(0, 60_000, (4000, 2)), rng.uniform(0, 20_000, 4000)])
    sets = set()
    for seed in range(4):
        tissue = far("stranger_programs", 1.0, seed).tissue
        programs, shape = tissue.programs(points), tissue.coarse(points) @ tissue.shown_axes
        np.testing.assert_allclose(programs.std(axis=0), 1, atol=0.2)
        found = [np.corrcoef(programs[:, p], shape[:, p])[0, 1] for p in range(NEAR.num_programs)]
        np.testing.assert_allclose(found, 0.9 * (tissue.shown > 0), atol=0.15)
        sets.add(tuple(tissue.shown > 0))
    assert len(sets) > 1


def test_genes_that_a_panel_lacks_have_no_counts_and_all_others_theirs(near):
    volume = far("stranger_panel")
    lost = ~volume.patient.detected
    assert 0 < lost.sum() < 20
    counts, before = (v.slides[0].counts.toarray() for v in (volume, near))
    assert not counts[:, lost].any() and before[:, lost].any(axis=0).all()
    np.testing.assert_array_equal(counts[:, ~lost], before[:, ~lost])
    rates, all_rates = simulate.tissue_rates(volume, 0), simulate.tissue_rates(near, 0)
    np.testing.assert_array_equal(rates, all_rates * ~lost)


def test_a_dial_below_zero_is_refused():
    with pytest.raises(InputError, match="stranger_stain to be not negative, found -1"):
        TissueParams(stranger_stain=-1)


def cohort(**fields):
    size = {"data__tissue__num_sections": 2, "data__tissue__spots": 20}
    data = tiny.config(data__reader="simulated", data__seeds=(0, 1, 2), **size, **fields).data
    data.tissue.num_genes = 5
    return data


def test_patients_kept_apart_are_tested_by_the_one_fold_and_never_trained_on():
    for folds in ("auto", "published"):
        dataset = datasets.load(cohort(data__test_patients=2, data__folds=folds))
        (fold,) = dataset.folds
        assert fold.train == ("P1_S1", "P1_S2")
        assert fold.test == ("P2_S1", "P2_S2", "P3_S1", "P3_S2")
        assert "trained on 1 of 3 patients, tested on the others" in dataset.folds_from
    dataset = datasets.load(cohort(data__test_patients=1, data__folds="section"))
    assert list(dataset.slides) == ["P1_S1", "P1_S2", "P2_S1", "P2_S2"]
    assert [fold.test for fold in dataset.folds] == [("P1_S1", "P2_S1"), ("P1_S2", "P2_S2")]


@pytest.mark.parametrize("tested", [-1, 3])
def test_patients_to_train_on_must_be_left(tested):
    with pytest.raises(InputError, match=f"test_patients must leave.*found {tested} of the 3"):
        datasets.load(cohort(data__test_patients=tested))


def test_sections_kept_out_may_not_be_all_that_is_tested():
    with pytest.raises(InputError, match="unseen leaves no section"):
        datasets.load(cohort(data__test_patients=1, data__unseen=2))


@pytest.mark.slow
def test_as_the_dials_go_up_regressions_lose_abroad_and_the_flexible_one_more(tmp_path):
    """As on real strangers. Where patients differ, leaving one out shrinks the fits at home too."""
    home, abroad = {}, {}
    for amount in (0.0, 1.0):
        for folds, scores in (("section", home), ("published", abroad)):
            config = simulated_patients.get_config()
            config.methods = ("ridge", "kernel_ridge")
            config.devices = 1
            config.data.folds = folds
            config.data.tissue.spots = 60
            config.encoder.dir = str(tmp_path / f"embedded_{amount}")
            for dial in DIALS:
                config.data.tissue[dial] = amount
            work = tmp_path / f"{folds}_{amount}"
            assert tiny.run(config.lock(), work) == 0
            methods = json.loads((work / "metrics.json").read_text())["methods"]
            scores[amount] = {name: row["pearson_slide"]["mean"] for name, row in methods.items()}
    for amount in (0.0, 1.0):
        assert all(home[amount][name] > abroad[amount][name] + 0.02 for name in home[amount])
    loss = {name: abroad[0.0][name] - abroad[1.0][name] for name in abroad[0.0]}
    assert loss["kernel_ridge"] > loss["ridge"] > 0.02, loss
