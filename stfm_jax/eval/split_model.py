"""A trained SRast on disk, and what it makes of a sample, some parents at a time.

model.json       genes it was trained on, encoder, epochs, versions
fitted.npz       closed-form part (the mean split, scales, what images say)
params/          network parameters (Orbax)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

import stfm_jax
from stfm_jax.data.batching import bucket_size
from stfm_jax.data.coarsen import Pair
from stfm_jax.errors import InputError
from stfm_jax.eval import model_store
from stfm_jax.eval.sampling import on_devices
from stfm_jax.flow.simplex_path import Spread
from stfm_jax.models import srast
from stfm_jax.models.build import build_split
from stfm_jax.regression import features as feature_ops
from stfm_jax.regression import regressors, split_features, split_images
from stfm_jax.regression.split_batches import padded
from stfm_jax.regression.split_features import Pairs
from stfm_jax.runtime.checkpoint import Checkpoint
from stfm_jax.runtime.devices import SPLIT, SPLIT_DRAWS, fetch, make_mesh, replicate, split
from stfm_jax.runtime.files import load_arrays, save_arrays, write_json


class Split(NamedTuple):
    """Shares of some pairs of a parent and a gene that have counts."""

    pairs: Pairs  # [N]
    children: np.ndarray  # [N, s] rows, -1 where there is none
    counts: np.ndarray  # [N] of the parents
    mean: np.ndarray  # [N, s]
    draws: np.ndarray  # [draws, N, s]


@dataclasses.dataclass(frozen=True)
class SplitModel:
    """The method with everything that was fitted and trained."""

    task: srast.SRast
    fitted: srast.Fitted
    params: Any
    genes: tuple[str, ...]  # trained on
    encoder: str = ""  # of the children's images, where they are seen

    def split(
        self,
        pair: Pair,
        genes: np.ndarray,
        seed: int,
        draws: int,
        pairs_at_once: int,
        mesh: Mesh | None = None,
    ) -> Iterator[Split]:
        """Shares of all counts of a sample, pair by pair; its children's are not looked at.

        Args:
          pair: the sample.
          genes: [g] columns of its counts.
          seed: of the noise.
          draws: of the shares; 0 for the mean alone.
          pairs_at_once: of parent and gene, in one call of the network on each device.
          mesh: devices that share the pairs; the first one, where none are given.
        """
        mesh = mesh or make_mesh(1)
        learned = self.task.learn(pair, self.fitted)
        params, flow = replicate(mesh, (self.params, self.fitted.flow))
        key, at_once = jax.random.key(seed), pairs_at_once * mesh.size
        for pairs, children, rows in split_features.blocks(pair, learned, genes, at_once):
            n = len(rows.counts)
            size = mesh.size * bucket_size(-(-n // mesh.size))
            arguments = params, flow, split(mesh, padded(rows, size)), key
            mean = on_devices(self.task, "mean", mesh, SPLIT, srast.MEAN_DRAWS, *arguments)
            sampled = np.zeros((0, size, children.shape[1]), np.float32)
            if draws:
                sampled = on_devices(self.task, "sample", mesh, SPLIT_DRAWS, draws, *arguments)
            yield Split(pairs, children, rows.counts, fetch(mean)[:n], fetch(sampled)[:, :n])


def save(directory: Path, model: SplitModel, epochs: int) -> None:
    """Writes a model and the epochs it was trained for."""
    fitted = model.fitted._asdict()
    save_arrays(directory / "fitted.npz", {k: v for k, v in fitted.items() if v is not None})
    checkpoint = Checkpoint(directory / "params")
    checkpoint.replace(epochs, fetch(model.params))
    checkpoint.close()
    write_json(
        directory / "model.json",
        {
            "version": stfm_jax.__version__,
            "jax": jax.__version__,
            "method": model.task.name,
            "genes": model.genes,
            "targets": (),
            "encoder": model.encoder,
            "epochs": epochs,
        },
    )


def load(directory: Path, config: Any) -> SplitModel:
    """Reads a model that was trained with this config.

    Raises:
      InputError: it is not there, damaged, or does not fit the config.
    """
    meta = model_store.meta(directory)
    task = build_split(config)
    try:
        tree = load_arrays(directory / "fitted.npz")
        images = tree.get("images")
        if images is not None:
            transform = feature_ops.FeatureTransform(**images["transform"])
            depth = regressors.Kernel(**images["depth"])
            images = split_images.Images(transform, depth, images["axes"])
        spread = Spread(**tree["flow"].pop("spread"))
        fitted = srast.Fitted(srast.SplitArrays(**tree["flow"], spread=spread), images)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{directory / 'fitted.npz'}: was written by another version ({error}); train again."
        ) from error
    width = len(fitted.flow.mean)
    template = jax.eval_shape(lambda: task.init(jax.random.key(0), fitted.flow, width))
    checkpoint = Checkpoint(directory / "params")
    params = checkpoint.restore(template)
    checkpoint.close()
    return SplitModel(task, fitted, params, tuple(meta["genes"]), meta["encoder"])
