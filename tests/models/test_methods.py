"""Every method of the table honours the contract: it fits, predicts, is kept, predicts the same."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import test_run_srast
import tiny
import tiny_stack

from stfm_jax import store
from stfm_jax.data.coarsen import by_lattice
from stfm_jax.errors import InputError
from stfm_jax.models import table
from stfm_jax.models.method import (
    EMBEDDING,
    EXPRESSION,
    PAIRS,
    SPLIT,
    STACK,
    Genes,
    Request,
    Section,
    gathered,
)
from stfm_jax.runtime import files
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.train.stages import Run, TrainSettings

STACKED = {
    "stack__prior": "base",
    "train__epochs": 1,
    "stack__epochs": 1,
    "train__select": False,
    "model__blocks": 1,
}


def of_slides():
    """Training cases, genes to fit and to request, and a case that was not seen."""
    sections = tiny.slides(registered=True)
    genes = Genes(*(tuple(tiny_stack.genes(sections)) for _ in range(2)))
    train = [s for i, s in enumerate(sections) if i != 1]
    bare = dataclasses.replace(sections[1], counts=None, genes=None)
    return [Section(s, train) for s in train], genes, genes, Section(bare, train)


def of_pairs():
    """The same of samples at two resolutions."""
    train = [by_lattice(test_run_srast.section(f"P{i}", i)) for i in range(2)]
    seen = by_lattice(test_run_srast.section("new", 9))
    names = tuple(str(gene) for gene in seen.low.genes)
    high = dataclasses.replace(seen.high, counts=None, genes=None)
    unseen = dataclasses.replace(seen, high=high)
    genes = {pair.high.name: names[:12] for pair in train}
    return train, genes, Genes(names, ()), unseen


CONFIGS = {
    EXPRESSION: lambda: tiny_stack.config(**STACKED),
    SPLIT: lambda: test_run_srast.config(train__epochs=1, train__select=False),
}
CASES = {EXPRESSION: of_slides, SPLIT: of_pairs}


class Fitted:
    """All methods of a problem, fitted one after the other as the runner does."""

    def __init__(self, problem: str, folder, cases=None, seed: int = 0, but: str = ""):
        self.train, genes, self.asked, self.case = cases or CASES[problem]()
        self.config, self.methods, self.states = CONFIGS[problem](), {}, {}
        runs, shared = {}, {}
        names = [n for n in table.METHODS if table.method_class(n).problem == problem and n != but]
        for name in table.with_needed(names):
            method = self.methods[name] = table.build(name, self.config)
            runs[name] = Run(
                folder / name, name, seed, make_mesh(1), TrainSettings.of(self.config),
                of=runs.__getitem__, shared=shared,
            )  # fmt: skip
            if method.state_of is None:
                self.states[name] = method.fit(self.train, genes, runs[name])
            else:
                self.states[name] = self.states[method.state_of]

    def axes_of_spots(self) -> set[int]:
        """Lengths that an array has which holds something of every spot of training slides."""
        slides = [
            s for case in self.train
            for s in ([case.slide] if isinstance(case, Section) else [case.low, case.high])
        ]  # fmt: skip
        sizes = [slide.num_spots for slide in slides]
        some = (c for r in range(1, len(sizes) + 1) for c in itertools.combinations(sizes, r))
        return {sum(part) for part in some}

    def request(self, draws: int = 3, seed: int = 5) -> Request:
        return Request(self.asked, seed, draws, 2, make_mesh(1))

    def predict(self, name: str, state=None, draws: int = 3, seed: int = 5) -> list[np.ndarray]:
        """Arrays of the prediction: the mean, then each draw."""
        method = self.methods[name]
        state = self.states[name] if state is None else state
        found = method.predict(state, self.case, self.request(draws, seed))
        if method.problem == EXPRESSION:
            n = self.case.slide.num_spots
            return [gathered(found.mean, n), *(gathered(d, n) for d in found.draws or ())]
        parts = list(found)
        assert all(part.children.shape == part.mean.shape for part in parts)
        draws = len(parts[0].draws)
        means = np.concatenate([part.mean for part in parts])
        return [means, *(np.concatenate([p.draws[i] for p in parts]) for i in range(draws))]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    with tiny.small_published():
        yield {problem: Fitted(problem, folder / problem) for problem in CASES}


@pytest.mark.parametrize("name", table.METHODS)
def test_it_says_what_it_is(name):
    found = table.method_class(name)
    assert found.name == name
    assert found.problem in CASES and found.needs <= {EMBEDDING, STACK, PAIRS}
    assert (PAIRS in found.needs) == (found.problem == SPLIT)
    for other in (*found.stands_on, *found.compared_with, *filter(None, [found.state_of])):
        assert table.method_class(other).problem == found.problem, other
    if found.state_of:
        assert found.State is table.method_class(found.state_of).State
    assert hasattr(found.State, "_fields")


@pytest.mark.parametrize("name", table.METHODS)
def test_fitted_kept_and_predicting_the_same(fitted, name, tmp_path):
    of_problem = fitted[table.method_class(name).problem]
    method, state = of_problem.methods[name], of_problem.states[name]
    first = of_problem.predict(name)
    assert len(first) == (1 if method.draws_as is None else 4)
    for values in first:
        assert np.isfinite(values).all() and values.shape == first[0].shape
    if method.problem == EXPRESSION:
        assert first[0].shape == (of_problem.case.slide.num_spots, 8)
    for one, other in itertools.pairwise(first[1:]):
        assert np.abs(one - other).max() > 1e-3, "draws are alike"
    store.save(tmp_path, store.Model(method, state, Genes(("A",), ("A", "B")), "toy", 12))
    again = store.load(tmp_path, method)
    assert again.genes == Genes(("A",), ("A", "B")) and (again.encoder, again.features) == (
        "toy",
        12,
    )
    assert jax.tree.structure(again.state) == jax.tree.structure(state)
    for one, other in zip(of_problem.predict(name, again.state), first, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def stored(folder, method, state) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Shapes of the arrays of a model's file, and what its model.json says is individual-level."""
    store.save(folder, store.Model(method, state, Genes((), ())))
    said = files.read_json(folder / "model.json")["individual_level"]
    with np.load(folder / "state.npz") as arrays:
        shapes = {name: arrays[name].shape for name in arrays.files}
    return shapes, {name.removeprefix("state.npz/") for name in said}


def of_spots(of_problem, shapes) -> set[str]:
    """Arrays with an axis as long as there are training spots."""
    lengths = of_problem.axes_of_spots()
    return {name for name, shape in shapes.items() if lengths & set(shape)}


ANCHORED = {"fitted/anchor/landmarks", "fitted/anchor/weights", "residuals"}
HOLD = {  # as of_spots must find; without it a test could pass that looks for the wrong lengths
    "kernel_ridge": {"regressor/landmarks", "regressor/weights"},
    "centred_sum": {"regressor/landmarks", "regressor/weights"},
    "bleep": {"memory/keys", "memory/expression"},
    "gated": {"near/kernel/landmarks", "near/kernel/weights"},
    "anchor": ANCHORED,
    "stflow": ANCHORED,
    "stflow_one_step": {"fitted/anchor/landmarks", "fitted/anchor/weights"},
    "holotea": {*ANCHORED, "fitted/residuals"},
    "holotea_he": {*ANCHORED, "fitted/residuals"},
}


@pytest.mark.parametrize("name", table.METHODS)
def test_what_it_holds_of_single_spots_is_declared(fitted, name, tmp_path):
    of_problem = fitted[table.method_class(name).problem]
    shapes, said = stored(tmp_path, of_problem.methods[name], of_problem.states[name])
    below = {held: {s for s in shapes if f"{s}/".startswith(f"{held}/")} for held in said}
    assert all(below.values()), "what is declared is there"
    found = of_spots(of_problem, shapes)
    assert found <= set().union(*below.values())
    expected = (s for held in HOLD.get(name, ()) for s in below[held])
    assert found == set(expected)


@pytest.mark.parametrize("name", table.METHODS)
def test_what_is_not_needed_is_not_looked_at(fitted, name, tmp_path):
    """Among it residuals of training spots, of all methods but those that look at them."""
    of_problem = fitted[table.method_class(name).problem]
    method, state = of_problem.methods[name], of_problem.states[name]
    shapes, _ = stored(tmp_path, method, method.needed(state))
    again = store.load(tmp_path, method).state
    for one, other in zip(of_problem.predict(name, again), of_problem.predict(name), strict=True):
        np.testing.assert_array_equal(one, other)
    held = {s for s in of_spots(of_problem, shapes) if "residuals" in s}
    assert bool(held) == (name in ("anchor", "holotea"))


@pytest.mark.parametrize("name", [n for n in table.METHODS if table.method_class(n).draws_as])
def test_draws_do_not_depend_on_how_many_are_taken(fitted, name):
    of_problem = fitted[table.method_class(name).problem]
    few, many = of_problem.predict(name, draws=2), of_problem.predict(name, draws=5)
    np.testing.assert_allclose(few, many[:3], atol=1e-5)


@pytest.mark.parametrize("name", table.METHODS)
def test_a_state_of_another_method_is_refused(fitted, name, tmp_path):
    """Told by what it holds; never half read."""
    of_problem = fitted[table.method_class(name).problem]
    other = "srast" if of_problem.methods[name].problem == EXPRESSION else "stflow"
    state = fitted[table.method_class(other).problem].states[other]
    store.save(tmp_path, store.Model(table.build(other, of_problem.config), state, Genes((), ())))
    with pytest.raises(InputError, match=r"state\.npz: was written by another version"):
        store.load(tmp_path, of_problem.methods[name])


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"found 'kernel_rige'. Did you mean 'kernel_ridge'\?"):
        table.method_class("kernel_rige")


def test_methods_come_after_those_they_stand_on():
    assert table.with_needed(["holotea_he", "ridge_smooth"]) == [
        "stflow", "holotea", "holotea_he", "ridge", "ridge_smooth",
    ]  # fmt: skip
