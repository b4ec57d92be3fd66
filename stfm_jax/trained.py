"""The model that a workdir predicts with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from stfm_jax import layout, store
from stfm_jax.errors import InputError
from stfm_jax.models import table
from stfm_jax.score import expected
from stfm_jax.store import Model


def load_model(config: Any, workdir: Path) -> tuple[Model, Path]:
    """The model that predicts, and its folder: of all slides, or of `config.fold`.

    Raises:
      InputError: there is none, or it is damaged.
    """
    name = config.predict.method or config.methods[-1]
    method = table.build(name, config)
    place = layout.fold_folder(workdir, config.fold)
    folder, first_form = layout.model_folder(place, method.owner, config.seed), place / "model"
    if not store.exists(folder) and store.exists(first_form):
        return store.load_first_form(first_form, method), first_form
    _check_seed(place, method.owner, config.seed)
    model = store.load(folder, method)
    if config.fold is None:  # a fold's model predicts no slide that the others' scores speak of
        scores = expected.of_workdir(workdir, method.name) or model.expected
        model = dataclasses.replace(model, expected=scores)
    return model, folder


def _check_seed(place: Path, owner: str, seed: int) -> None:
    """Raises InputError where there is no model of the seed, but one of another."""
    folders = {s: layout.model_folder(place, owner, s) for s in layout.seeds_in(place, owner)}
    there = [other for other, folder in folders.items() if store.exists(folder)]
    if there and seed not in there:
        raise InputError(
            f"{layout.model_folder(place, owner, seed)}: holds no trained model, but there are "
            f"those of seed {', '.join(map(str, there))}; set --config.seed={there[0]}, or train "
            f"with --config.seed={seed}."
        )
