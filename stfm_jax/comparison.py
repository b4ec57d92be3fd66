"""Methods side by side on several data sets or normalisations: the configs `compare_*`.

Each part is an experiment of its own, in a workdir under the comparison's; what is done there is
reused, and the same command goes on where it was stopped. Over them lies one report.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from stfm_jax.data.expression import NORMALIZATIONS
from stfm_jax.errors import InputError
from stfm_jax.models import table
from stfm_jax.report import comparison as report
from stfm_jax.report.compared import Part as Scored
from stfm_jax.runtime import distributed
from stfm_jax.settings import Settings, setting

MODES = ("train", "eval", "embed")  # that do what they do for every part
_LOG = logging.getLogger("stfm_jax")


@dataclasses.dataclass(frozen=True)
class CompareSettings(Settings):
    """What the parts differ in, and what is shown of them."""

    SECTION: ClassVar[str] = "compare"

    normalizations: tuple[str, ...] = setting(())  # a part for each; none: nothing is compared
    tasks: tuple[str, ...] = setting(())  # likewise values of data.task; none: the config's own
    reference: str = setting("stflow")  # that every other row is set against
    maps: int = setting(4, least=1)  # genes that are drawn by method

    def __post_init__(self):
        super().__post_init__()
        for name in self.normalizations:
            if name not in NORMALIZATIONS:
                raise InputError(
                    f"config.compare.normalizations must be of {', '.join(NORMALIZATIONS)}, found "
                    f"{name!r}."
                )


@dataclasses.dataclass(frozen=True)
class Part:
    """One experiment of a comparison."""

    name: str
    config: Any
    workdir: Path


def asked(config: Any) -> bool:
    """Whether a config describes a comparison."""
    return bool(CompareSettings.of(config).normalizations)


def check(config: Any, workdir: Path, mode: str) -> None:
    """Raises InputError for what no comparison can do."""
    settings = CompareSettings.of(config)
    if mode not in MODES:
        first = next(parts(config, workdir))
        raise InputError(
            f"--mode={mode} is of one experiment; this workdir compares several: name one of its "
            f"own, as in --workdir=W/{first.name}."
        )
    for name in (*config.methods, *config.compare.once):
        table.method_class(name)
    if settings.reference not in config.methods:
        raise InputError(
            f"config.compare.reference must be one of the methods, {', '.join(config.methods)}; "
            f"found {settings.reference!r}."
        )


def parts(config: Any, workdir: Path) -> Iterator[Part]:
    """The experiments, each with a plain config; features are kept once for all."""
    settings = CompareSettings.of(config)
    for task, name in itertools.product(settings.tasks or (None,), settings.normalizations):
        part = config.copy_and_resolve_references()
        with part.unlocked():
            part.compare.normalizations = part.compare.tasks = ()
            part.data.normalization = name
            part.data.task = part.data.task if task is None else task
            if not part.encoder.dir and part.encoder.name != "precomputed":
                part.encoder.dir = str(workdir.absolute() / "embeddings")
        label = name if task is None else f"{task}_{name}"
        yield Part(label, part, workdir / label)


def run(config: Any, workdir: Path, mode: str, one: Callable[[Any, Path, str], Any]) -> None:
    """Runs every part, and writes the report over them.

    Args:
      config: of a comparison.
      workdir: of it.
      mode: one of MODES.
      one: runs one experiment (config, workdir, mode) and returns it.

    Raises:
      InputError: as one experiment; or a part has fewer than two folds.
    """
    settings, done = CompareSettings.of(config), []
    for part in parts(config, workdir):
        _LOG.info("comparison: %s", part.name)
        opened = one(part.config, part.workdir, mode)
        done.append((part.name, opened))
    if mode != "embed" and distributed.is_main():
        report.write(
            workdir,
            [Scored(name, o.workdir, o.config, o.problem, o.dataset, o.asked) for name, o in done],
            settings.reference,
            settings.maps,
        )
    distributed.barrier("comparison")


def require_folds(dataset: Any, where: Path) -> None:
    """Raises InputError where there are too few folds to compare anything by."""
    if len(dataset.folds) < 2:
        raise InputError(
            f"{where}: a comparison needs at least two folds, found {len(dataset.folds)} "
            f"({dataset.folds_from}); add slides, or set --config.data.folds."
        )
