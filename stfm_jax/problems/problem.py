"""What a problem is: cases to fit methods to, a truth to score them by, and what a person is shown.

There are two: `expression` (of a slide's spots, alone or in a stack) and `split` (a sample's counts
over finer spots). The runner (`stfm_jax.experiment`) does folds and methods for both alike.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stfm_jax.data.datasets import Dataset, Fold
from stfm_jax.data.slide import Slide, feature_width
from stfm_jax.encoders import loading
from stfm_jax.encoders.encoder import Encoder
from stfm_jax.errors import InputError
from stfm_jax.models.method import Method, encoder_of
from stfm_jax.score.genes import gene_rows
from stfm_jax.settings import Settings


@dataclasses.dataclass(frozen=True)
class Cases:
    """The cases of a fold."""

    names: Fold  # of the slides
    train: list[Any]
    test: list[Any]
    genes: Any  # as `Method.fit` takes them
    scored: tuple[str, ...]  # names of the genes that are scored
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # more for fold.json
    added: tuple[str, ...] = ()  # genes that are predicted behind those, and scored apart

    def lacks(self, method: Method) -> dict[str, str]:
        """What test slides lack that a method is for, by slide that lacks it (`Method.lacks`)."""
        found = {n: method.lacks(case) for n, case in zip(self.names.test, self.test, strict=True)}
        return {name: said for name, said in found.items() if said}


@dataclasses.dataclass(frozen=True)
class Predicted:
    """What a method makes of the test cases of a fold."""

    means: list[np.ndarray]  # [n_i, g], those that are scored and, behind them, the added ones
    draws: list[np.ndarray] | None = None  # [draws, n_i, g]

    def of(self, genes: slice) -> Predicted:
        """Of some genes alone."""
        draws = None if self.draws is None else [each[..., genes] for each in self.draws]
        return Predicted([mean[:, genes] for mean in self.means], draws)


@dataclasses.dataclass(frozen=True)
class Problem(ABC):
    """A problem as a config describes it, and the methods that are asked for."""

    config: Any
    methods: tuple[Method, ...]

    shown: ClassVar[tuple[str, ...]]  # metrics of the printed table
    explained: ClassVar[str]  # what `pearson` is, for the printed table
    unit: ClassVar[str] = ""  # of the printed comparisons
    of_slides: ClassVar[tuple[str, ...]] = ()  # metrics that differ only where folds test several
    compares_folds: ClassVar[bool] = False  # whether comparisons are written for each fold too

    Settings: ClassVar[type[Settings]]

    @property
    def settings(self) -> Any:
        """Checked settings of the config."""
        return self.Settings.of(self.config)

    @property
    def sees_images(self) -> bool:
        """Whether features are needed at all."""
        return True

    @functools.cached_property
    def encoders(self) -> tuple[Encoder, ...]:
        """Those that embed here; none where embeddings are given, or no image is seen.

        Raises:
          InputError: as `loading.load`; some are to embed here, and some are not.
        """
        return loading.of_config(self.config.encoder) if self.sees_images else ()

    @property
    def precomputed(self) -> str | None:
        """Name of the encoder whose embeddings lie in `encoder.dir`; None where none do."""
        encoder = self.config.encoder
        there = encoder.dir and encoder.name not in loading.BUILT_IN and not self.encoders
        return encoder.name if there else None

    @abstractmethod
    def read(self) -> Dataset:
        """The data set, checked as far as can be without features; nothing is written.

        Raises:
          InputError, FileNotFoundError: the config, the files, or what they hold.
        """

    @abstractmethod
    def cases(self, dataset: Dataset, fold: Fold) -> Cases:
        """The cases of a fold.

        Raises:
          InputError: its genes cannot be chosen, or its test slides lack them.
        """

    @abstractmethod
    def every_case(self, dataset: Dataset) -> Cases:
        """All cases to train on, for the model that predicts; none to test."""

    def check_genes(self, dataset: Dataset) -> None:
        """Raises InputError where the genes of a fold, or of all slides, cannot be chosen."""
        for fold in dataset.folds:
            self.cases(dataset, fold)
        self.every_case(dataset)

    def placed(self, dataset: Dataset, workdir: Path) -> Dataset:
        """The data set with what must be computed of all slides together; may write how it went."""
        return dataset

    @abstractmethod
    def write_inputs(self, dataset: Dataset, workdir: Path, cache: Path) -> None:
        """Input files for --mode=predict, where the data are simulated or make stacks."""

    @abstractmethod
    def truth(self, cases: Cases) -> Any:
        """What the test cases of a fold are scored by."""

    @abstractmethod
    def truth_arrays(self, truth: Any) -> dict[str, np.ndarray]:
        """The truth for truth.npz, cases one after the other; `coords_um` [n, 2] is among it."""

    @abstractmethod
    def num_spots(self, case: Any) -> int:
        """Spots of a case that are predicted."""

    @abstractmethod
    def collected(self, predictions: Sequence[Any], cases: Cases) -> Predicted:
        """Predictions of the test cases as arrays."""

    @abstractmethod
    def scores(
        self, method: Method, predicted: Predicted, truth: Any, seed: int
    ) -> dict[str, dict[str, float]]:
        """Scores by row: of the method, and of its draws."""

    def controls(self, truth: Any, seed: int) -> dict[str, dict[str, float]]:
        """Scores of predictions that know the truth (`score.controls`), by name; none of a split,
        whose rows keep their parents' counts.

        Args:
          truth: of a fold.
          seed: of the orders in which they are shuffled.
        """
        return {}

    def kept(self, predicted: Predicted, true: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """Arrays for predictions.npz, all test cases one after the other.

        Args:
          predicted: of the fold.
          true: [n, g] what was measured.
          seed: of random ranks at ties.
        """
        found = {"mean": np.concatenate(predicted.means)}
        if predicted.draws is not None:
            found["one_draw"] = np.concatenate([draws[0] for draws in predicted.draws])
        return found

    def gene_rows(
        self, fold: int, method: str, found: dict, truth: dict, cases: Cases
    ) -> list[dict[str, Any]]:
        """Rows of per_gene.csv, of what is in predictions.npz and truth.npz."""
        return gene_rows(fold, method, found["mean"], self.measured(truth), cases.scored)

    @abstractmethod
    def views(
        self, dataset: Dataset, fold: dict, truth: dict, values: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Values [n, g] of a fold on the scales on which methods are compared, by their name.

        Args:
          dataset: of the experiment.
          fold: its fold.json.
          truth: its truth.npz.
          values: measured or predicted, all test cases one after the other.
        """

    @abstractmethod
    def measured(self, truth: dict) -> np.ndarray:
        """What was measured, [n, g], of a fold's truth.npz."""

    @abstractmethod
    def picture(
        self, workdir: Path, dataset: Dataset, fold: dict, truth: dict, rows: Mapping[str, dict]
    ) -> None:
        """Maps of a fold's first test case; rows: predictions.npz by method."""

    def extras(self, workdir: Path, dataset: Dataset) -> dict[str, Any]:
        """What else metrics.json holds."""
        return {}

    def remarks(self, extras: Mapping[str, Any]) -> list[str]:
        """What is printed of the extras, lines."""
        return []


def check_features(slides: Sequence[Slide]) -> None:
    """Raises InputError where slides lack features, or those of one kind."""
    for slide in slides:
        if slide.features is None:
            raise InputError(
                f"{slide.where}: has no features. Set --config.encoder.name to a built-in encoder, "
                "or give the weights of another by --config.encoder.weights, or the folder of "
                "precomputed embeddings by --config.encoder.dir; a data set of --mode=export must "
                "be exported with features."
            )
    feature_width(slides)
    encoder_of(slides)
