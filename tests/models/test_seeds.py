"""One seed reaches every fit and draw: another seed, another fit; the same one, the same."""

from __future__ import annotations

import chex
import jax
import numpy as np
import pytest
import test_run_srast
import tiny
import tiny_stack

from stfm_jax.data.coarsen import by_lattice
from stfm_jax.models.holotea.settings import HoloTeaSettings
from stfm_jax.models.srast.method import SRastSettings


def differ(one, other) -> list[bool]:
    """Of each array whether it differs."""
    both = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return [bool(np.abs(np.asarray(a) - np.asarray(b)).max() > 0) for a, b in both]


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
