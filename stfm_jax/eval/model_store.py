"""A trained model on disk: what prediction needs and nothing else.

model.json       genes, encoder, widths, epochs, versions
fitted.npz       closed-form part (scalers, anchor, prior, path)
params/          network parameters (Orbax)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

import stfm_jax
from stfm_jax.data.batching import PreparedSlide, spacing_units
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.eval import sampling, whole_slide
from stfm_jax.models.build import build
from stfm_jax.models.stflow import Fitted, STFlow
from stfm_jax.runtime.checkpoint import Checkpoint
from stfm_jax.runtime.devices import fetch, make_mesh, replicate
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
        self,
        prepared: PreparedSlide,
        seed: int,
        draws: int,
        mean_draws: int,
        mesh: Mesh | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean [n, targets] and joint draws [draws, n, targets] of a prepared slide.

        On one device slides are done chunk by chunk where `whole_slide.pays` says so, with a
        progress bar; several share the rows of a slide in one call.

        Args:
          prepared: the slide.
          seed: of the noise.
          draws: joint draws.
          mean_draws: prior draws that the posterior mean is averaged over.
          mesh: devices that share a slide done in one call; the first one, where none are given.
        """
        mesh = mesh or make_mesh(1)
        if self._in_chunks(mesh, len(prepared.coords)):
            rows = whole_slide.Rows.of(prepared)
            mean, sampled = self._predict_in_chunks(rows, seed, draws, mean_draws)
            return mean, np.stack(list(sampled))
        params, flow = replicate(mesh, (self.params, self.fitted.flow))
        batch = sampling.batch_of(self.task, mesh, prepared)
        arguments = (self.task, mesh, params, flow, batch, jax.random.key(seed))
        mean = sampling.posterior_mean(*arguments, mean_draws)
        return mean, sampling.sample(*arguments, draws)

    def predict_slide(
        self, slide: Slide, seed: int, draws: int, mean_draws: int, mesh: Mesh | None = None
    ) -> tuple[np.ndarray, Iterator[np.ndarray]]:
        """As `predict`, with the draws one after the other, each [n, targets].

        Where it is done chunk by chunk neither all features nor all draws are held.
        """
        mesh = mesh or make_mesh(1)
        if not self._in_chunks(mesh, slide.num_spots):
            prepared = self.task.prepare(slide, self.fitted)
            mean, sampled = self.predict(prepared, seed, draws, mean_draws, mesh)
            return mean, iter(sampled)
        rows = whole_slide.Rows(
            name=slide.name,
            coords=spacing_units(slide.coords_um),
            place=np.arange(slide.num_spots, dtype=np.int32),
            blocks=self.task.prepare_blocks(slide, self.fitted),
        )
        return self._predict_in_chunks(rows, seed, draws, mean_draws)

    def _in_chunks(self, mesh: Mesh, num_spots: int) -> bool:
        return mesh.size == 1 and self.task.in_chunks and whole_slide.pays(num_spots)

    @property
    def base(self) -> Model:
        """The model that this one stands on."""
        fitted = self.task.base_fitted(self.fitted)
        params = self.fitted.flow.base_params
        return dataclasses.replace(self, task=self.task.base, fitted=fitted, params=params)

    def _predict_in_chunks(self, rows: whole_slide.Rows, seed, draws, mean_draws):
        key, flow = jax.random.key(seed), jax.device_put(self.fitted.flow)
        slide = whole_slide.encode(self.task, self.params, flow, rows)
        per_evaluation = len(slide.place) * self.task.network.num_blocks
        arguments = (self.task, self.params, flow, slide, key)

        def bar(what: str, evaluations: int) -> tqdm:
            return tqdm(
                desc=f"{rows.name}: {what}, {evaluations} network evaluations",
                total=evaluations * per_evaluation,
                unit="spot-layer",
                unit_scale=True,
                dynamic_ncols=True,
            )

        def sampled() -> Iterator[np.ndarray]:
            with bar(f"{draws} draws", draws * self.task.evaluations) as progress:
                yield from whole_slide.sample(*arguments, draws, progress.update)

        if self.task.mean_is_closed:
            return whole_slide.posterior_mean(*arguments, mean_draws), sampled()
        with bar("mean", mean_draws) as progress:
            mean = whole_slide.posterior_mean(*arguments, mean_draws, progress.update)
        return mean, sampled()


def check_features(model: Model, slide: Slide) -> None:
    """Raises InputError where a slide's features are not of the model's encoder or width."""
    if slide.encoder and model.encoder and slide.encoder != model.encoder:
        raise InputError(
            f"{slide.where}: its features were made by {slide.encoder!r}, but the model was "
            f"trained on {model.encoder!r}; embed the slide with that one."
        )
    width, expected = slide.features.shape[1], len(model.fitted.transform.mean)
    if width != expected:
        raise InputError(
            f"{slide.where}: its features are {width} wide, but the model was trained on "
            f"{expected} of {model.encoder or 'its encoder'}; embed the slide with that one."
        )


def exists(directory: Path) -> bool:
    """Whether a whole model is there: model.json is written last."""
    return (directory / "model.json").exists()


def epochs(directory: Path) -> tuple[int, ...]:
    """Epochs it was trained for, those of its base before it."""
    read = meta(directory)
    return (*read.get("base_epochs", ()), int(read["epochs"]))


def save(directory: Path, model: Model, epochs: Sequence[int]) -> None:
    """Writes a model and the epochs it was trained for, those of its base before it."""
    save_arrays(directory / "fitted.npz", model.fitted._asdict())
    save_arrays(directory / "residuals.npz", {"residuals": model.residuals})
    checkpoint = Checkpoint(directory / "params")
    checkpoint.replace(epochs[-1], fetch(model.params))
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
            "epochs": epochs[-1],
            "base_epochs": epochs[:-1],
        },
    )


def load(directory: Path, config: Any) -> Model:
    """Reads a model that was trained with this config.

    Raises:
      InputError: it is not there, damaged, or does not fit the config.
    """
    known = meta(directory)
    task = build(config, len(known["targets"]))
    fitted = _fitted(task, load_arrays(directory / "fitted.npz"), directory)
    width = task.input_width(fitted)
    template = jax.eval_shape(lambda: task.init(jax.random.key(0), fitted.flow, width))
    checkpoint = Checkpoint(directory / "params")
    params = checkpoint.restore(template)
    checkpoint.close()
    return Model(
        task=task,
        fitted=fitted,
        params=params,
        genes=tuple(known["genes"]),
        targets=tuple(known["targets"]),
        residuals=load_arrays(directory / "residuals.npz")["residuals"],
        encoder=known["encoder"],
    )


def meta(directory: Path) -> dict[str, Any]:
    """What a model's model.json says.

    Raises:
      InputError: there is no model, or it was written by another version.
    """
    if not exists(directory):
        raise InputError(f"{directory}: holds no trained model; run --mode=train first.")
    read = read_json(directory / "model.json")
    needed = {"genes", "targets", "encoder", "epochs"}
    if not isinstance(read, dict) or not needed <= read.keys():
        raise InputError(
            f"{directory / 'model.json'}: expected {', '.join(sorted(needed))} as this version "
            "writes them; train again into another --workdir."
        )
    return read


def _fitted(task: STFlow, tree: dict, directory: Path) -> Any:
    try:
        return task.restored(tree)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{directory / 'fitted.npz'}: was written by another version ({error}); train again."
        ) from error
