"""Splits the counts of a low-resolution AnnData file over finer spots, into a new file.

Parents are done some at a time and written where they belong: of a large sample the input's counts
and both resolutions' places are held, nothing else grows with it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import sparse_dataset

import stfm_jax
from stfm_jax.data import coarsen
from stfm_jax.data.coarsen import Pair
from stfm_jax.data.expression import gene_counts
from stfm_jax.data.image import Rules
from stfm_jax.data.readers import h5ad, inputs
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.models.method import Genes, NotApplicable, Request
from stfm_jax.models.parts import Split
from stfm_jax.ops import metrics, simplex
from stfm_jax.plots import slides as plots
from stfm_jax.plots import split as split_plots
from stfm_jax.predict import budget, outputs
from stfm_jax.predict.afterwards import afterwards
from stfm_jax.predict.features import arranged, with_image
from stfm_jax.predict.slide import reading
from stfm_jax.runtime import distributed, progress
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.runtime.files import atomic_path
from stfm_jax.store import Model

_LOG = logging.getLogger("stfm_jax")
GENES_SHOWN = 3
SHOWN = 20_000  # parents of a map, at most
_VARIES = 1e-12  # variance, in units of 1 + the mean square, above what rounding makes
ROWS = 65_536  # children of which indices are written, and counts compared, at a time


def run(config: Any, model: Model, checkpoint: Path) -> None:
    """Reads, splits, writes `config.predict.output`, and a map beside it (same name, .png).

    The file holds the mean in `X` [n, g], which adds up to the parents' counts; draws in
    `layers['draw_0']`, ...; both sparse, with entries where parents have counts; `obs['parent']`;
    `obsm['spatial']` as the input's; provenance in `uns`.

    Raises:
      InputError: options, files, or what they hold; the disk is too small.
    """
    pair = read_input(config, model)
    options, output = config.predict, Path(config.predict.output)
    genes = np.flatnonzero(pair.low.counts.sum(axis=0).A1 > 0)
    if not len(genes):
        raise InputError(f"{pair.low.where}: every count is 0; there is nothing to split.")
    layout, names = Layout.of(pair, genes), [str(gene) for gene in pair.low.genes[genes]]
    draws = options.draws if model.method.draws_as else 0
    _check_disk(output.parent, layout.size * 8 * (1 + draws))
    mesh = make_mesh(config.devices)
    request = Request(Genes(tuple(names), ()), config.seed, draws, 0, mesh)
    parts = _predicted(model, pair, request)
    if not distributed.is_main():
        for _ in parts:  # its devices take part; the main process writes
            pass
        return
    with atomic_path(output) as temporary:
        _annotations(model, pair, names, config, checkpoint).write_h5ad(temporary)
        _write(temporary, parts, layout, pair.low.name, config, draws)
    _LOG.info(
        "%s: %d parents, %d children, %d genes -> %s",
        pair.low.where, pair.low.num_spots, pair.high.num_spots, len(genes), output,
    )  # fmt: skip
    with afterwards(output, "compared with the children's counts"):
        _compare(pair, output, names)
    if options.maps:
        with afterwards(output, "its map"):
            _draw_maps(pair, output, names, model.method.name, draws)


def _predicted(model: Model, pair: Pair, request: Request) -> Iterable[Split]:
    try:
        return model.method.predict(model.state, pair, request)
    except NotApplicable as lack:
        raise InputError(f"{model.method.name} cannot be used here: {lack}") from lack


def read_input(config: Any, model: Model) -> Pair:
    """The parents to split and their children: of `predict.children`, or of the parents' lattice.

    Raises:
      InputError, FileNotFoundError: as `run`.
    """
    options = config.predict
    given = reading(options)
    low = inputs.read_counted(options.input, given)
    if options.children:
        high = h5ad.read_children(
            options.children,
            features_key=options.features_key,
            spatial_unit=given.spatial_unit,
            um_per_px=given.um_per_px,
            tissue_mask=given.in_tissue,
        )
        pair = coarsen.with_children(low, high, config.data.strict)
    else:
        pair = coarsen.subdivided(low, config.coarsen.group)
    if not model.features:
        return pair
    high = pair.high
    if options.image:
        rules = Rules.of(config.data)._replace(strict=True)  # every child belongs to a parent
        high = with_image(high, config, model, rules)
    if high.features is None:
        raise InputError(
            f"{high.where}: the model sees the children's images; give the slide's by "
            "--config.predict.image, or embeddings in obsm['features'] of "
            "--config.predict.children."
        )
    _, high = arranged(model, high)
    return Pair(pair.low, high, pair.parent)


def _check_disk(folder: Path, needed: int) -> None:
    free = budget.free_disk(folder)
    if needed > free:
        raise InputError(
            f"{folder}: the output needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are "
            "free; give fewer genes in the input, or fewer --config.predict.draws."
        )


def _annotations(
    model: Model, pair: Pair, names: list[str], config: Any, checkpoint: Path
) -> anndata.AnnData:
    """Everything of the output but its matrices."""
    high = pair.high
    adata = anndata.AnnData(
        obs=pd.DataFrame(
            {"parent": pair.low.barcodes[pair.parent].astype(str)},
            index=pd.Index(high.barcodes.astype(str)),
        ),
        var=pd.DataFrame(index=pd.Index(names)),
        obsm={"spatial": high.coords_in, "spatial_um": high.coords_um},
    )
    adata.uns["spatial_unit"] = high.spatial_unit
    adata.uns["stfm"] = {
        "version": stfm_jax.__version__,
        "method": model.method.name,
        "checkpoint": str(checkpoint),
        "config": config.to_json_best_effort(),
        "X": "mean share of the parent's counts; children add up to their parent",
    }
    if model.method.draws_as:
        adata.uns["stfm"] |= {
            "draws": config.predict.draws,
            "layers": f"draws, {config.predict.whole}; children add up to their parent",
        }
    return adata


def _write(
    path: Path, parts: Iterable[Split], layout: Layout, name: str, config: Any, draws: int
) -> None:
    """Adds `X` and the draws to an AnnData file, some pairs at a time."""
    kind = config.predict.whole
    drawn = np.float32 if kind == "real" else np.int32
    types = {"X": np.float32}
    types |= {f"layers/draw_{i}": drawn for i in range(draws)}
    with h5py.File(path, "r+") as file:
        offsets = {key: _allocated(file, key, layout, dtype) for key, dtype in types.items()}
    mean, *layers = (
        np.memmap(path, dtype, "r+", offsets[key], layout.size) for key, dtype in types.items()
    )
    rng = np.random.default_rng(config.seed)
    with progress.bar(name, layout.rank.nnz, "pair", unit_scale=True) as bar:
        for part in parts:
            mask = part.children >= 0
            at = layout.places(part)[mask]
            mean[at] = simplex.split(part.counts, part.mean, mask)[mask]
            whole = part.counts.astype(np.int64)
            for layer, shares in zip(layers, part.draws, strict=True):
                layer[at] = simplex.allocate(kind, rng, whole, shares, mask)[mask]
            bar.update(len(part.counts))
    for each in (mean, *layers):
        each.flush()


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a sparse matrix (CSR) of children by genes has its entries.

    A child has one for every gene that its parent has counts of, in the order of genes.
    """

    rank: sp.csr_matrix  # [P, g] of a parent's gene among those it has counts of
    indptr: np.ndarray  # [n + 1] of the children
    parent: np.ndarray  # [n] rows

    @classmethod
    def of(cls, pair: Pair, genes: np.ndarray) -> Layout:
        """Layout for a pair and columns [g] of its counts, ascending."""
        counts = pair.low.counts[:, genes].tocsr()
        counts.eliminate_zeros()
        counts.sort_indices()
        sizes = np.diff(counts.indptr)
        rank = np.arange(counts.nnz) - np.repeat(counts.indptr[:-1], sizes)
        indptr = np.concatenate([[0], np.cumsum(sizes[pair.parent], dtype=np.int64)])
        structure = (rank.astype(np.int32), counts.indices, counts.indptr)
        return cls(sp.csr_matrix(structure, shape=counts.shape), indptr, pair.parent)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.parent), self.rank.shape[1]

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(self.indptr[-1])

    def places(self, part: Split) -> np.ndarray:
        """Places [N, s] of the pairs' children among the entries; any, where there is no child."""
        rank = np.asarray(self.rank[part.pairs.parent, part.pairs.gene]).ravel()
        return self.indptr[part.children] + rank[:, None]

    def indices(self, first: int, last: int) -> np.ndarray:
        """Genes of the entries of the children from `first` to before `last`."""
        return self.rank[self.parent[first:last]].indices


def _allocated(file: h5py.File, name: str, layout: Layout, dtype) -> int:
    """A sparse matrix as AnnData keeps it, with room for its values; where their bytes begin."""
    group = file.create_group(name)
    group.attrs.update(
        {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": layout.shape}
    )
    # Of one type: scipy and scanpy take no matrix whose two differ.
    index = sp.get_index_dtype(maxval=layout.size)
    group["indptr"] = layout.indptr.astype(index)
    indices = group.create_dataset("indices", layout.size, index)
    for first in range(0, layout.shape[0], ROWS):
        last = min(first + ROWS, layout.shape[0])
        indices[layout.indptr[first] : layout.indptr[last]] = layout.indices(first, last)
    values = group.create_dataset("data", layout.size, dtype)
    values[0] = 0  # HDF5 gives a contiguous array its room at the first write
    return values.id.get_offset()


def _compare(pair: Pair, output: Path, names: list[str]) -> None:
    """Says how good it is, where the file of the children holds counts too."""
    if pair.high.counts is None:
        return
    _LOG.info(
        "the children's file holds counts too: gene-wise Pearson of log1p(counts) %.3f",
        metrics.mean_over_genes(_pearson_log1p(pair.high, output, names))[0],
    )


def _pearson_log1p(high: Slide, output: Path, names: list[str]) -> np.ndarray:
    """Pearson [g] of log1p of the mean that was written and of the children's counts.

    Sums are added up over some children at a time, and the matrices stay sparse.
    """
    true, n = high.counts[:, high.columns_of(names)], high.num_spots
    sums = np.zeros((5, len(names)))
    for first in range(0, n, ROWS):
        rows = np.arange(first, min(first + ROWS, n))
        both = _rows_of(output, "X", rows), true[rows]
        x, y = (a.astype(np.float64).log1p() for a in both)
        each = (x, y, x.multiply(x), y.multiply(y), x.multiply(y))
        sums += [np.asarray(a.sum(axis=0)).ravel() for a in each]
    x, y, xx, yy, xy = sums / n
    x_varies, y_varies = xx - x**2 > _VARIES * (1.0 + xx), yy - y**2 > _VARIES * (1.0 + yy)
    scale = np.sqrt(np.where(x_varies, xx - x**2, 1.0) * np.where(y_varies, yy - y**2, 1.0))
    return np.where(y_varies, np.where(x_varies, (xy - x * y) / scale, 0.0), np.nan)


def _rows_of(path: Path, name: str, rows: np.ndarray) -> sp.csr_matrix:
    """Some rows, ascending, of a sparse matrix on disk; the others are not read."""
    with h5py.File(path) as file:
        return sparse_dataset(file[name])[rows]


def _draw_maps(pair: Pair, output: Path, names: list[str], method: str, draws: int) -> None:
    """The genes that vary most: low resolution, mean, one draw; of a large sample its middle."""
    spots = pair.middle(SHOWN)
    part = pair.of_parents(spots)
    children = np.flatnonzero(np.isin(pair.parent, spots))
    best = _most_variable(part.low, names)
    columns = {"low resolution": gene_counts(part.low, [names[g] for g in best])}
    for title, key in (("mean", "X"), ("one draw", "layers/draw_0"))[: 1 + bool(draws)]:
        columns[title] = _rows_of(output, key, children)[:, best].toarray()
    figure = split_plots.maps(
        part,
        columns,
        [names[g] for g in best],
        [""] * len(best),
        f"{pair.low.name}: split by {method}",
    )
    plots.save(figure, outputs.beside(output, "map"))


def _most_variable(low: Slide, names: list[str]) -> np.ndarray:
    """Places among some genes of those whose log1p(counts) vary most."""
    logs = low.counts[:, low.columns_of(names)].log1p()
    mean, square = (np.asarray(a.mean(axis=0)).ravel() for a in (logs, logs.multiply(logs)))
    return np.argsort(mean**2 - square, kind="stable")[:GENES_SHOWN]
