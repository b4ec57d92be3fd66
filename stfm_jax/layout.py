"""Where everything of an experiment lies in its workdir W.

W/config.json                     the resolved config
W/embeddings/                     features that were made here
W/dataset/                        the data set as --mode=export writes it
W/fold_<i>/fold.json, truth.npz   slides and genes of the fold; what was measured
W/fold_<i>/controls.json          scores of predictions that know the truth, where asked for
W/fold_<i>/<method>/seed_<s>/     select/, refit/ (train.stages), model/ (store), and
                                  scores.json, predictions.npz of the fold's test slides,
                                  fit_cost.json, predict_cost.json (runtime.cost)
W/final/<method>/seed_<s>/        the same of all slides, for prediction
W/metrics.json, per_gene.csv, history.csv, *.png   the report over the folds done so far
"""

from __future__ import annotations

from pathlib import Path

FINAL = "final"
FIT_COST, PREDICT_COST = "fit_cost.json", "predict_cost.json"
CONTROLS = "controls.json"
# What a run writes beside the folders of its folds; features that are there are read, not replaced.
_WRITTEN = (
    *("dataset", FINAL, "fold_*", "sections", "metrics.json", "per_gene.csv", "history.csv"),
    *("learning_curve.png", "maps_*.png", "registration.csv", "registration*.png"),
    *("slide.h5ad", "slide_*.h5ad", "low.h5ad", "low_*.h5ad", "latents.npz", "latents.png"),
)


def written_in(workdir: Path) -> list[Path]:
    """What is there of what a run writes, sorted."""
    return sorted({path for pattern in _WRITTEN for path in workdir.glob(pattern)})


def fold_folder(workdir: Path, fold: int | None) -> Path:
    """Folder of a fold, or of the models of all slides."""
    return workdir / (FINAL if fold is None else f"fold_{fold}")


def method_folder(place: Path, name: str, seed: int) -> Path:
    """Folder of a method, fitted with a seed, under a fold's."""
    return place / name / f"seed_{seed}"


def model_folder(place: Path, owner: str, seed: int) -> Path:
    """Where the state lies that a method fitted; `owner` as of `models.method.Method`."""
    return method_folder(place, owner, seed) / "model"


def folds_in(workdir: Path) -> list[int]:
    """Numbers of the folds that have a folder, ascending."""
    found = (path.name.removeprefix("fold_") for path in workdir.glob("fold_*"))
    return sorted(int(number) for number in found if number.isdecimal())


def seeds_in(place: Path, name: str) -> list[int]:
    """Seeds with which a method has a folder under a fold's, ascending."""
    found = (path.name.removeprefix("seed_") for path in (place / name).glob("seed_*"))
    return sorted(int(seed) for seed in found if seed.isdecimal())


def methods_in(workdir: Path) -> set[str]:
    """Names of the methods of which anything is there, of whatever fold and seed."""
    places = (*workdir.glob("fold_*"), workdir / FINAL)
    return {path.parent.name for place in places for path in place.glob("*/seed_*")}
