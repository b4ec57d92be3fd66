"""What the runner, scoring, storage and prediction know of a method.

A method answers two questions, closed-form and trained alike:

    fit(cases, genes, run) -> state
    predict(state, case, request) -> a prediction of the case

Its state is a NamedTuple of arrays, which `stfm_jax.store` writes and reads by its type. A method
that only reads another's state in its own way names it by `state_of` and fits nothing. Which
methods there are is `models.table`; what a case and a prediction are, its problem says: a
`Section` and a `Prediction` (problems.expression), or a `data.coarsen.Pair` and an iterator of
`models.parts.Split` (problems.split).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jax.sharding import Mesh

from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.settings import Settings, paths
from stfm_jax.train.stages import Run, TrainSettings

EXPRESSION, SPLIT = "expression", "split"  # the problems
EMBEDDING, STACK, PAIRS = "embedding", "stack", "pairs"  # what a method may need

Blocks = Iterable[tuple[Any, np.ndarray]]  # rows of a matrix and their values, in any order


class Genes(NamedTuple):
    """Names of the genes of a fold."""

    scored: tuple[str, ...]
    targets: tuple[str, ...]  # what is trained on: the scored ones first


@dataclasses.dataclass(frozen=True)
class Section:
    """A slide, and the other slides whose expression may be looked at.

    For the methods that know of stacks: of `others` those of the slide's own stack are looked at,
    and of these the ones with counts are measured.
    """

    slide: Slide
    others: Sequence[Slide] = ()
    familiar: bool = False  # whether other slides of its patient were trained on


@dataclasses.dataclass(frozen=True)
class Request:
    """How a case is to be predicted."""

    genes: Genes
    seed: int
    draws: int  # joint draws, of a method that draws
    mean_draws: int  # prior draws that a mean without closed form is averaged over
    mesh: Mesh  # devices that share a case


class Standing(NamedTuple):
    """How a slide stands to the training slides; see `models.strangers`."""

    shares: tuple[float, ...]  # of the flexible fit, by encoder
    ratio: float  # how far it is, over left-out training units; of the encoder most alarmed
    usual: float  # ratio that most further units stay below
    stranger: float  # ratio past which it is a stranger
    familiar: bool  # whether other slides of its patient were trained on
    of_spots: Callable[[], np.ndarray]  # () -> the same of single spots [n]

    @property
    def share(self) -> float:
        """Of the flexible fit in the prediction."""
        return float(np.mean(self.shares))

    @property
    def is_stranger(self) -> bool:
        return self.ratio > self.stranger


class Prediction(NamedTuple):
    """Expression of the n spots of a slide; the columns begin with the genes that are scored."""

    mean: Blocks  # of [n, g]
    draws: Iterator[Blocks] | None = None  # each of [n, g], made when it is asked for
    standing: Standing | None = None  # of a method that asks for it


class NotApplicable(Exception):
    """A case lacks what a method stands on; says what. The row is left out."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A method with its settings; hashable."""

    settings: Settings

    name: ClassVar[str]
    problem: ClassVar[str] = EXPRESSION
    needs: ClassVar[frozenset[str]] = frozenset({EMBEDDING})
    stands_on: ClassVar[tuple[str, ...]] = ()  # methods that are fitted before this one
    state_of: ClassVar[str | None] = None  # the method whose state is this one's
    draws_as: ClassVar[str | None] = None  # name of the row of its single draws, where it draws
    compared_with: ClassVar[tuple[str, ...]] = ()  # rows that the report sets it against
    papers: ClassVar[tuple[str, ...]] = ()  # to cite
    Settings: ClassVar[type[Settings]]
    State: ClassVar[type]  # a NamedTuple

    @property
    def owner(self) -> str:
        """The method whose state this one reads: itself, or `state_of`."""
        return self.state_of or self.name

    @classmethod
    def fields(cls) -> frozenset[str]:
        """Fields of the config that its results depend on, beside what all methods share."""
        trained = "epochs" in cls.State._fields
        return paths(cls.Settings) | (paths(TrainSettings) if trained else frozenset())

    def check(self, slides: Sequence[Slide], devices: int) -> None:
        """Raises InputError where slides are too small, or devices too many, for the method."""

    def check_input(self, slide: Slide) -> None:
        """Raises InputError where a slide is too small to be predicted."""

    def trained_on(self, state: Any, slide: Slide) -> bool:
        """Whether a slide is known to be one that the state was fitted to."""
        return False

    def lacks(self, case: Any) -> str:
        """What a case has nothing of that the method is for, in words; empty where it has.

        It is predicted without, or not at all (`NotApplicable`); log and report say so.
        """
        return ""

    def fit(self, cases: Sequence[Any], genes: Any, run: Run) -> Any:
        """State fitted to training cases; the genes are as the problem gives them.

        Raises:
          NotApplicable: the cases are more than the machine can hold; the row is left out.
        """
        raise NotImplementedError

    def predict(self, state: Any, case: Any, request: Request) -> Any:
        """Prediction of a case whose own truth is not looked at.

        Raises:
          NotApplicable: the case lacks what the method needs.
        """
        raise NotImplementedError

    def narrowed(self, state: Any, kept: Sequence[int]) -> Any:
        """The state for slides that lack the features of some of its encoders.

        Args:
          state: fitted to the features of several encoders.
          kept: numbers of those that are there, ascending.

        Raises:
          NotApplicable: the method stands on all of them together.
        """
        raise NotApplicable(f"{self.name} sees the features of its encoders together")

    def needed(self, state: Any) -> Any:
        """The state without what `predict` does not look at, for those that it is passed on to."""
        return state

    def individual_data(self, state: Any) -> dict[str, str]:
        """What the state holds of single training spots, or of a few together.

        By name of the array in state.npz, or of a group of arrays, in words and with its size.
        """
        return {}

    def hyperparameters(self, state: Any) -> dict[str, Any]:
        """What was chosen, for scores.json; empty where nothing was."""
        return {}

    def bytes_needed(self, state: Any, num_spots: int, request: Request) -> int:
        """Memory of the host that `predict` takes at its peak, beyond the features."""
        return 0


def within(field: str, held: Mapping[str, str]) -> dict[str, str]:
    """Individual-level data of a part of a state, by their names in the state."""
    return {f"{field}/{name}": said for name, said in held.items()}


def whole(values: np.ndarray) -> Blocks:
    """A matrix in memory as one block."""
    return ((slice(None), values),)


def gathered(blocks: Blocks, num_rows: int) -> np.ndarray:
    """The matrix [num_rows, g] that blocks make."""
    out = None
    for rows, values in blocks:
        if out is None:
            out = np.empty((num_rows, values.shape[1]), values.dtype)
        out[rows] = values
    return out


def encoder_of(slides: Sequence[Slide]) -> str:
    """The one encoder that made all slides' features, "" where no file says.

    Raises:
      InputError: slides of different encoders.
    """
    names = {slide.encoder or "": slide for slide in slides}
    if len(names) > 1:
        found = ", ".join(f"{name or 'unnamed'} in {s.name}" for name, s in names.items())
        raise InputError(f"features must come from one encoder, found {found}; embed all alike.")
    return next(iter(names), "")
