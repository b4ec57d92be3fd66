"""What does each part of `gated` bring on the test slides of a workdir's folds?

    python benchmarks/strangers.py --workdir=runs/patients

The workdir is that of any run with features; its folds say whether test slides are strangers. Every
row is a prediction in closed form, fitted anew: the flexible fit, the fit for strangers, and the
latter with one part other than it is. Scored by Pearson within slides, per gene, mean over slides,
genes and folds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import harness
import numpy as np
from ml_collections import ConfigDict

from stfm_jax import experiment
from stfm_jax.data.expression import expression
from stfm_jax.data.slide import Slide
from stfm_jax.models import gated, regression, strangers
from stfm_jax.models.forest import extra_trees
from stfm_jax.models.regression import RegressionSettings
from stfm_jax.ops import metrics
from stfm_jax.regression import regressors, targets
from stfm_jax.regression.features import window_mean
from stfm_jax.regression.regressors import Choice
from stfm_jax.score.expression import pearson_slide

Predicted = list[np.ndarray]  # of every test slide [n, g]


@dataclasses.dataclass(frozen=True)
class Far:
    """A fit for strangers, and how it is put together."""

    around: bool = False  # whether neighbourhoods are seen
    standardize: str = "slide"
    scaled: bool = True  # targets in units of their slide
    penalty: float = strangers.PENALTY
    explained: float = strangers.EXPLAINED
    smoothed: float = 0.5  # share of the mean of 9 spots


VARIANTS = {
    "far": Far(),
    "features standardised by training slides": Far(standardize="training"),
    "targets as they are": Far(scaled=False),
    "neighbourhoods seen": Far(around=True),
    "all axes": Far(explained=2.0),
    "a sixth of the penalty": Far(penalty=strangers.PENALTY / 6),
    "not smoothed": Far(smoothed=0.0),
    "smoothed wholly": Far(smoothed=1.0),
}


def of_far(far: Far, base: RegressionSettings, train, test, genes, seed: int) -> Predicted:
    """Predictions of the test slides by one such fit."""
    settings = dataclasses.replace(base, standardize=far.standardize)
    seen = regression.seen_of(settings, train, genes, far.around, seed)
    seen, scale = regression.scaled(seen) if far.scaled else (seen, None)
    x, y = seen.pooled
    ridge = regressors.fit("ridge", x, y, Choice(far.penalty * len(x), np.nan, np.nan))
    center = y.mean(axis=0)
    said = regressors.predict(ridge, x) - center
    axes = targets.leading_axes(said, far.explained)
    found = []
    for slide in test:
        own = regression.features_of(settings, seen.transform, slide, far.around)
        rough = (regressors.predict(ridge, own) - center) @ axes @ axes.T + center
        rough = rough if scale is None else targets.back(rough, scale)
        near = window_mean(rough.astype(np.float32), slide.coords_um, strangers.WINDOW)
        found.append((1 - far.smoothed) * rough + far.smoothed * near)
    return found


def of_near(base: RegressionSettings, train, test, genes, seed: int) -> dict[str, Predicted]:
    """The flexible fit and its parts."""
    seen = regression.seen_of(base, train, genes, True, seed)
    in_units, scale = regression.scaled(seen)
    fits = [regression.fitted(kind, train, in_units).regressor for kind in gated.LINEAR]
    near = gated.Near(
        *(targets.regressor_back(fit, scale) for fit in fits), extra_trees(seen, seed)
    )
    x = [regression.features_of(base, seen.transform, slide, True) for slide in test]
    return {
        "near": [gated.near_mean(near, part) for part in x],
        "kernel alone": [regressors.predict(near.kernel, part) for part in x],
    }


def rows_of(opened: experiment.Experiment, index: int) -> Iterator[tuple[str, float]]:
    """Scores of a fold, by name."""
    fold = opened.dataset.folds[index]
    train, test = opened.dataset[fold.train], opened.dataset[fold.test]
    cases, base = opened.problem.cases(opened.dataset, fold), RegressionSettings.of(opened.config)
    genes, seed = cases.scored, opened.seed
    true = [expression(slide, genes, base.normalization) for slide in test]
    found = of_near(base, train, test, genes, seed)
    for name, far in VARIANTS.items():
        found[name] = of_far(far, base, train, test, genes, seed)
    for share in (0.25, 0.5, 0.75):
        both = zip(found["near"], found["far"], strict=True)
        found[f"{share:.2f} near"] = [share * a + (1 - share) * b for a, b in both]
    for name, predicted in found.items():
        yield name, metrics.mean_over_genes(pearson_slide(predicted, true))[0]


def table(of_folds: Sequence[dict[str, float]], names: Sequence[str]) -> str:
    """A line for each row: its folds, and their mean."""
    rows = [
        {
            "what": what,
            **{name: f"{of[what]:.3f}" for name, of in zip(names, of_folds, strict=True)},
        }
        | {"mean": f"{np.mean([of[what] for of in of_folds]):.3f}"}
        for what in of_folds[0]
    ]
    return harness.table(rows, ("what", *names, "mean"))


def _tested(slides: Sequence[Slide]) -> str:
    return slides[0].name + (f"..{slides[-1].name}" if len(slides) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--workdir", type=Path, required=True, help="whose config says data and folds"
    )
    workdir = parser.parse_args().workdir
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    opened = experiment.embed_slides(experiment.open_experiment(config, workdir))
    folds = opened.dataset.folds
    scores = [dict(rows_of(opened, index)) for index in range(len(folds))]
    print(table(scores, [_tested(opened.dataset[fold.test]) for fold in folds]))


if __name__ == "__main__":
    main()
