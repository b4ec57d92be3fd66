"""What the split of a parent's counts may depend on: proposals of every child, facts of the pair.

For a parent and a gene each child has `proposals`, logarithms of how much of the parent's counts
would fall on it by some rule, centred over the siblings: how the gene's counts around, all counts
around and the gene's denoised rate go on in space, at several widths; how much tissue there is; and
what an image says. No rule knows which gene it is, or in which order children come. [ours]

Of children s at most to a parent; where there are fewer a mask says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from stfm_jax.data import interpolation
from stfm_jax.data.coarsen import Pair
from stfm_jax.errors import InputError
from stfm_jax.ops.neighbors import median_spacing
from stfm_jax.ops.tiles import hilbert_order
from stfm_jax.regression import latents
from stfm_jax.regression.split_images import ImageSays

WIDTHS = (0.4, 0.75, 1.5)  # of Gaussians, in spacings of the parents
_LEAST = 1e-3  # of the siblings' mean; the logarithm of less is its
_GENE = ("gene bilinear", *(f"gene {width}" for width in WIDTHS))
_ALL = ("all bilinear", "all 0.75")
_RATE = ("rate 0.4", "rate 1.5")
_TISSUE = "tissue 0.75"
PLAIN = (*_GENE, *_ALL, *_RATE, _TISSUE)
IMAGE = ("image depth", "image rate")
PART = 16_384  # parents of a large sample that are prepared together
REACH = latents.REACH + 5.0  # spacings of the parents, beyond which nothing changes a proposal
NUM_FACTS = 6  # of gene and parent; general features follow them


class SplitRows(NamedTuple):
    """N pairs of a parent and a gene, s children each; a pytree of arrays."""

    proposals: np.ndarray  # [N, s, F] float32
    facts: np.ndarray  # [N, q] float32, NUM_FACTS and the latents of the spot and around it
    mask: np.ndarray  # [N, s] bool
    counts: np.ndarray  # [N] float32 of the parent
    ratios: np.ndarray  # [N, s] float32, what is to be found; zeros when unknown
    place: np.ndarray  # [N] int32, noise is keyed to it


class Learned(NamedTuple):
    """What was learned of a sample as a whole."""

    model: latents.SampleModel
    image: ImageSays | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
    """A pair, or a part of one, ready to be split."""

    pair: Pair
    learned: Learned
    z: np.ndarray  # [P, d] normed latents
    table: np.ndarray  # [P, s] of `Pair.table`
    operators: dict[str, sp.csr_matrix]  # [n, P] by the last word of a proposal's name
    places: np.ndarray  # [P] rows of its parents in the whole sample


def sample(pair: Pair, learned: Learned, places: np.ndarray | None = None) -> Sample:
    """Prepares a pair; its children's counts are not looked at.

    Args:
      pair: a sample, or a part of one.
      learned: of the whole sample; its image's of the part's children.
      places: [P] rows of the parents in the whole sample, where this is a part.
    """
    low, high = pair.low, pair.high
    z = latents.normed(learned.model, latents.latents(learned.model, low.counts, low.coords_um))
    places_um, spacing = (low.coords_um, high.coords_um), median_spacing(low.coords_um)
    operators = {
        str(width): interpolation.gaussian(*places_um, pair.parent, width * spacing)
        for width in WIDTHS
    }
    try:
        operators["bilinear"] = interpolation.bilinear(low.coords_um, high.coords_um, low.where)
    except InputError:  # parents on no lattice: nothing to be linear along
        operators["bilinear"] = operators[str(WIDTHS[0])]
    places = np.arange(low.num_spots) if places is None else places
    return Sample(pair, learned, z.astype(np.float32), pair.table(), operators, places)


def rows(sample: Sample, parents: np.ndarray, genes: np.ndarray) -> SplitRows:
    """Every pair of some parents [m] and genes [g], the genes of a parent together."""
    pair, table = sample.pair, sample.table[parents]
    mask = table >= 0
    m, s = table.shape
    children = table[mask]
    low = pair.low.counts[:, genes]
    library = pair.low.counts.sum(axis=1).A1
    size = pair.num_children
    fields = {}

    def carry(names: tuple[str, ...], values) -> None:
        """Values [P, g] of the parents to the children, by each of the names."""
        for name in names:
            at = sample.operators[name.split()[-1]][children] @ values
            fields[name] = np.asarray(at.todense() if sp.issparse(at) else at)

    carry(_GENE, sp.diags(1.0 / size) @ low)
    carry(_ALL, (library / size)[:, None])
    carry(_RATE, latents.denoised(sample.learned.model, sample.z, genes))
    reached = sample.operators[_TISSUE.split()[-1]][children] > 0
    fields[_TISSUE] = (reached.astype(np.float32) @ size)[:, None]
    image = sample.learned.image
    if image is not None:
        fields["image depth"] = np.exp(image.depth[children])[:, None]
        fields["image rate"] = image.rates(children, genes)
    g = len(genes)
    names = PLAIN if image is None else PLAIN + IMAGE
    proposals = np.zeros((m, s, g, len(names)), np.float32)
    for k, name in enumerate(names):
        proposals[mask, :, k] = np.broadcast_to(fields[name], (len(children), g))
    proposals = _centred(proposals, mask)
    counts = low[parents].toarray()
    shape = (m, g, -1)
    facts = np.concatenate(
        [
            _facts(sample, parents, genes, counts, library, low).reshape(shape),
            np.broadcast_to(sample.z[parents, None], (m, g, sample.z.shape[1])),
            np.broadcast_to(_around(sample, parents)[:, None], (m, g, sample.z.shape[1])),
        ],
        axis=2,
    )
    place = sample.places[parents, None] * pair.low.counts.shape[1] + genes
    return SplitRows(
        proposals.transpose(0, 2, 1, 3).reshape(m * g, s, -1),
        facts.reshape(m * g, -1).astype(np.float32),
        np.repeat(mask, g, axis=0),
        counts.reshape(-1).astype(np.float32),
        _ratios(sample, table, mask, genes, counts).reshape(m * g, s),
        (place.reshape(-1) % (1 << 31)).astype(np.int32),
    )


def blocks(
    pair: Pair, learned: Learned, genes: np.ndarray, pairs_at_once: int
) -> Iterator[tuple[np.ndarray, np.ndarray, SplitRows]]:
    """Some parents [m], their children [m, s] and their pairs [m g] at a time.

    A large sample is prepared part by part, each with the tissue around that it depends on: what is
    held does not grow with the sample.
    """
    step = max(1, pairs_at_once // max(1, len(genes)))
    for core, parents in _parts(pair.low.coords_um):
        children = np.flatnonzero(_flags(parents, pair.low.num_spots)[pair.parent])
        image = learned.image and learned.image.of_children(children)
        part = sample(pair.of_parents(parents), learned._replace(image=image), parents)
        inside = np.flatnonzero(_flags(core, pair.low.num_spots)[parents])
        for first in range(0, len(inside), step):
            some = inside[first : first + step]
            table = part.table[some]
            yield (
                parents[some],
                np.where(table >= 0, children[table], -1),
                rows(part, some, genes),
            )


def _parts(coords_um: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parents that are done together, and these with all that they depend on; rows, ascending."""
    n = len(coords_um)
    if n <= PART + PART // 2:
        yield np.arange(n), np.arange(n)
        return
    order, reach = hilbert_order(coords_um), REACH * median_spacing(coords_um)
    for first in range(0, n, PART):
        core = np.sort(order[first : first + PART])
        low, high = coords_um[core].min(axis=0) - reach, coords_um[core].max(axis=0) + reach
        yield core, np.flatnonzero(((coords_um >= low) & (coords_um <= high)).all(axis=1))


def _flags(index: np.ndarray, n: int) -> np.ndarray:
    """[n] whether a row is among the index."""
    flags = np.zeros(n, bool)
    flags[index] = True
    return flags


def _centred(fields: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logarithms of fields [m, s, g, F], with mean 0 over the siblings; 0 where there is none."""
    there = mask[:, :, None, None]
    number = np.maximum(there.sum(axis=1, keepdims=True), 1)
    mean = np.where(there, fields, 0.0).sum(axis=1, keepdims=True) / number
    floor = np.maximum(_LEAST * mean, 1e-30)
    logs = np.where(there, np.log(np.maximum(fields, floor)), 0.0)
    return np.where(there, logs - logs.sum(axis=1, keepdims=True) / number, 0.0).astype(np.float32)


def _facts(sample: Sample, parents, genes, counts, library, low) -> np.ndarray:
    """[m, g, NUM_FACTS] of parent and gene."""
    (m, g), model = counts.shape, sample.learned.model
    size = sample.pair.num_children[parents]
    around = sample.operators["1.5"][sample.table[parents][:, 0]] @ low
    each = (
        np.log1p(counts),
        np.log1p(library[parents])[:, None] - model.log_library,
        np.log1p(around.toarray()),
        np.log1p(model.mean_rate[genes] * model.library)[None],
        np.sqrt(model.explained[genes])[None],
        (size / sample.table.shape[1])[:, None],
    )
    return np.stack([np.broadcast_to(a, (m, g)) for a in each], axis=2)


def _around(sample: Sample, parents: np.ndarray) -> np.ndarray:
    """Mean latents [m, d] of the tissue around."""
    return sample.operators["1.5"][sample.table[parents][:, 0]] @ sample.z


def _ratios(sample: Sample, table, mask, genes, counts) -> np.ndarray:
    """Measured shares [m, g, s]; zeros where children have no counts, or the parent has none."""
    m, s = table.shape
    out = np.zeros((m, s, len(genes)), np.float32)
    if sample.pair.high.counts is not None:
        out[mask] = sample.pair.high.counts[table[mask]][:, genes].toarray()
    return (out / np.maximum(counts, 1.0)[:, None]).transpose(0, 2, 1)
