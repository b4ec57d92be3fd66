"""What the spots of one sample are like, learned from that sample alone.

A sample's counts -> principal scores -> a graph autoencoder's latents -> Latent Norm: whitened
axes in order of their variance, so that samples share one pool of features [SRast]. From them
every gene's rate is read again by ridge regression within the sample: a denoised rate, which knows
of all genes that vary alike. Names of genes play no part.

A sample of any size is fitted on at most MAX_SPOTS spots, and read some spots at a time.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import jax
import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree
from sklearn.decomposition import TruncatedSVD

from stfm_jax.data.batching import bucket_size
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.nn import graph_vae
from stfm_jax.ops.neighbors import median_spacing, workers

COMPONENTS = 32
NEIGHBORS = 6  # of each kind
CANDIDATES = 24  # nearest in space, among which neighbours in expression are looked for [ours]
MAX_SPOTS = 4096  # to fit to, in REGIONS regions of a larger sample
REGIONS = 4
REACH = 11.5  # spacings that a latent depends on: two steps to CANDIDATES, in a corner of tissue
_ASIDE = np.array([1e-3, 6e-4])  # spacings
_SCALE = 1e4  # counts that a spot's are scaled to
_RIDGE = 10.0  # spots' worth of prior on the coefficients of a gene's rate
KEPT = 64  # fits, some megabytes each
_LEAST_RATE = 0.1  # of a gene's mean; a linear fit may go below zero


class SampleModel(NamedTuple):
    """How a sample's counts become latents and denoised rates; arrays only."""

    axes: np.ndarray  # [G, c] of the log-normalised counts
    center: np.ndarray  # [c]
    scale: np.ndarray  # []
    vae: dict
    latent_mean: np.ndarray  # [d]
    latent_norm: np.ndarray  # [d, d]
    rates: np.ndarray  # [1 + d, G] of a gene's share of the counts, relative to its mean
    mean_rate: np.ndarray  # [G] a gene's share of the sample's counts
    explained: np.ndarray  # [G] share of a gene's variance between spots that the latents explain
    library: np.ndarray  # [] mean counts of a spot
    log_library: np.ndarray  # [] mean of log1p of them


FITTED: dict[bytes, SampleModel] = {}  # the latest KEPT, by all that a fit depends on


def fit(slide: Slide, seed: int = 0) -> SampleModel:
    """Fits a sample with counts; the folds of a run ask for the same ones, which are kept.

    Raises:
      InputError: no gene varies.
    """
    key = _key(slide, seed)
    model = FITTED.pop(key, None) or _fitted(slide, seed)
    FITTED[key] = model
    while len(FITTED) > KEPT:
        del FITTED[next(iter(FITTED))]
    return model


def _key(slide: Slide, seed: int) -> bytes:
    counts = slide.counts
    digest = hashlib.blake2b(f"{seed} {counts.shape}".encode())
    for array in (counts.data, counts.indices, counts.indptr, slide.coords_um):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.digest()


def _fitted(slide: Slide, seed: int) -> SampleModel:
    spots = some_spots(slide.coords_um, seed)
    counts, coords = slide.counts[spots], slide.coords_um[spots]
    logged = _log_normalized(counts)
    c = min(COMPONENTS, min(logged.shape) - 1)
    if c < 1 or not len(logged.data) or logged.toarray().std(axis=0).max() < 1e-4:
        raise InputError(
            f"{slide.where}: no gene varies over its {slide.num_spots} spots; give counts of more "
            "genes, or of more spots."
        )
    axes = TruncatedSVD(c, random_state=seed).fit(logged).components_.T
    axes = np.pad(axes, ((0, 0), (0, COMPONENTS - c))).astype(np.float32)
    raw = logged @ axes
    center, scale = raw.mean(axis=0), raw.std(axis=0).max()
    values = (raw - center) / scale
    topology = topology_of(values, coords)
    n = len(values)
    size = bucket_size(n)
    padded = np.pad(values, ((0, size - n), (0, 0)))
    table = graph_vae.Topology(*(np.pad(t, ((0, size - n), (0, 0))) for t in topology))
    weight = (np.arange(size) < n).astype(np.float32)
    vae = jax.device_get(graph_vae.fit(padded, table, weight, jax.random.key(seed)))
    z = np.asarray(graph_vae.encode(vae, padded, table))[:n]
    mean, norm = latent_norm(z)
    library = np.maximum(counts.sum(axis=1).A1, 1.0)
    rates, mean_rate, explained = read_rates((z - mean) @ norm, counts, library, _RIDGE)
    return SampleModel(
        axes, center, np.float32(scale), vae, mean, norm, rates, mean_rate, explained,
        np.float32(library.mean()), np.float32(np.log1p(library).mean()),
    )  # fmt: skip


def scores(model: SampleModel, counts: sp.csr_matrix) -> np.ndarray:
    """Principal scores [n, COMPONENTS] of counts [n, G] of its genes, at any resolution."""
    return (_log_normalized(counts) @ model.axes - model.center) / model.scale


def latents(model: SampleModel, counts: sp.csr_matrix, coords_um: np.ndarray) -> np.ndarray:
    """Latents [n, d] of spots before Latent Norm; see `normed`.

    Args:
      model: of the sample.
      counts: [n, G] of the spots.
      coords_um: [n, 2]; neighbours are looked for among these spots.
    """
    values = scores(model, counts)
    size, n = bucket_size(len(values)), len(values)
    topology = topology_of(values, coords_um)
    table = graph_vae.Topology(*(np.pad(t, ((0, size - n), (0, 0))) for t in topology))
    padded = np.pad(values, ((0, size - n), (0, 0)))
    return np.asarray(graph_vae.encode(model.vae, padded, table))[:n]


def normed(model: SampleModel, z: np.ndarray) -> np.ndarray:
    """Latents [n, d] after Latent Norm."""
    return (z - model.latent_mean) @ model.latent_norm


def denoised(model: SampleModel, z: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Rates [n, g] of some genes, relative to their means, read from normed latents [n, d]."""
    return rates_at(model.rates, z, genes)


def rates_at(coefficients: np.ndarray, x: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Relative rates [n, g] of some genes at spots described by x [n, d]; see `read_rates`."""
    return np.maximum(coefficients[0, genes] + x @ coefficients[1:, genes], _LEAST_RATE)


def read_rates(
    x: np.ndarray, counts: sp.csr_matrix, library: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every gene's rate by ridge regression on what describes the spots, weighted by their depth.

    Args:
      x: [n, d] of the spots.
      counts: [n, G].
      library: [n] all counts of each spot.
      ridge: spots' worth of prior on the coefficients.

    Returns:
      Coefficients [1 + d, G] of the rate relative to the gene's mean, mean shares of the counts
      [G], and the share [G] of the gene's variance between spots that x explains.
    """
    weight = library / library.mean()
    design = np.column_stack([np.ones(len(x)), x])
    gram = design.T @ (weight[:, None] * design) + ridge * np.diag([0.0] + [1.0] * x.shape[1])
    mean_rate = counts.sum(axis=0).A1 / library.sum()
    relative = 1.0 / (np.maximum(mean_rate, 1e-12) * library.mean())
    rates = np.linalg.solve(gram, (counts.T @ design).T) * relative  # weight x share = count
    signal = ((design @ rates - 1.0) ** 2 * weight[:, None]).mean(axis=0)
    share = counts.multiply(counts).T @ (1.0 / weight) / len(x) * relative**2 - 1.0
    explained = np.clip(signal / np.maximum(share, 1e-9), 0.0, 1.0)
    return tuple(a.astype(np.float32) for a in (rates, mean_rate, explained))


def latent_norm(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and whitening [d, d] of latents [n, d] into axes that any sample has.

    Axes are in order of variance, and point where the values' third moment is positive [ours].
    """
    mean = z.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((z - mean).T) + 1e-12 * np.eye(z.shape[1]))
    values, vectors = values[::-1], vectors[:, ::-1]
    norm = vectors / np.sqrt(np.maximum(values, 1e-4 * values[0]))
    skew = (((z - mean) @ norm) ** 3).sum(axis=0)
    return mean.astype(np.float32), (norm * np.where(skew < 0, -1.0, 1.0)).astype(np.float32)


def topology_of(scores: np.ndarray, coords_um: np.ndarray) -> graph_vae.Topology:
    """The nearest spots in space, and the likest of those that are near, [n, NEIGHBORS] each."""
    n = len(scores)
    k = min(CANDIDATES, n - 1)
    aside = _ASIDE * median_spacing(coords_um)  # so that no two spots of a lattice are equally near
    threads = workers(len(coords_um))
    near = cKDTree(coords_um).query(coords_um + aside, k=k + 1, workers=threads)[1][:, 1:]
    far = np.empty(near.shape, np.float32)
    for one in range(0, n, MAX_SPOTS):
        rows = slice(one, one + MAX_SPOTS)
        far[rows] = ((scores[near[rows]] - scores[rows, None]) ** 2).sum(axis=2)
    like = np.take_along_axis(near, np.argsort(far, axis=1, kind="stable")[:, :NEIGHBORS], axis=1)
    both = (near[:, :NEIGHBORS], like)
    fill = NEIGHBORS - min(NEIGHBORS, k)
    return graph_vae.Topology(
        *(np.pad(t, ((0, 0), (0, fill)), mode="edge").astype(np.int32) for t in both)
    )


def some_spots(coords_um: np.ndarray, seed: int = 0) -> np.ndarray:
    """All spots, or MAX_SPOTS of them in whole regions."""
    n = len(coords_um)
    if n <= MAX_SPOTS:
        return np.arange(n)
    centers = np.random.default_rng(seed).choice(n, REGIONS, replace=False)
    near = cKDTree(coords_um).query(coords_um[centers], k=MAX_SPOTS // REGIONS)[1]
    return np.unique(near)


def _log_normalized(counts: sp.csr_matrix) -> sp.csr_matrix:
    library = np.maximum(counts.sum(axis=1).A1, 1.0)
    return (sp.diags(_SCALE / library) @ counts).log1p().tocsr().astype(np.float32)
