"""Splits the counts of a low-resolution AnnData file over finer spots, into a new file.

Parents are done some at a time and written where they belong: of a large sample the input's counts
and both resolutions' places are held, nothing else grows with it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

import stfm_jax
from stfm_jax.data import coarsen
from stfm_jax.data.coarsen import Pair
from stfm_jax.data.expression import gene_counts
from stfm_jax.data.readers import h5ad
from stfm_jax.errors import InputError
from stfm_jax.eval import plots, split_plots
from stfm_jax.eval.predict import check_options, embedded_image
from stfm_jax.eval.split_model import Split, SplitModel
from stfm_jax.ops import metrics, simplex
from stfm_jax.runtime import distributed
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.runtime.files import atomic_path

_LOG = logging.getLogger("stfm_jax")
GENES_SHOWN = 3
SHOWN = 20_000  # parents of a map, at most


def run(config: Any, model: SplitModel, checkpoint: Path, encoder: Any = None) -> None:
    """Reads, splits, writes `config.predict.output`, and a map beside it (same name, .png).

    The file holds the mean in `X` [n, g], which adds up to the parents' counts; draws in
    `layers['draw_0']`, ...; `obs['parent']`; `obsm['spatial']` as the input's; provenance in `uns`.

    Raises:
      InputError: options, files, or what they hold; the disk is too small.
    """
    pair = read_input(config, model, encoder)
    options, output = config.predict, Path(config.predict.output)
    genes = np.flatnonzero(pair.low.counts.sum(axis=0).A1 > 0)
    if not len(genes):
        raise InputError(f"{pair.low.where}: every count is 0; there is nothing to split.")
    _check_disk(output.parent, pair.high.num_spots * len(genes) * 4 * (1 + options.draws))
    parts = model.split(
        pair, genes, config.seed, options.draws, config.srast.pairs_at_once,
        make_mesh(config.devices),
    )  # fmt: skip
    if not distributed.is_main():
        for _ in parts:  # its devices take part; the main process writes
            pass
        return
    with atomic_path(output) as temporary:
        _annotations(model, pair, genes, config, checkpoint).write_h5ad(temporary)
        _write(temporary, parts, pair, len(genes), config)
    names = [str(pair.low.genes[gene]) for gene in genes]
    _LOG.info(
        "%s: %d parents, %d children, %d genes -> %s",
        pair.low.where, pair.low.num_spots, pair.high.num_spots, len(genes), output,
    )  # fmt: skip
    _compare(pair, output, names)
    _draw_maps(pair, output, names)


def read_input(config: Any, model: SplitModel, encoder: Any) -> Pair:
    """The parents to split and their children: of `predict.children`, or of the parents' lattice.

    Raises:
      InputError, FileNotFoundError: as `run`.
    """
    options = config.predict
    check_options(options)
    reading = {"spatial_unit": options.spatial_unit or None, "um_per_px": options.um_per_px}
    low = h5ad.read(options.input, **reading)
    if options.children:
        high = h5ad.read_children(options.children, features_key=options.features_key, **reading)
        pair = coarsen.with_children(low, high)
    else:
        pair = coarsen.subdivided(low, config.coarsen.group)
    if model.task.images is None:
        return pair
    high = pair.high
    if options.image:
        high = embedded_image(high, config, encoder)
    if high.features is None:
        raise InputError(
            f"{high.where}: the model sees the children's images; give the slide's by "
            "--config.predict.image, or embeddings in obsm['features'] of "
            "--config.predict.children."
        )
    if high.encoder and model.encoder and high.encoder != model.encoder:
        raise InputError(
            f"{high.where}: its features were made by {high.encoder!r}, but the model was trained "
            f"on {model.encoder!r}; embed the children with that one."
        )
    width, expected = high.features.shape[1], len(model.fitted.images.transform.mean)
    if width != expected:
        raise InputError(
            f"{high.where}: its features are {width} wide, but the model was trained on {expected}."
        )
    return Pair(pair.low, high, pair.parent)


def _check_disk(folder: Path, needed: int) -> None:
    there = folder if folder.exists() else Path(".")
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"{folder}: the output needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are "
            "free; give fewer genes in the input, or fewer --config.predict.draws."
        )


def _annotations(
    model: SplitModel, pair: Pair, genes: np.ndarray, config: Any, checkpoint: Path
) -> anndata.AnnData:
    """Everything of the output but its matrices."""
    high = pair.high
    adata = anndata.AnnData(
        obs=pd.DataFrame(
            {"parent": pair.low.barcodes[pair.parent].astype(str)},
            index=pd.Index(high.barcodes.astype(str)),
        ),
        var=pd.DataFrame(index=pd.Index(pair.low.genes[genes].astype(str))),
        obsm={"spatial": high.coords_in, "spatial_um": high.coords_um},
    )
    adata.uns["spatial_unit"] = high.spatial_unit
    adata.uns["stfm"] = {
        "version": stfm_jax.__version__,
        "method": model.task.name,
        "checkpoint": str(checkpoint),
        "config": config.to_json_best_effort(),
        "draws": config.predict.draws,
        "X": "mean share of the parent's counts; children add up to their parent",
        "layers": f"draws, {config.predict.whole}; children add up to their parent",
    }
    return adata


def _write(path: Path, parts: Iterable[Split], pair: Pair, num_genes: int, config: Any) -> None:
    """Adds `X` and the draws to an AnnData file, some parents at a time."""
    draws, kind = config.predict.draws, config.predict.whole
    shape = pair.high.num_spots, num_genes
    dtype = np.float32 if kind == "real" else np.int32
    names = ["X", *(f"layers/draw_{i}" for i in range(draws))]
    with h5py.File(path, "r+") as file:
        offsets = [
            _allocated(file, name, shape, np.float32 if name == "X" else dtype) for name in names
        ]
    mean, *layers = (
        np.memmap(path, np.float32 if i == 0 else dtype, "r+", offset, shape)
        for i, offset in enumerate(offsets)
    )
    rng = np.random.default_rng(config.seed)
    with tqdm(
        desc=pair.low.name, total=pair.low.num_spots, unit="parent", dynamic_ncols=True
    ) as bar:
        for part in parts:
            mask = part.children >= 0
            rows, there = part.children[mask], mask[:, None]
            mean[rows] = simplex.split(part.counts, part.mean, there).transpose(0, 2, 1)[mask]
            whole = part.counts.astype(np.int64)
            for layer, shares in zip(layers, part.draws, strict=True):
                drawn = simplex.allocate(kind, rng, whole, shares, there)
                layer[rows] = drawn.transpose(0, 2, 1)[mask]
            bar.update(len(part.parents))
    for each in (mean, *layers):
        each.flush()


def _allocated(file: h5py.File, name: str, shape: tuple[int, int], dtype) -> int:
    """A matrix with room in the file, marked as AnnData's format asks; where its bytes begin."""
    matrix = file.create_dataset(name, shape, dtype)
    matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    matrix[0, 0] = 0  # HDF5 gives a contiguous matrix its room at the first write
    return matrix.id.get_offset()


def _compare(pair: Pair, output: Path, names: list[str]) -> None:
    """Says how good it is, where the file of the children holds counts too."""
    if pair.high.counts is None:
        return
    with h5py.File(output) as file:
        mean = file["X"][:]
    true = gene_counts(pair.high, names)
    found = metrics.pearson(np.log1p(mean), np.log1p(true))
    _LOG.info(
        "the children's file holds counts too: gene-wise Pearson of log1p(counts) %.3f",
        metrics.mean_over_genes(found)[0],
    )


def _draw_maps(pair: Pair, output: Path, names: list[str]) -> None:
    """The genes that vary most: low resolution, mean, one draw; of a large sample one part."""
    spots = np.arange(pair.low.num_spots)
    if len(spots) > SHOWN:
        middle = np.median(pair.low.coords_um, axis=0)
        far = ((pair.low.coords_um - middle) ** 2).sum(axis=1)
        spots = np.sort(np.argsort(far, kind="stable")[:SHOWN])
    part = pair.of_parents(spots)
    children = np.flatnonzero(np.isin(pair.parent, spots))
    low = gene_counts(part.low, names)
    best = np.argsort(-np.log1p(low).var(axis=0), kind="stable")[:GENES_SHOWN]
    with h5py.File(output) as file:
        order = np.argsort(best)
        columns = {"low resolution": low[:, best]}
        for title, key in (("mean", "X"), ("one draw", "layers/draw_0")):
            columns[title] = file[key][:, np.sort(best)][children][:, np.argsort(order)]
    figure = split_plots.maps(
        part,
        columns,
        [names[g] for g in best],
        [""] * len(best),
        f"{pair.low.name}: split by srast",
    )
    plots.save(figure, output.with_suffix(".png"))
