"""`--mode=export`: the data set of an experiment, with its features, for tensorflow-datasets.

Importing this imports tensorflow-datasets, so it is imported in this mode only.
"""

from __future__ import annotations

import logging
from pathlib import Path

from stfm_jax.data import tfds_builder
from stfm_jax.errors import InputError
from stfm_jax.experiment import Experiment
from stfm_jax.runtime import distributed

_LOG = logging.getLogger("stfm_jax")


def check(opened: Experiment) -> None:
    """Raises InputError where the data set could not be written, before anything is embedded."""
    encoders = opened.problem.encoders
    if len(encoders) > 1 or any(slide.widths for slide in opened.dataset.all):
        raise InputError(
            "--mode=export writes the features of one encoder, found several in "
            f"config.encoder.name or the slides ({opened.config.encoder.name}); name one."
        )
    tfds_builder.destination(opened.dataset, _out_dir(opened))
    distributed.barrier("export checked")


def write(opened: Experiment) -> None:
    """Writes slides, folds and gene panel to `<workdir>/dataset`, and logs how to read them."""
    dataset = opened.dataset
    if distributed.is_main():
        folder = tfds_builder.write(dataset, _out_dir(opened))
        features = all(slide.features is not None for slide in dataset.all)
        _LOG.info(
            "%d slides are in %s; read them by --config.data.reader=tfds --config.data.dir=%s%s",
            len(dataset.all),
            folder,
            folder,
            " --config.encoder.name=precomputed" if features else "; they have no features",
        )
    distributed.barrier("exported")


def _out_dir(opened: Experiment) -> Path:
    return opened.workdir / "dataset"
