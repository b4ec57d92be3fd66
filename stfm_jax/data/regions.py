"""Slides as training takes them: epochs of random regions, in batches of padded shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from stfm_jax.data.batching import Batch, PreparedSlide, collate, region


@dataclasses.dataclass(frozen=True)
class Regions:
    """The steps of every epoch (`train.loop.Batches`); a function of seed, epoch and step."""

    slides: Sequence[PreparedSlide]
    neighbors: int  # of a spot, in the graphs
    tile: int  # spots of a tile
    per_slide: int = 10  # regions an epoch draws from each slide [STFlow]
    whole_share: float = 0.0  # share of those that are the whole slide
    per_step: int = 1  # regions of a step
    accumulate: int = 1  # batches they are divided into, done one after the other

    @property
    def width(self) -> int:
        return self.slides[0].features.shape[1]

    @property
    def steps(self) -> int:
        return -(-len(self.slides) * self.per_slide // self.per_step)

    def where(self, seed: int, epoch: int, step: int) -> str:
        names = sorted({self.slides[i].name for i, _ in self.parts(seed, epoch)[step]})
        return f"slide {', '.join(names)}"

    def parts(self, seed: int, epoch: int) -> list[list[tuple[int, int]]]:
        """The steps of an epoch, each some (slide, which of its regions)."""
        every = [(i, j) for i in range(len(self.slides)) for j in range(self.per_slide)]
        order = np.random.default_rng([seed, epoch]).permutation(len(every))
        size = self.per_step
        return [[every[i] for i in order[at : at + size]] for at in range(0, len(order), size)]

    def batches(
        self, seed: int, epoch: int, first: int = 0, devices: int = 1
    ) -> Iterator[Iterator[Batch]]:
        """The batches of each of an epoch's steps from `first` on."""
        whole = round(self.whole_share * self.per_slide)

        def drawn(i, j):
            if j < whole:
                return self.slides[i]
            rng = np.random.default_rng([seed, epoch, i, j])
            return region(self.slides[i], rng, at_least=4 * self.neighbors)

        def batches(parts):
            size = -(-len(parts) // self.accumulate)
            for at in range(0, len(parts), size):
                regions = [drawn(*part) for part in parts[at : at + size]]
                yield collate(regions, self.neighbors, self.tile, devices, first_slide=at)

        return (batches(parts) for parts in self.parts(seed, epoch)[first:])
