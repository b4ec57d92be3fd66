"""Predicts whatever `config.predict.input` names: a slide or the image of one, a stack, a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stfm_jax.data.images.opening import is_image
from stfm_jax.errors import InputError
from stfm_jax.models.method import SPLIT, STACK
from stfm_jax.predict import cohort, outputs, slide, slide_report, split, stack, whole_slide
from stfm_jax.predict.afterwards import afterwards
from stfm_jax.store import Model

MIN_DRAWS = 2


def predict_file(config: Any, model: Model, folder: Path) -> None:
    """Writes `config.predict.output`, and pictures beside it.

    Args:
      config: with the section `predict`.
      model: fitted.
      folder: where it lies, for provenance.

    Raises:
      InputError: options, files, or what they hold; something that is there would be replaced.
    """
    options = config.predict
    if cohort.is_cohort(options) and STACK not in model.method.needs:
        about = cohort.Source(model.method.name, folder)
        cohort.run(
            config,
            about,
            lambda one: predict_file(one, model, folder),
            lambda one: outputs.of(one.predict, model),
        )
        return
    check_options(options)
    outputs.check(outputs.of(options, model), outputs.inputs(options), options.overwrite)
    output = Path(options.output)
    if model.method.problem == SPLIT:
        split.run(config, model, folder)
    elif STACK in model.method.needs:
        stack.run(model, stack.read_input(config, model), config, folder)
    else:
        with slide_report.warnings_said() as said:
            if is_image(options.input):
                whole_slide.run(config, model, folder)
            else:
                slide.predict(*slide.read_input(config, model), config, folder)
        if options.report:
            drawn = outputs.beside(output, "map")
            with afterwards(output, "its report"):
                there = options.maps and drawn.exists()
                slide_report.write(output, model, said, drawn if there else None)


def check_options(options: Any) -> None:
    """Raises InputError for a `predict` section of a config that cannot be done."""
    if not options.input or not options.output:
        raise InputError(
            "--mode=predict needs --config.predict.input=IN.h5ad and "
            "--config.predict.output=OUT.h5ad."
        )
    if "\0" in options.input + options.output:
        raise InputError("a path holds the character NUL, which no file's name may; take it out.")
    if Path(options.output).suffix != ".h5ad":
        raise InputError(
            f"--config.predict.output must name a new .h5ad file, found {options.output!r} (the "
            f"input is {options.input!r})."
        )
    if options.image and options.embeddings:
        raise InputError(
            "features come from --config.predict.image or from --config.predict.embeddings, found "
            "both; give one."
        )
    if options.draws < MIN_DRAWS:
        raise InputError(
            f"config.predict.draws must be at least {MIN_DRAWS} for a spread, found "
            f"{options.draws}."
        )
