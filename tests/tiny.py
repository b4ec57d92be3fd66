"""A tiny experiment for the end-to-end tests: slides, a config, and the command line in-process."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import flagsaver
from ml_collections import ConfigDict

from configs import demo
from stfm_jax import cli, layout
from stfm_jax import command as entry
from stfm_jax.data.readers import h5ad
from stfm_jax.data.simulate import TissueParams, volume
from stfm_jax.data.slide import Slide
from stfm_jax.models.stflow import published

REPOSITORY = Path(__file__).resolve().parents[1]
ENCODER, WIDTH = "toy_112um", 12
OVERRIDES = {
    "devices": 1,
    "data.reader": "anndata",
    "data.num_genes": 8,
    "data.unseen": 0,
    "encoder.name": "precomputed",
    "model.width": 16,
    "model.blocks": 1,
    "model.heads": 2,
    "model.neighbors": 4,
    "model.components": 8,
    "model.context": (9,),
    "model.image_width": 16,
    "histogene.width": 16,
    "histogene.depth": 1,
    "histogene.heads": 1,
    "triplex.width": 16,
    "triplex.slide_depth": 2,
    "longnet.width": 16,
    "longnet.depth": 1,
    "longnet.heads": 2,
    "train.epochs": 3,
    "train.checkpoint_every": 2,
    "sample.draws": 11,
}


def slides(count: int = 4, registered: bool = False) -> list[Slide]:
    """Serial sections of about 50 spots; their features are the true mixtures in other axes.

    With `registered` they know their true places in the volume.
    """
    tissue = volume(TissueParams(num_sections=count, spots=50, num_genes=30), seed=0)
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(tissue.truth[0].mixtures.shape[1], WIDTH))
    return [
        dataclasses.replace(
            slide,
            features=(t.mixtures @ axes + 0.1 * rng.normal(size=(slide.num_spots, WIDTH))).astype(
                np.float32
            ),
            encoder=ENCODER,
            patches=None,
            source="",
            registered_um=t.points_um[:, :2] if registered else None,
        )
        for slide, t in zip(tissue.slides, tissue.truth, strict=True)
    ]


def write(folder: Path, sections: list[Slide]) -> Path:
    """The slides as .h5ad files in a folder."""
    for slide in sections:
        h5ad.write(slide, folder / f"{slide.name}.h5ad")
    return folder


def fields(**overrides) -> dict:
    """Flat fields of the tiny config. Overrides have `__` for the dot."""
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    return {**OVERRIDES, **given}


def config(**overrides) -> ConfigDict:
    """configs/demo.py made tiny."""
    made = demo.get_config()
    made.update_from_flattened_dict(fields(**overrides))
    return made.lock()


def run(made: ConfigDict, workdir: Path, mode: str = "train") -> int:
    """Exit code of a mode, in this process; logger and signals are left as they were."""
    log = logging.getLogger("stfm_jax")
    before = log.handlers[:], log.level, log.propagate
    try:
        return cli.guarded(lambda: cli.run(made, str(workdir), mode))
    finally:
        log.handlers[:], log.level, log.propagate = before


def arguments(workdir: Path, **overrides) -> list[str]:
    """The tiny experiment as arguments of run.py."""
    flags = [f"--config.{name}={value}" for name, value in fields(**overrides).items()]
    return ["--config=configs/demo.py", f"--workdir={workdir}", *flags]


def command(*argv: str) -> int:
    """Exit code of `python run.py ARGV`, in this process."""
    argv = ("run.py", *argv)
    sys.modules.pop("config_config", None)  # under which ml_collections loads every config file
    with flagsaver.flagsaver(), mock.patch.object(sys, "argv", list(argv)):
        try:
            entry.parse(list(argv))
        except SystemExit as stop:
            return stop.code
        return run(entry._CONFIG.value, entry._WORKDIR.value, entry._MODE.value)


def start(*argv: str) -> subprocess.Popen:
    """`python run.py ARGV` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "run.py", *argv],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


@contextlib.contextmanager
def small_published() -> Iterator[None]:
    """The published STFlow, whose sizes no config changes, made small while the block runs."""
    with mock.patch.dict(published._FORM, {"width": 16, "blocks": 1, "heads": 2}):
        yield


def place(work: Path, fold: int | None, method: str = "stflow", seed: int = 0) -> Path:
    """Folder of a method in a fold, or of the model of all slides."""
    return layout.method_folder(layout.fold_folder(work, fold), method, seed)


def points(work: Path, fold: int) -> dict[str, np.ndarray]:
    """What every method predicted in a fold [n, g], by name; and `expr`, what was measured."""
    folder = layout.fold_folder(work, fold)
    found = {}
    for path in folder.glob("*/seed_0/predictions.npz"):
        with np.load(path) as stored:
            found[path.parts[-3]] = stored["mean"]
    with np.load(folder / "truth.npz") as stored:
        return {**found, "expr": stored["expr"]}


def contents(folder: Path) -> dict[str, int]:
    """Every file below a folder with its time of change; nothing where there is no folder."""
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()
    }
