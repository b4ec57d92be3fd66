"""A fitted method on disk: what prediction needs and nothing else.

    <folder>/model.json   method, genes, encoder, epochs, versions; training slides, and what else
                          both files hold of single patients
    <folder>/state.npz    the state, its arrays under the names of its fields

A state is read by its type: NamedTuples of arrays, of numbers, of dicts of arrays, and of one
another. What is not there is None. `model.json` is written last, so a model is whole or none.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import stfm_jax
from stfm_jax.data.expression import library_size
from stfm_jax.data.feature_blocks import encoder_names
from stfm_jax.data.lattice import spot_spacing_um
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.models.method import Genes, Method
from stfm_jax.runtime.checkpoint import Checkpoint
from stfm_jax.runtime.files import load_arrays, read_json, save_arrays, write_json
from stfm_jax.score.expected import Expected

_NEEDED = {"method", "genes", "targets", "encoder", "features", "epochs"}


@dataclasses.dataclass(frozen=True)
class Model:
    """A method with everything that was fitted and trained."""

    method: Method
    state: Any
    genes: Genes  # scored and written; of a method that splits: trained on
    encoder: str = ""  # that made the training slides' features, "" where no file said
    features: int = 0  # their width, 0 where none are seen
    widths: tuple[int, ...] = ()  # of each encoder's, of several; see `data.feature_blocks`
    slides: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    # by name, those it was fitted to: `about_slides`; earlier versions kept less of them, or none
    expected: Mapping[str, Expected] = dataclasses.field(default_factory=dict)
    # by gene, how well it did on slides left out; empty where nothing was scored
    only_for: str = ""  # method that alone can read the state; "": all whose state it is

    @property
    def encoders(self) -> tuple[str, ...]:
        """Identities of the encoders, "" of one where no file said."""
        return encoder_names(self.encoder, self.widths)

    def familiar(self, slide: Slide) -> bool:
        """Whether it was fitted to other slides of a slide's patient."""
        return slide.is_of({about["patient"] for about in self.slides.values()})

    @property
    def epochs(self) -> int | None:
        """Epochs it was trained for, None of a method in closed form."""
        epochs = getattr(self.state, "epochs", None)
        return None if epochs is None else int(epochs)

    @property
    def individual_level(self) -> dict[str, str]:
        """What its files hold of single training spots and patients, by file and name."""
        names = f"names of {len(self.slides)} training slides and of their patients"
        arrays = self.method.individual_data(self.state)
        return {
            **({"model.json/slides": names} if self.slides else {}),
            **{f"state.npz/{name}": said for name, said in arrays.items()},
        }


def about_slides(slides: Sequence[Slide]) -> dict[str, dict[str, Any]]:
    """What a model keeps of the slides that it was fitted to, by name."""
    return {
        slide.name: {
            "spots": slide.num_spots,
            "patient": slide.patient,
            "library": float(np.median(library_size(slide))),
            "pitch_um": round(spot_spacing_um(slide.coords_um), 2),
        }
        for slide in slides
    }


def numbers(state: Any) -> int:
    """How many numbers a state is."""
    return sum(np.size(leaf) for leaf in jax.tree.leaves(state))


def save(folder: Path, model: Model) -> None:
    """Writes a model."""
    save_arrays(folder / "state.npz", model.state._asdict())
    write_json(
        folder / "model.json",
        {
            "version": stfm_jax.__version__,
            "jax": jax.__version__,
            "method": model.method.name,
            "genes": model.genes.scored,
            "targets": model.genes.targets,
            "encoder": model.encoder,
            "features": model.features,
            "widths": model.widths,
            "epochs": model.epochs,
            "slides": model.slides,
            "expected": {gene: each._asdict() for gene, each in model.expected.items()},
            "individual_level": model.individual_level,
            "only_for": model.only_for,
        },
    )


def load_first_form(folder: Path, method: Method) -> Model:
    """Reads a model as versions up to commit 0c00b60 wrote them, one method in a fold.

    fitted.npz, residuals.npz (of STFlow and HoloTea) and params/ (Orbax) beside model.json.

    Raises:
      InputError: it is not there, damaged, or of another method.
    """
    known = read_json(folder / "model.json")
    if known.get("method") != method.owner:
        raise InputError(
            f"{folder}: holds {known.get('method')!r} alone, as versions before 2026-11-27 did; "
            f"{method.owner!r} has to be trained, in another --workdir."
        )
    arrays = {"fitted": load_arrays(folder / "fitted.npz"), "epochs": known["epochs"]}
    if (folder / "residuals.npz").exists():
        arrays |= load_arrays(folder / "residuals.npz")
    checkpoint = Checkpoint(folder / "params")
    arrays["params"] = checkpoint.restore_as_saved()
    checkpoint.close()
    genes = Genes(tuple(known["genes"]), tuple(known["targets"]))
    state = _state(method, arrays, folder / "fitted.npz")
    return Model(method, state, genes, known["encoder"], known.get("features", 0))


def exists(folder: Path) -> bool:
    """Whether a whole model is there."""
    return (folder / "model.json").exists()


def load(folder: Path, method: Method) -> Model:
    """Reads a model of a method.

    Raises:
      InputError: it is not there, damaged, was written by another version, or holds no more than
        another method needs.
    """
    known, path = about(folder), folder / "state.npz"
    only_for = known.get("only_for", "")
    if only_for not in ("", method.name):
        raise InputError(
            f"{folder}: was passed on for {only_for!r} alone, found {method.name!r} asked for; "
            "export that from the workdir it was trained in."
        )
    state = _state(method, load_arrays(path), path)
    genes = Genes(tuple(known["genes"]), tuple(known["targets"]))
    encoder = known["encoder"], known["features"], tuple(known.get("widths", ()))
    scores = known.get("expected", {}).items()
    expected = {gene: Expected(**_numbers(each)) for gene, each in scores}
    return Model(method, state, genes, *encoder, known.get("slides", {}), expected, only_for)


def _numbers(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of a JSON file, which has no nan."""
    return {name: np.nan if value is None else value for name, value in stored.items()}


def _state(method: Method, arrays: dict, path: Path) -> Any:
    try:
        return restored(method.State, arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: was written by another version ({error}); train again."
        ) from error


def about(folder: Path) -> dict[str, Any]:
    """What a model's model.json says.

    Raises:
      InputError: there is no model, or it was written by another version.
    """
    if not exists(folder):
        raise InputError(f"{folder}: holds no trained model; run --mode=train first.")
    read = read_json(folder / "model.json")
    if not isinstance(read, dict) or not read.keys() >= _NEEDED:
        raise InputError(
            f"{folder / 'model.json'}: expected {', '.join(sorted(_NEEDED))} as this version "
            "writes them; train again into another --workdir."
        )
    return read


def check_features(model: Model, slide: Slide) -> None:
    """Raises InputError where a slide's features are not of the model's encoder or width."""
    if slide.encoder and model.encoder and slide.encoder != model.encoder:
        raise InputError(
            f"{slide.where}: its features were made by {slide.encoder!r}, but the model was "
            f"trained on {model.encoder!r}; embed the slide with that one."
        )
    width = slide.features.shape[1]
    if model.features and width != model.features:
        raise InputError(
            f"{slide.where}: its features are {width} wide, but the model was trained on "
            f"{model.features} of {model.encoder or 'its encoder'}; embed the slide with that one."
        )


def restored(kind: Any, value: Any) -> Any:
    """A value of a type, from the arrays and nested dicts it was saved as.

    Raises:
      KeyError, TypeError, ValueError: it is of no such type.
    """
    if kind in (Any, np.ndarray, jax.Array):
        return value
    if kind in (int, float, str):
        return kind(value)
    if kind is dict:
        return {} if value is None else value
    if typing.get_origin(kind) is dict:
        _, of = typing.get_args(kind)
        return {name: restored(of, each) for name, each in (value or {}).items()}
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return _one_of(typing.get_args(kind), value)
    hints = typing.get_type_hints(kind)
    unknown = value.keys() - hints.keys()
    if unknown:
        raise KeyError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    fields = {name: _field(kind, name, hint, value) for name, hint in hints.items()}
    return kind(**fields)


def _field(kind: type, name: str, hint: Any, value: dict) -> Any:
    if name in value:
        return restored(hint, value[name])
    if hint is dict or typing.get_origin(hint) is dict:  # an empty one leaves no array
        return {}
    if type(None) in typing.get_args(hint):
        return None
    raise KeyError(f"{kind.__name__} lacks {name}")


def _one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    """The first of the types that fits: NamedTuples are told apart by their fields."""
    for kind in kinds:
        if kind is Any or (value is None) != (kind is type(None)):
            continue
        if not isinstance(value, dict) or not hasattr(kind, "_fields"):
            return restored(kind, value)
        if set(value) <= set(kind._fields):
            return restored(kind, value)
    if Any in kinds:
        return value
    raise TypeError(f"no {' or '.join(map(str, kinds))} has the fields {', '.join(value)}")
