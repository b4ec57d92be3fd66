"""How far samples share one pool of features: silhouettes by patient, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD
from sklearn.metrics import silhouette_score

from stfm_jax.data.coarsen import Pair
from stfm_jax.data.expression import library_size
from stfm_jax.models.srast import latents
from stfm_jax.plots import slides as plots
from stfm_jax.plots import split as split_plots
from stfm_jax.runtime.files import load_arrays, save_arrays

SPOTS = 500  # of a sample that are compared, at most


def write(workdir: Path, pairs: Mapping[str, Pair], seed: int) -> dict[str, float]:
    """Silhouette by patient of the parents' features, before and after Latent Norm.

    1: patients lie apart; 0: they cannot be told from one another. "expression": principal scores
    of log-normalised counts on the genes that all share; "latents": each sample's own autoencoder;
    "normed": after Latent Norm. Samples of one patient are told apart as samples. Written to
    latents.npz, latents.png; what was there already, of the same seed, is not computed again.
    """
    path = workdir / "latents.npz"
    if not path.exists() or load_arrays(path).get("seed") != seed:
        save_arrays(path, {**_features(pairs, seed), "seed": np.int64(seed)})
        arrays = load_arrays(path)
        figure = split_plots.mixing(arrays["features"], arrays["label"])
        plots.save(figure, workdir / "latents.png")
    arrays = load_arrays(path)
    label = arrays["label"]
    if len(np.unique(label)) < 2:
        return {}
    return {
        name: float(silhouette_score(values, label)) for name, values in arrays["features"].items()
    }


def _features(pairs: Mapping[str, Pair], seed: int) -> dict:
    patients = {pair.low.patient for pair in pairs.values()}
    parts = {"expression": [], "latents": [], "normed": []}
    labels = []
    shared = sorted(set.intersection(*(set(pair.low.columns) for pair in pairs.values())))
    rng = np.random.default_rng(seed)
    for name, pair in pairs.items():
        low = pair.low
        model = latents.fit(low, seed)
        if low.num_spots > latents.MAX_SPOTS:
            low = low.subset(latents.some_spots(low.coords_um, seed))
        z = latents.latents(model, low.counts, low.coords_um)
        some = np.sort(rng.permutation(low.num_spots)[:SPOTS])
        counts = sp.diags(1e4 / library_size(low)) @ low.counts[:, low.columns_of(shared)]
        parts["expression"].append(counts.tocsr()[some])
        parts["latents"].append(z[some])
        parts["normed"].append(latents.normed(model, z[some]))
        labels += [low.patient if len(patients) > 1 else name] * len(some)
    pooled = sp.vstack(parts["expression"]).log1p()
    size = min(latents.COMPONENTS, min(pooled.shape) - 1)
    scores = TruncatedSVD(size, random_state=seed).fit_transform(pooled) if size > 0 else None
    features = {name: np.concatenate(v) for name, v in parts.items() if name != "expression"}
    if scores is not None:
        features = {"expression": scores} | features
    return {"features": features, "label": np.array(labels)}
