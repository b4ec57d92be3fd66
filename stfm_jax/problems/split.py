"""Counts of coarse spots split over finer ones: cases are `Pair`s, made by coarsening slides."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stfm_jax.data import coarsen, datasets
from stfm_jax.data.coarsen import Pair
from stfm_jax.data.datasets import Dataset
from stfm_jax.data.expression import (
    gene_counts,
    most_expressed_genes,
    most_variable_counts,
    require_genes,
)
from stfm_jax.data.folds import Fold
from stfm_jax.data.readers import h5ad
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.models.method import Method
from stfm_jax.models.parts import Split
from stfm_jax.ops import metrics, simplex
from stfm_jax.ops.neighbors import median_spacing
from stfm_jax.plots import slides as plots
from stfm_jax.plots import split as split_plots
from stfm_jax.problems.problem import Cases, Predicted, Problem
from stfm_jax.report import mixing
from stfm_jax.runtime import distributed
from stfm_jax.runtime.files import file_name
from stfm_jax.score import split as score
from stfm_jax.settings import Settings, setting

SCORED = 5000  # parents of a test sample, at most: its middle
THROWN = ("gaussian", "srast")  # methods whose mean's shares counts are thrown by, to compare draws
GENES_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class SplitSettings(Settings):
    """How children are grouped, and which genes are scored and trained on."""

    SECTION: ClassVar[str] = "coarsen"

    group: str = setting("2x2", one_of=(*coarsen.GROUPS, coarsen.SIZED, coarsen.NAMED))
    shift: tuple[int, int] = setting((0, 0))
    size_um: float = setting(0.0)
    image: bool = setting(False, at="srast.image")
    pool: int = setting(200, at="srast.pool", least=1)
    trained_on: int = setting(200, at="srast.trained_on", least=1)
    simulated_seeds: tuple[int, ...] = setting((), at="srast.simulated_seeds")
    num_genes: int = setting(50, at="data.num_genes", least=1)
    missing_genes: str = setting("error", at="data.missing_genes", one_of=("error", "drop"))
    whole: str = setting("largest_remainder", at="predict.whole", one_of=simplex.ALLOCATIONS)

    def __post_init__(self):
        super().__post_init__()
        if self.group == coarsen.SIZED and self.size_um <= 0:
            raise InputError(
                "config.coarsen.group=size needs the side of the squares, --config.coarsen.size_um."
            )

    def pair(self, slide: Slide) -> Pair:
        """A slide and its coarser self.

        Raises:
          InputError: it cannot be coarsened, or no parent gets two children.
        """
        pair = coarsen.coarsened(slide, self.group, self.shift, self.size_um)
        if pair.num_children.max() > 1:
            return pair
        apart = median_spacing(slide.coords_um)
        raise InputError(
            f"{slide.where}: each of its {pair.low.num_spots} parents has one child, so there is "
            f"nothing to split: its spots lie {apart:.0f} um apart. Choose larger groups (of "
            "squares, a larger --config.coarsen.size_um); for simulated tissue to train on, a "
            "smaller --config.data.tissue.pitch_um."
        )

    def scored_pair(self, slide: Slide) -> Pair:
        """The pair of a slide; of a large one its middle: SCORED parents, with their children."""
        pair = self.pair(slide)
        return pair if pair.low.num_spots <= SCORED else pair.of_parents(pair.middle(SCORED))


@dataclasses.dataclass(frozen=True)
class Truth:
    """The test samples of a fold."""

    names: tuple[str, ...]
    pairs: list[Pair]
    low: list[np.ndarray]  # [P_i, g] counts of the parents
    true: list[np.ndarray]  # [n_i, g] counts of the children


class SplitProblem(Problem):
    """Genes that are scored are never trained on, nor are test samples seen."""

    shown = ("pearson", "pearson_log1p", "ratio", "rmse", "ssim", "moran", "crps", "coverage80")
    explained = (
        "pearson: of counts, per gene over the fold's children, then the mean over genes; ratio: "
        f"of share - 1/s where the parent has {score.LEAST_COUNTS} counts"
    )
    compares_folds = True
    Settings = SplitSettings

    @property
    def sees_images(self) -> bool:
        return self.settings.image

    def read(self) -> Dataset:
        settings, config = self.settings, self.config
        if config.data.genes:
            raise InputError(
                "config.data.genes adds genes to a prediction of expression; a split has all genes "
                f"of its input, found {', '.join(config.data.genes)}; leave it out."
            )
        name = self.precomputed if settings.image else None
        simulated = settings.simulated_seeds
        if simulated and config.data.folds != "auto":
            raise InputError(
                "with config.srast.simulated_seeds every slide is tested and none trained on, "
                f"found config.data.folds={config.data.folds}; leave one of the two out."
            )
        dataset = datasets.load(config.data, config.encoder.dir, name, trained_on=not simulated)
        if simulated:
            dataset = _with_simulated(dataset, config.data.tissue, simulated)
        for slide in dataset.all:
            settings.pair(slide)
        return dataset

    def cases(self, dataset: Dataset, fold: Fold) -> Cases:
        settings, train, test = self.settings, dataset[fold.train], dataset[fold.test]
        scored, genes = self._genes(dataset, fold)
        pairs = [settings.scored_pair(slide) for slide in test]
        about = {
            "parents": [pair.low.num_spots for pair in pairs],
            "genes_trained_on": len(set().union(*genes.values())),
        }
        return Cases(
            fold, [settings.pair(slide) for slide in train], pairs, genes, tuple(scored), about
        )

    def every_case(self, dataset: Dataset) -> Cases:
        slides = self._trained_on_at_last(dataset)
        genes = self._training_genes(slides, set())
        names = Fold(tuple(slide.name for slide in slides), ())
        return Cases(names, [self.settings.pair(slide) for slide in slides], [], genes, ())

    def check_genes(self, dataset: Dataset) -> None:
        """The same check, but no slide is coarsened for it."""
        for fold in dataset.folds:
            self._genes(dataset, fold)
        self._training_genes(self._trained_on_at_last(dataset), set())

    def _trained_on_at_last(self, dataset: Dataset) -> list[Slide]:
        simulated = self.settings.simulated_seeds
        return dataset[dataset.folds[0].train] if simulated else dataset.all

    def _genes(self, dataset: Dataset, fold: Fold) -> tuple[list[str], dict[str, list[str]]]:
        """Genes to score, which every test slide has, and those of each training slide."""
        scored = self._scored_genes(dataset, fold)
        for slide in dataset[fold.test]:
            require_genes(slide, scored)
        return scored, self._training_genes(dataset[fold.train], set(scored))

    def _scored_genes(self, dataset: Dataset, fold: Fold) -> list[str]:
        """Chosen on the training slides; trained on simulated tissue, on the test slides."""
        settings = self.settings
        chosen_on = dataset[fold.test if settings.simulated_seeds else fold.train]
        if dataset.genes is not None:
            return datasets.choose_genes(dataset, chosen_on, self.config.data)
        others = dataset.all if settings.missing_genes == "drop" else ()
        pool = most_expressed_genes(chosen_on, settings.pool, others)
        return most_variable_counts(chosen_on, pool, settings.num_genes)

    def _training_genes(self, slides: Sequence[Slide], scored: set[str]) -> dict[str, list[str]]:
        """The most expressed genes of each slide but those that are scored.

        Raises:
          InputError: none is left.
        """
        most = self.settings.trained_on
        genes = {
            slide.name: [g for g in most_expressed_genes([slide], most) if g not in scored]
            for slide in slides
        }
        empty = [slide for slide in slides if not genes[slide.name]]
        if empty:
            raise InputError(
                f"{empty[0].where}: all of its {most} most expressed genes are scored, none is "
                "left to train on; lower --config.data.num_genes, or raise "
                "--config.srast.trained_on."
            )
        return genes

    def write_inputs(self, dataset: Dataset, workdir: Path, cache: Path) -> None:
        if not distributed.is_main():
            return
        for i, slide in enumerate(datasets.unseen(self.config.data)):
            name = "low.h5ad" if i == 0 else f"low_{i}.h5ad"
            h5ad.write(self.settings.pair(slide).low, workdir / name)

    def truth(self, cases: Cases) -> Truth:
        low = [gene_counts(pair.low, cases.scored) for pair in cases.test]
        true = [gene_counts(pair.high, cases.scored) for pair in cases.test]
        return Truth(cases.names.test, cases.test, low, true)

    def truth_arrays(self, truth: Truth) -> dict[str, np.ndarray]:
        coords = np.concatenate([pair.high.coords_um for pair in truth.pairs])
        true, low = np.concatenate(truth.true), np.concatenate(truth.low)
        return {"true": true, "low": low, "coords_um": coords}

    def num_spots(self, case: Pair) -> int:
        return case.high.num_spots

    def collected(self, predictions: Sequence[Any], cases: Cases) -> Predicted:
        both = [
            _whole_sample(parts, pair, len(cases.scored))
            for parts, pair in zip(predictions, cases.test, strict=True)
        ]
        means, draws = zip(*both, strict=True)
        return Predicted(list(means), list(draws) if len(draws[0]) else None)

    def scores(self, method: Method, predicted: Predicted, truth: Truth, seed: int):
        pairs, low, true = truth.pairs, truth.low, truth.true
        found = {method.name: score.score(pairs, low, predicted.means, true)}
        drawn = {}
        if predicted.draws is not None:
            drawn[method.draws_as] = predicted.draws
        if method.name in THROWN:
            drawn[f"{method.name}_multinomial"] = self._thrown(method, predicted, truth, seed)
        for name, draws in drawn.items():
            found[name] = score.score_draws(pairs, low, draws, true, seed)
        return found

    def _thrown(self, method: Method, predicted: Predicted, truth: Truth, seed: int):
        """The plain way to draws: counts thrown one by one by the mean's shares."""
        count, out = self.config.sample.draws, []
        for i, (pair, low, mean) in enumerate(
            zip(truth.pairs, truth.low, predicted.means, strict=True)
        ):
            rng = np.random.default_rng([seed, i, THROWN.index(method.name)])
            out.append(_throw(rng, pair, low, mean, count))
        return out

    def views(self, dataset: Dataset, fold: dict, truth: dict, values: np.ndarray):
        pairs, low = self._pairs(dataset, fold), np.split(truth["low"], _ends(fold["parents"]))
        seen = score.views(pairs, low, np.split(values, _ends(fold["spots"])))
        return {f", {name}": view for name, view in seen.items()}

    def measured(self, truth: dict) -> np.ndarray:
        return truth["true"]

    def _pairs(self, dataset: Dataset, fold: dict) -> list[Pair]:
        return [self.settings.scored_pair(dataset.slides[name]) for name in fold["test"]]

    def picture(self, workdir: Path, dataset, fold: dict, truth: dict, rows: Mapping) -> None:
        """The genes whose ratios are found best, at four resolutions."""
        n, parents, name = fold["spots"][0], fold["parents"][0], list(rows)[-1]
        pair = self.settings.scored_pair(dataset.slides[fold["test"][0]])
        low, true = truth["low"][:parents], truth["true"][:n]
        ours = rows[name]["mean"][:n]
        measured = score.ratios(pair, low, true)
        found = metrics.pearson_known(np.nan_to_num(score.ratios(pair, low, ours)), measured)
        best = np.argsort(-np.nan_to_num(found, nan=-1.0))[:GENES_SHOWN]
        columns = {"low resolution": low[:, best], name: ours[:, best], "measured": true[:, best]}
        if "bicubic" in rows and name != "bicubic":
            columns["bicubic"] = rows["bicubic"]["mean"][:n][:, best]
        if "one_draw" in rows[name]:
            columns["one draw"] = rows[name]["one_draw"][:n][:, best]
        figure = split_plots.maps(
            pair,
            columns,
            [fold["genes"][g] for g in best],
            [f"ratio {found[g]:.2f}" for g in best],
            f"{fold['test'][0]}: {parents} parents, {n} children; the genes found best",
        )
        plots.save(figure, workdir / f"maps_{file_name(fold['test'][0])}.png")

    def extras(self, workdir: Path, dataset: Dataset) -> dict[str, Any]:
        pairs = {slide.name: self.settings.scored_pair(slide) for slide in dataset.all}
        return {"mixing": mixing.write(workdir, pairs, self.config.seed)}

    def remarks(self, extras: Mapping[str, Any]) -> list[str]:
        found = extras["mixing"]
        each = ", ".join(f"{name} {value:+.3f}" for name, value in found.items())
        return [f"silhouette of samples by patient (0: mixed): {each}."] if found else []


def _with_simulated(dataset: Dataset, tissue: Any, seeds: Sequence[int]) -> Dataset:
    """One fold: trained on simulated tissue alone, tested on every slide of the data set."""
    simulated = datasets.simulated_slides(tissue, seeds)
    clash = simulated.keys() & dataset.slides.keys()
    if clash:
        raise InputError(f"slides and simulated sections are both called {', '.join(clash)}.")
    return dataclasses.replace(
        dataset,
        slides=simulated | dataset.slides,
        folds=(Fold(tuple(simulated), tuple(dataset.slides)),),
        folds_from="trained on simulated tissue alone, tested on every slide; the scored genes "
        "were chosen on the tested slides",
    )


def _whole_sample(parts: Any, pair: Pair, num_genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean counts [n, g] and draws in whole counts [draws, n, g] of all children."""
    mean, sampled = np.zeros((pair.high.num_spots, num_genes)), None
    part: Split
    for part in parts:
        if sampled is None:
            sampled = np.zeros((len(part.draws), *mean.shape), np.int32)
        mask = part.children >= 0
        children, gene = part.children[mask], np.repeat(part.pairs.gene, mask.sum(axis=1))
        mean[children, gene] = simplex.split(part.counts, part.mean, mask)[mask]
        for i, shares in enumerate(part.draws):
            whole = simplex.split_largest_remainder(part.counts, shares, mask)
            sampled[i, children, gene] = whole[mask]
    return mean, np.zeros((0, *mean.shape), np.int32) if sampled is None else sampled


def _throw(
    rng: np.random.Generator, pair: Pair, counts: np.ndarray, mean: np.ndarray, draws: int
) -> np.ndarray:
    """Counts [draws, n, g] of the children, thrown one by one by the shares of `mean` [n, g]."""
    table = pair.table()
    mask = table >= 0
    shares = mean[table].transpose(0, 2, 1)
    out = np.zeros((draws, *mean.shape), np.int32)
    for one in out:
        thrown = simplex.split_multinomial(rng, counts.astype(np.int64), shares, mask[:, None])
        one[table[mask]] = thrown.transpose(0, 2, 1)[mask]
    return out


def _ends(sizes: Sequence[int]) -> np.ndarray:
    """Where to cut what lies one after the other."""
    return np.cumsum(sizes)[:-1]
