"""A trained model on disk: what prediction needs and nothing else.

model.json       genes, encoder, widths, epochs, versions
fitted.npz       closed-form part (scalers, anchor, prior, path)
params/          network parameters (Orbax)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import stfm_jax
from stfm_jax.data.batching import PreparedSlide, collate
from stfm_jax.errors import InputError
from stfm_jax.flow.gaussian import GaussianPath
from stfm_jax.flow.priors import Prior
from stfm_jax.models.build import build
from stfm_jax.models.stflow import Fitted, FlowArrays, STFlow
from stfm_jax.regression.features import FeatureTransform
from stfm_jax.regression.regressors import Kernel, Linear
from stfm_jax.runtime.checkpoint import Checkpoint
from stfm_jax.runtime.files import load_arrays, read_json, save_arrays, write_json

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Model:
    """A method with everything that was fitted and trained."""

    task: STFlow
    fitted: Fitted
    params: PyTree
    genes: tuple[str, ...]  # scored and written
    targets: tuple[str, ...]  # predicted: genes first, then others trained on beside them
    residuals: np.ndarray  # [n, targets] of the anchor on the training spots, out of fold
    encoder: str = ""  # "" where the training files did not say

    def predict(
        self, prepared: PreparedSlide, seed: int, draws: int, mean_draws: int = 8
    ) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean [n, targets] and joint draws [draws, n, targets] of a slide."""
        batch = jax.device_put(collate([prepared], self.task.neighbors))
        key = jax.random.key(seed)
        n = len(prepared.coords)
        arguments = (self.params, jax.device_put(self.fitted.flow), batch, key)
        mean = self.task.posterior_mean(*arguments, mean_draws)
        sampled = self.task.sample(*arguments, draws)
        return np.asarray(mean)[:n], np.asarray(sampled)[:, :n]


def exists(directory: Path) -> bool:
    """Whether a whole model is there: model.json is written last."""
    return (directory / "model.json").exists()


def epochs(directory: Path) -> int:
    """Epochs it was trained for."""
    return int(_meta(directory)["epochs"])


def save(directory: Path, model: Model, epochs: int) -> None:
    """Writes a model and the number of epochs it was trained for."""
    save_arrays(directory / "fitted.npz", model.fitted._asdict())
    save_arrays(directory / "residuals.npz", {"residuals": model.residuals})
    checkpoint = Checkpoint(directory / "params")
    checkpoint.replace(epochs, model.params)
    checkpoint.close()
    write_json(
        directory / "model.json",
        {
            "version": stfm_jax.__version__,
            "jax": jax.__version__,
            "method": model.task.name,
            "normalization": model.task.normalization,
            "genes": model.genes,
            "targets": model.targets,
            "encoder": model.encoder,
            "features": len(model.fitted.transform.mean),
            "epochs": epochs,
        },
    )


def load(directory: Path, config: Any) -> Model:
    """Reads a model that was trained with this config.

    Raises:
      InputError: it is not there, damaged, or does not fit the config.
    """
    if not exists(directory):
        raise InputError(f"{directory}: holds no trained model; run --mode=train first.")
    meta = _meta(directory)
    fitted = _fitted(load_arrays(directory / "fitted.npz"), directory)
    task = build(config, len(meta["targets"]))
    template = jax.eval_shape(lambda: task.init(jax.random.key(0), _example(task, fitted)))
    checkpoint = Checkpoint(directory / "params")
    params = checkpoint.restore(template)
    checkpoint.close()
    return Model(
        task=task,
        fitted=fitted,
        params=params,
        genes=tuple(meta["genes"]),
        targets=tuple(meta["targets"]),
        residuals=load_arrays(directory / "residuals.npz")["residuals"],
        encoder=meta["encoder"],
    )


def _meta(directory: Path) -> dict[str, Any]:
    meta = read_json(directory / "model.json")
    needed = {"genes", "targets", "encoder", "epochs"}
    if not isinstance(meta, dict) or not needed <= meta.keys():
        raise InputError(
            f"{directory / 'model.json'}: expected {', '.join(sorted(needed))} as this version "
            "writes them; train again into another --workdir."
        )
    return meta


def _fitted(tree: dict, directory: Path) -> Fitted:
    try:
        anchor, flow = tree["anchor"], tree["flow"]
        return Fitted(
            transform=FeatureTransform(**tree["transform"]),
            anchor=Kernel(**anchor) if "landmarks" in anchor else Linear(**anchor),
            flow=FlowArrays(
                prior=Prior(**flow["prior"]),
                path=GaussianPath(**flow["path"]),
                gene_mean=flow["gene_mean"],
                gene_std=flow["gene_std"],
            ),
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{directory / 'fitted.npz'}: was written by another version ({error}); train again."
        ) from error


def _example(task: STFlow, fitted: Fitted):
    """A batch of the right widths, for shapes only."""
    n = 4 * task.neighbors
    f = fitted.transform.components.shape[1] * (1 + len(task.context))
    prepared = PreparedSlide(
        name="",
        coords=np.random.default_rng(0).normal(size=(n, 2)),
        features=np.zeros((n, f if task.token_context else len(fitted.transform.mean)), np.float32),
        anchor=np.zeros((n, len(fitted.flow.gene_mean)), np.float32),
        expr=None,
        place=np.arange(n, dtype=np.int32),
    )
    return collate([prepared], task.neighbors)
