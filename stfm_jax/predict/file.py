"""Predicts whatever `config.predict.input` names: a slide or the image of one, a stack, a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stfm_jax.data.images.opening import is_image
from stfm_jax.models.method import SPLIT, STACK
from stfm_jax.predict import cohort, slide, slide_report, split, stack, whole_slide
from stfm_jax.predict.afterwards import afterwards
from stfm_jax.store import Model


def predict_file(config: Any, model: Model, folder: Path) -> None:
    """Writes `config.predict.output`, and pictures beside it.

    Args:
      config: with the section `predict`.
      model: fitted.
      folder: where it lies, for provenance.

    Raises:
      InputError: options, files, or what they hold.
    """
    if cohort.is_cohort(config.predict) and STACK not in model.method.needs:
        about = cohort.Source(model.method.name, folder)
        cohort.run(config, about, lambda one: predict_file(one, model, folder))
    elif model.method.problem == SPLIT:
        split.run(config, model, folder)
    elif STACK in model.method.needs:
        stack.run(model, stack.read_input(config, model), config, folder)
    else:
        with slide_report.warnings_said() as said:
            if is_image(config.predict.input):
                whole_slide.run(config, model, folder)
            else:
                slide.predict(*slide.read_input(config, model), config, folder)
        if config.predict.report:
            output = Path(config.predict.output)
            with afterwards(output, "its report"):
                slide_report.write(output, model, said)
