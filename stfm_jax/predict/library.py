"""The library size that a prediction is of: counts of a whole spot.

`log1p` of counts depends on how deeply a slide was sequenced, which its image does not show. What
was learnt is of the training slides' depth; a user who knows another one, or wants it, says so.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stfm_jax.errors import InputError
from stfm_jax.store import Model

Scaled = Callable[[np.ndarray], np.ndarray]


def trained_on(model: Model) -> float | None:
    """Median UMI of a spot, the median of training slides; None where the model does not say."""
    known = [about["library"] for about in model.slides.values() if "library" in about]
    return float(np.median(known)) if known else None


def scaled_to(model: Model, library: float | None, normalization: str) -> Scaled:
    """What takes predictions to a library size; None: as in training.

    Raises:
      InputError: it is not positive, the prediction is of no library size, or the training
        slides' is not known.
    """
    if library is None:
        return lambda values: values
    if normalization != "log1p":
        raise InputError(
            f"config.predict.library is for predictions of log1p of counts, found "
            f"{normalization!r}, whose values are of no library size; leave it out."
        )
    if not library > 0:
        raise InputError(f"config.predict.library must be positive, found {library}.")
    known = trained_on(model)
    if known is None:
        raise InputError(
            "config.predict.library: the model does not say what library sizes it was trained on "
            "(an earlier version wrote it); train again into another --workdir."
        )
    factor = np.float32(library / known)
    return lambda values: np.log1p(np.expm1(values) * factor)
