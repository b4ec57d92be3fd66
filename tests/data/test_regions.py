"""Batches of random regions: what an epoch draws, and that it follows from seed, epoch and step."""

from __future__ import annotations

import jax
import numpy as np

from stfm_jax.data.batching import PreparedSlide
from stfm_jax.data.regions import Regions


def slide(name: str, seed: int) -> PreparedSlide:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(30, 3)).astype(np.float32)
    return PreparedSlide(
        name=name,
        coords=rng.uniform(0, 6, (30, 2)),
        features=features,
        anchor=np.zeros((30, 2), np.float32),
        expr=features[:, :2],
        place=np.arange(30, dtype=np.int32),
    )


SLIDES = [slide("s1", 1), slide("s2", 2)]


def regions(tile=512, **changed) -> Regions:
    return Regions(SLIDES, neighbors=3, tile=tile, **changed)


def batches(some: Regions, seed, epoch, first=0):
    """The one batch of each step of an epoch."""
    return [batch for (batch,) in some.batches(seed, epoch, first)]


def assert_same_batches(some, others):
    for one, other in zip(some, others, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def places(batches):
    return [batch.place[batch.spot_mask].tolist() for batch in batches]


def test_batches_follow_from_seed_and_epoch():
    some = regions(per_slide=4, whole_share=0.25, per_step=3)

    def drawn(seed, epoch):
        return batches(some, seed, epoch)

    steps = some.parts(0, 0)
    assert some.steps == len(steps) and some.width == 3
    assert sorted(part for parts in steps for part in parts) == [
        (i, j) for i in range(2) for j in range(4)
    ]
    assert [len(parts) for parts in steps] == [3, 3, 2]
    for parts, batch in zip(steps, drawn(0, 0), strict=True):
        assert sorted({*batch.slide[batch.spot_mask]}) == list(range(len(parts)))
        for index, (i, _) in enumerate(parts):  # what the step says is what the batch holds
            mine = batch.spot_mask & (batch.slide == index)
            np.testing.assert_array_equal(batch.expr[mine], SLIDES[i].expr[batch.place[mine]])
    assert_same_batches(drawn(0, 3), drawn(0, 3))
    assert places(drawn(0, 3)) != places(drawn(0, 4)) != places(drawn(1, 4))
    assert steps != some.parts(0, 1) != some.parts(1, 1)
    whole = regions(per_slide=2, whole_share=1.0)
    assert places(batches(whole, 0, 0)) == [list(range(30))] * 4


def test_a_step_says_whose_it_is():
    some = regions(per_slide=4, per_step=8)
    assert some.where(0, 0, 0) == "slide s1, s2"


def test_an_epochs_regions_differ():
    """Each region of each slide has randomness of its own."""
    drawn = places(batches(regions(per_slide=6), 0, 0))
    assert len({tuple(place) for place in drawn}) == len(drawn) == 12


def test_batches_from_a_step_on_are_those_of_the_whole_epoch():
    some = regions(per_slide=4, per_step=3)
    whole = batches(some, 0, 2)
    for first in range(4):
        assert_same_batches(batches(some, 0, 2, first), whole[first:])


def test_batches_have_the_tiles_asked_for():
    """The same regions, whatever the tiles."""
    one, several = (batches(regions(per_slide=2, tile=size), 0, 0) for size in (512, 16))
    assert {batch.tiles.num_tiles for batch in one} == {1}
    assert {batch.tiles.size for batch in several} == {16}
    assert [sorted(a) for a in places(several)] == places(one)


def test_one_slide_is_enough_and_its_first_step_comes_first():
    some = Regions(SLIDES[:1], neighbors=3, tile=512, per_slide=3)
    assert (some.width, some.steps) == (3, 3)
    drawn = [batch for (batch,) in some.batches(0, 0)]
    assert len(drawn) == 3
    assert_same_batches(drawn, batches(some, 0, 0, 0))
