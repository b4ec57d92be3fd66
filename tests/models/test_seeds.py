"""One seed reaches every fit and draw: another seed, another fit; the same one, the same."""

from __future__ import annotations

import dataclasses
from unittest import mock

import chex
import jax
import numpy as np
import pytest
import test_run_srast
import tiny
import tiny_stack
from test_methods import Fitted, of_pairs, of_slides

from stfm_jax.data.coarsen import by_lattice
from stfm_jax.data.slide import Slide
from stfm_jax.models import table
from stfm_jax.models.holotea.settings import HoloTeaSettings
from stfm_jax.models.method import EXPRESSION, SPLIT, Section
from stfm_jax.models.srast import images, latents
from stfm_jax.models.srast import method as srast
from stfm_jax.models.srast.method import SRastSettings
from stfm_jax.regression import regressors
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.train import stages
from stfm_jax.train.stages import Run, TrainSettings

WIDE = 2060  # features; from 2,049 on, of few spots, principal axes are found by projections
AS_OURS = "stflow_published"  # is fitted and predicted by the code of `stflow`
OF_THEIR_OWN = [name for name in table.METHODS if name != AS_OURS]
# Nothing is drawn to fit these; what is smoothed or averaged is the same for every seed.
WITHOUT_DRAWS = {"mean", "uniform", "bilinear", "bicubic", "gaussian"}


def differ(one, other) -> list[bool]:
    """Of each array whether it differs."""
    both = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return [not np.array_equal(a, b, equal_nan=True) for a, b in both]


def wide(slide: Slide) -> Slide:
    """The slide with features that are mostly noise, so that no axis stands out."""
    noise = np.random.default_rng(slide.num_spots).normal(size=(slide.num_spots, WIDE))
    noise[:, : slide.features.shape[1]] += slide.features
    return dataclasses.replace(slide, features=noise.astype(np.float32))


def wide_cases():
    """As `test_methods.of_slides`, of wide features."""
    train, genes, asked, case = of_slides()
    slides = [wide(section.slide) for section in train]
    unseen = Section(wide(case.slide), slides)
    return [Section(slide, slides) for slide in slides], genes, asked, unseen


@pytest.fixture(scope="module")
def of_seeds(tmp_path_factory) -> dict[str, list[Fitted]]:
    """All methods fitted with seeds 0, 0 and 1, kernels by fewer landmarks than there are spots."""
    folder, cases = tmp_path_factory.mktemp("seeds"), {EXPRESSION: wide_cases, SPLIT: of_pairs}
    with mock.patch.object(regressors, "MAX_LANDMARKS", 32):
        return {
            problem: [
                Fitted(problem, folder / problem / str(i), made(), seed, but=AS_OURS)
                for i, seed in enumerate((0, 0, 1))
            ]
            for problem, made in cases.items()
        }


@pytest.mark.parametrize("name", OF_THEIR_OWN)
def test_every_method_is_fitted_by_its_seed(of_seeds, name):
    first, again, other = (
        fitted.states[name] for fitted in of_seeds[table.method_class(name).problem]
    )
    chex.assert_trees_all_equal(first, again)
    assert any(differ(first, other)) == (name not in WITHOUT_DRAWS)


@pytest.mark.parametrize("name", [n for n in OF_THEIR_OWN if table.method_class(n).draws_as])
def test_every_draw_is_of_its_seed(of_seeds, name):
    """Of one and the same fit."""
    fitted, *_ = of_seeds[table.method_class(name).problem]
    first, again, other = (fitted.predict(name, seed=seed)[1:] for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert all(differ(first, other))


@pytest.mark.parametrize("name", ["ridge", "kernel_ridge"])
def test_the_blocks_of_an_only_slide(name, tmp_path):
    """By which hyperparameters are chosen: their score is another."""
    (section, *_), genes, *_ = of_slides()
    method = table.build(name, tiny_stack.config())
    settings = TrainSettings.of(tiny_stack.config())
    first, again, *others = (
        method.fit([section], genes, Run(tmp_path, name, seed, make_mesh(1), settings)).choice
        for seed in (0, 0, 1, 2, 3)
    )
    assert first == again and any(first.score != other.score for other in others)


def held_out_spots(seed: int) -> np.ndarray:
    return stages.hold_out(tiny.slides()[:1], seed)[1].coords_um


def held_out_parents(seed: int) -> np.ndarray:
    (pair,) = srast.hold_out([by_lattice(test_run_srast.section("P0", 0))], seed)[1]
    return pair.low.coords_um


@pytest.mark.parametrize("held_out", [held_out_spots, held_out_parents])
def test_the_validation_block_of_an_only_slide(held_out):
    """Of few spots some seeds find the same blocks, which ones is for scikit-learn to say."""
    first, again, *others = map(held_out, (0, 0, 1, 2, 3, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert not all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize(("sections", "landmarks"), [(2, 2048), (3, 16)])
def test_what_neighbours_are_told_of_the_anchor(sections, landmarks):
    """By blocks of each where both of two are left out; by landmarks, fewer than the spots."""
    slides = tiny.slides(sections, registered=True)
    flow = HoloTeaSettings.of(tiny_stack.config()).flow(8)
    base = flow.base.training_set(slides, tiny_stack.genes(slides))
    with mock.patch.object(regressors, "MAX_LANDMARKS", landmarks):
        first, again, other = (flow._residuals_seen(slides, base, s)(0) for s in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert any(differ(first, other))


def test_what_images_say_of_depth():
    """Out of blocks of an only sample; of few spots seeds 0 to 3 find the same."""
    pair = by_lattice(test_run_srast.section("P0", 0))
    flow = SRastSettings.of(test_run_srast.config(srast__image=True)).flow
    model = latents.fit(pair.low)
    first, again, other = (
        images.fit(flow.images, [pair], [model], seed)[1][0].depth for seed in (0, 0, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert differ(first, other) == [True]


def test_the_prior_of_a_stack():
    slides = tiny.slides(3, registered=True)
    flow = HoloTeaSettings.of(tiny_stack.config()).flow(8)
    genes = tiny_stack.genes(slides)
    base = flow.base.training_set(slides, genes)
    first, again, other = (
        flow.training_set(slides, genes, base, None, seed).fitted.flow for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(first, again)
    assert all(differ(first.mix.network, other.mix.network))  # the network that says mu and pi
    assert any(differ(first.path.eigenvalues, other.path.eigenvalues))  # draws of the prior


@pytest.mark.parametrize("image", [False, True])
def test_what_is_learned_of_a_sample(image):
    pairs = [by_lattice(test_run_srast.section(f"P{i}", i)) for i in range(2)]
    flow = SRastSettings.of(test_run_srast.config(srast__image=image)).flow
    names = [[str(gene) for gene in pair.low.genes[:8]] for pair in pairs]
    first, again, other = (flow.training_set(pairs, names, seed) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first.rows, again.rows)
    for one, another in zip(first.rows, other.rows, strict=True):
        assert differ(one.facts, another.facts) == [True]  # the autoencoder's latents
    fitted = first.fitted
    one, another = (flow.learn(pairs[0], fitted, seed) for seed in (0, 1))
    assert all(differ(one.model.vae, another.model.vae))
    if image:  # random features of how the children look
        assert differ(one.image.coefficients, another.image.coefficients) == [True]
