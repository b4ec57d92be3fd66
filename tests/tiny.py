"""A tiny experiment for the end-to-end tests: slides, config, and the command line in-process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs import demo
from stfm_jax import cli
from stfm_jax.data.readers import h5ad
from stfm_jax.data.simulate import TissueParams, volume
from stfm_jax.data.slide import Slide

REPOSITORY = Path(__file__).resolve().parents[1]
ENCODER = "toy_112um"
OVERRIDES = {
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
    "train.epochs": 3,
    "train.checkpoint_every": 1,
    "sample.draws": 19,
}


def slides(count: int = 4, spots: int = 50) -> list[Slide]:
    """Serial sections whose features are the true mixtures, noisily projected."""
    tissue = volume(TissueParams(num_sections=count, spots=spots, num_genes=30), seed=0)
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(tissue.truth[0].mixtures.shape[1], 12))
    made = []
    for slide, truth in zip(tissue.slides, tissue.truth, strict=True):
        features = truth.mixtures @ mix + 0.1 * rng.normal(size=(slide.num_spots, 12))
        made.append(
            Slide(
                name=slide.name,
                barcodes=slide.barcodes,
                coords_um=slide.coords_um,
                counts=slide.counts,
                genes=slide.genes,
                features=features.astype(np.float32),
                encoder=ENCODER,
                patient=slide.patient,
                section=slide.section,
            )
        )
    return made


def write(folder: Path, sections: list[Slide]) -> Path:
    """The slides as .h5ad files in a folder."""
    for slide in sections:
        h5ad.write(slide, folder / f"{slide.name}.h5ad")
    return folder


def config(data_dir: Path | str = "", **overrides) -> ConfigDict:
    """configs/demo.py made tiny. Names of fields have `__` for the dot."""
    made = demo.get_config()
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    made.update_from_flattened_dict({**OVERRIDES, "data.dir": str(data_dir), **given})
    return made.lock()


def run(made: ConfigDict, workdir: Path, mode: str = "train") -> int:
    """Exit code of the command, in this process; the logger is left as it was."""
    log = logging.getLogger("stfm_jax")
    before = log.handlers[:], log.level, log.propagate
    try:
        return cli.guarded(lambda: cli.run(made, str(workdir), mode))
    finally:
        log.handlers[:], log.level, log.propagate = before


def flags(data_dir: Path | str, workdir: Path, **overrides) -> list[str]:
    """The same experiment as arguments of run.py."""
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    fields = {**OVERRIDES, "data.dir": str(data_dir), **given}
    return [
        "--config=configs/demo.py",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def start(*arguments: str) -> subprocess.Popen:
    """run.py in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "run.py", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def call(*arguments: str) -> tuple[int, str]:
    """Exit code and stderr of run.py in a process of its own."""
    process = start(*arguments)
    _, err = process.communicate(timeout=300)
    return process.returncode, err
