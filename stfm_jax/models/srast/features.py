"""What the split of a parent's counts may depend on: proposals of every child, facts of the pair.

For a parent and a gene each child has `proposals`, logarithms of how much of the parent's counts
would fall on it by some rule, centred over the siblings: how the gene's counts around, all counts
around and the gene's denoised rate go on in space, at several widths; how much tissue there is; and
what an image says. No rule knows which gene it is, or in which order children come. [ours]

Of children s at most to a parent; where there are fewer a mask says so.
Pairs are those that have counts: where a parent has none of a gene there is nothing to split.
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
from stfm_jax.models.parts import Pairs
from stfm_jax.models.srast import latents
from stfm_jax.models.srast.images import ImageSays
from stfm_jax.ops.neighbors import median_spacing
from stfm_jax.ops.tiles import hilbert_order

WIDTHS = (0.4, 0.75, 1.5)  # of Gaussians, in spacings of the parents
_LEAST = 1e-3  # of the siblings' mean; the logarithm of less is its
_GENE = ("gene bilinear", *(f"gene {width}" for width in WIDTHS))
_ALL = ("all bilinear", "all 0.75")
_RATE = ("rate 0.4", "rate 1.5")
_TISSUE = "tissue 0.75"
PLAIN = (*_GENE, *_ALL, *_RATE, _TISSUE)
IMAGE = ("image depth", "image rate")
PART = 16_384  # parents of a large sample that are prepared together,
GENES, PAIRS = 256, 1 << 18  # with so many genes, and of them pairs, at most
REACH = latents.REACH + 5.0  # spacings of the parents, beyond which nothing changes a proposal
_FULL = 0.1  # share of counts that are not 0
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


class Scale(NamedTuple):
    """Lengths of a sample as a whole."""

    spacing_um: float  # of the parents
    spread_um2: float  # of children about them


@dataclasses.dataclass(frozen=True)
class Sample:
    """A pair, or a part of one, ready to be split."""

    pair: Pair
    learned: Learned
    z: np.ndarray  # [P, d] normed latents
    table: np.ndarray  # [P, s] of `Pair.table`
    operators: dict[str, sp.csr_matrix]  # [n, P] by the last word of a proposal's name
    by_gene: sp.csc_matrix  # [P, G] counts of the parents
    library: np.ndarray  # [P] all counts of each
    places: np.ndarray  # [P] rows of its parents in the whole sample


def scale_of(pair: Pair) -> Scale:
    """The lengths of a sample."""
    low, high = pair.low.coords_um, pair.high.coords_um
    return Scale(median_spacing(low), interpolation.spread(low, high, pair.parent))


def sample(
    pair: Pair, learned: Learned, scale: Scale | None = None, places: np.ndarray | None = None
) -> Sample:
    """Prepares a pair; its children's counts are not looked at.

    Args:
      pair: a sample, or a part of one.
      learned: of the whole sample; its image's of the part's children.
      scale: of the whole sample, where this is a part.
      places: [P] rows of the parents in the whole sample, where this is a part.
    """
    low, high = pair.low, pair.high
    z = latents.normed(learned.model, latents.latents(learned.model, low.counts, low.coords_um))
    spacing, spread = scale_of(pair) if scale is None else scale
    operators = {
        str(width): interpolation.gaussian(
            low.coords_um, high.coords_um, pair.parent, width * spacing, spread
        )
        for width in WIDTHS
    }
    try:
        operators["bilinear"] = interpolation.bilinear(low.coords_um, high.coords_um, low.where)
    except InputError:  # parents on no lattice: nothing to be linear along
        operators["bilinear"] = operators[str(WIDTHS[0])]
    places = np.arange(low.num_spots) if places is None else places
    return Sample(
        pair, learned, z.astype(np.float32), pair.table(), operators, low.counts.tocsc(),
        low.counts.sum(axis=1).A1, places,
    )  # fmt: skip


def rows(sample: Sample, parents: np.ndarray, genes: np.ndarray) -> tuple[Pairs, SplitRows]:
    """The pairs of some parents [m] and genes [g], the genes of a parent together."""
    pair, low = sample.pair, sample.by_gene[:, genes].tocsr()
    low.eliminate_zeros()
    own = low[parents].tocoo()
    parent, counts = parents[own.row], own.data.astype(np.float32)
    table = sample.table.T[:, parent]  # siblings first here: sums over them are of whole rows
    mask = table >= 0
    family = sample.table[parents]
    children = np.sort(family[family >= 0])
    child = np.searchsorted(children, np.where(mask, table, children[0]))

    def of_pairs(values) -> np.ndarray:
        """Values of the children [c, g], or [c, 1] for all genes, by sibling and pair [s, N]."""
        values = values.toarray() if sp.issparse(values) else values
        return values[child, own.col if values.shape[1] == len(genes) else 0]

    def carried(name: str, values) -> np.ndarray:
        """Values [P, g] or [P, 1] of the parents, as the children have them."""
        return of_pairs(sample.operators[name.split()[-1]][children] @ values)

    per_child = _dense_where_full(sp.diags(1.0 / pair.num_children) @ low)
    depth = (sample.library / pair.num_children)[:, None]
    rate = latents.denoised(sample.learned.model, sample.z, genes)
    reached = (sample.operators[_TISSUE.split()[-1]][children] > 0).astype(np.float32)
    image = sample.learned.image

    def fields() -> Iterator[np.ndarray]:
        """Fields [s, N] of the proposals, in the order of their names."""
        yield from (carried(name, per_child) for name in _GENE)
        yield from (carried(name, depth) for name in _ALL)
        yield from (carried(name, rate) for name in _RATE)
        yield of_pairs((reached @ pair.num_children)[:, None])
        if image is not None:
            yield of_pairs(np.exp(image.depth[children])[:, None])
            yield of_pairs(image.rates(children, genes))

    names = PLAIN if image is None else (*PLAIN, *IMAGE)
    proposals = np.empty((*mask.T.shape, len(names)), np.float32)
    for k, field in enumerate(fields()):
        proposals[..., k] = _log_proposals(field, mask).T
    ratios = np.zeros(mask.shape, np.float32)
    if pair.high.counts is not None:
        measured = of_pairs(pair.high.counts[children][:, genes])
        ratios = np.where(mask, measured / counts, 0.0).astype(np.float32)
    where = sample.places[parent] * sample.by_gene.shape[1] + genes[own.col]
    return Pairs(parent, own.col), SplitRows(
        proposals,
        _facts(sample, parents, genes, own, low),
        np.ascontiguousarray(mask.T),
        counts,
        np.ascontiguousarray(ratios.T),
        (where % (1 << 31)).astype(np.int32),
    )


def blocks(
    pair: Pair, learned: Learned, genes: np.ndarray, pairs_at_once: int
) -> Iterator[tuple[Pairs, np.ndarray, SplitRows]]:
    """Some pairs at a time, and their children [N, s].

    A large sample is prepared part by part, each with the tissue around that it depends on, and
    some genes at a time: what is held grows neither with the sample nor with the panel.
    """
    scale = scale_of(pair)
    for core, parents in _parts(pair.low.coords_um):
        children = np.flatnonzero(_flags(parents, pair.low.num_spots)[pair.parent])
        image = learned.image and learned.image.of_children(children)
        part = sample(pair.of_parents(parents), learned._replace(image=image), scale, parents)
        inside = np.flatnonzero(_flags(core, pair.low.num_spots)[parents])
        for first, last in _gene_ranges(np.diff(part.by_gene.indptr)[genes]):
            of_part, prepared = rows(part, inside, genes[first:last])
            for start in range(0, len(of_part.parent), pairs_at_once):
                some = slice(start, start + pairs_at_once)
                table = part.table[of_part.parent[some]]
                yield (
                    Pairs(parents[of_part.parent[some]], first + of_part.gene[some]),
                    np.where(table >= 0, children[table], -1),
                    SplitRows(*(a[some] for a in prepared)),
                )


def _gene_ranges(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of genes with PAIRS pairs together at most, or one gene; sizes [g] in pairs."""
    total, first = np.concatenate([[0], np.cumsum(sizes)]), 0
    while first < len(sizes):
        last = int(np.searchsorted(total, total[first] + PAIRS, side="right")) - 1
        last = min(max(last, first + 1), first + GENES, len(sizes))
        yield first, last
        first = last


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


def _log_proposals(field: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logarithms of a field [s, N], with mean 0 over the siblings; 0 where there is none."""
    number = mask.sum(axis=0)
    floor = np.maximum(_LEAST * (np.where(mask, field, 0.0).sum(axis=0) / number), 1e-30)
    logs = np.where(mask, np.log(np.maximum(field, floor)), 0.0)
    return np.where(mask, logs - logs.sum(axis=0) / number, 0.0)


def _facts(sample: Sample, parents, genes, own: sp.coo_matrix, low: sp.csr_matrix) -> np.ndarray:
    """[N, q] of the pairs `own` [m, g]: NUM_FACTS, the parent's latents, those around."""
    model, parent, gene = sample.learned.model, parents[own.row], genes[own.col]
    near = sample.operators["1.5"][sample.table[parents][:, 0]]
    around = near @ _dense_where_full(low)
    around = around.toarray() if sp.issparse(around) else around
    plain = (
        np.log1p(own.data),
        np.log1p(sample.library[parent]) - model.log_library,
        np.log1p(around[own.row, own.col]),
        np.log1p(model.mean_rate[gene] * model.library),
        np.sqrt(model.explained[gene]),
        sample.pair.num_children[parent] / sample.table.shape[1],
    )
    width = sample.z.shape[1]
    facts = np.empty((len(parent), NUM_FACTS + 2 * width), np.float32)
    for k, values in enumerate(plain):
        facts[:, k] = values
    facts[:, NUM_FACTS:-width] = sample.z[parent]
    facts[:, -width:] = (near @ sample.z)[own.row]
    return facts


def _dense_where_full(values: sp.csr_matrix) -> sp.csr_matrix | np.ndarray:
    """Values [P, g], dense where so many are not 0 that products with them are faster so."""
    return values.toarray() if values.nnz > _FULL * np.prod(values.shape) else values
