"""Expression of a slide's spots from its images, alone or with the other sections of its stack."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stfm_jax.data import datasets, stack
from stfm_jax.data.datasets import Dataset
from stfm_jax.data.expression import (
    expression,
    most_variable_genes,
    pearson_residuals,
    require_genes,
)
from stfm_jax.data.folds import Fold
from stfm_jax.data.programmes import programmes
from stfm_jax.data.readers import h5ad
from stfm_jax.data.registration import KINDS
from stfm_jax.data.slide import Slide
from stfm_jax.encoders.embed import embedded
from stfm_jax.models.method import EMBEDDING, STACK, Genes, Method, Section, gathered
from stfm_jax.models.neighbour_copy import StackSettings, neighbour_copy, own_features
from stfm_jax.ops import metrics
from stfm_jax.plots import slides as plots
from stfm_jax.plots import stack as stack_plots
from stfm_jax.problems.problem import Cases, Predicted, Problem
from stfm_jax.regression.features import fit_transform
from stfm_jax.runtime import distributed
from stfm_jax.runtime.files import file_name, write_csv
from stfm_jax.score import controls
from stfm_jax.score import expression as score
from stfm_jax.score.genes import gene_rows
from stfm_jax.score.programmes import LEAST, weights
from stfm_jax.settings import Settings, setting

_LOG = logging.getLogger("stfm_jax")


@dataclasses.dataclass(frozen=True)
class ExpressionSettings(Settings):
    """Genes, and the frame of stacks."""

    SECTION: ClassVar[str] = "data"

    num_genes: int = setting(50, least=1)
    genes: tuple[str, ...] = setting(())
    programmes: str = setting("")
    missing_genes: str = setting("error", one_of=("error", "drop"))
    section_spacing_um: float = setting(16.0)
    targets: int = setting(0, at="model.targets")
    registration: str = setting("rigid", at="stack.registration", one_of=KINDS)
    flips: bool = setting(True, at="stack.flips")


class Expression(Problem):
    """Cases are `Section`s; those of a stack know the training sections of it."""

    shown = (
        "pearson",
        "pearson_slide",
        "spearman",
        "mse",
        "gene_structure",
        "moran",
        "consistency",
        "crps",
        "coverage80",
        "width80",
    )
    explained = "pearson: per gene over the fold's test spots, then the mean over genes"
    of_slides = ("pearson_slide",)
    unit = " pearson"
    Settings = ExpressionSettings

    @property
    def stacked(self) -> bool:
        """Whether a method looks at other sections, which must then lie in one frame."""
        return any(STACK in method.needs for method in self.methods)

    @property
    def sees_images(self) -> bool:
        return any(EMBEDDING in method.needs for method in self.methods)

    def read(self) -> Dataset:
        settings = self.settings
        programmes(settings.programmes)
        dataset = datasets.load(self.config.data, self.config.encoder.dir, self.precomputed)
        lost = set(settings.genes) - set(datasets.genes_beside(dataset, (), self.config.data))
        if lost:
            _LOG.warning("left out, since some slides lack them: %s", ", ".join(sorted(lost)))
        if self.stacked:
            slides = stack.spaced(dataset.all, settings.section_spacing_um)
            dataset = dataset.with_slides(slides)
            stack.stacks(dataset.all)
        return dataset

    def cases(self, dataset: Dataset, fold: Fold) -> Cases:
        train, test = dataset[fold.train], dataset[fold.test]
        genes, added = self._genes(dataset, train)
        for slide in test:
            require_genes(slide, genes.targets)
        patients = {slide.patient for slide in train}
        seen = [
            [Section(slide, train, slide.is_of(patients)) for slide in part]
            for part in (train, test)
        ]
        return self._cases(fold, *seen, genes, added)

    def every_case(self, dataset: Dataset) -> Cases:
        slides = dataset.all
        genes = self._genes(dataset, slides)
        names = Fold(tuple(dataset.slides), ())
        return self._cases(names, [Section(s, slides) for s in slides], [], *genes)

    def _cases(self, names: Fold, train: list, test: list, genes: Genes, added: list[str]) -> Cases:
        panel = genes.scored[: len(genes.scored) - len(added)]
        about = {"added_genes": added} if added else {}
        return Cases(names, train, test, genes, panel, about, tuple(added))

    def _genes(self, dataset: Dataset, slides: Sequence[Slide]) -> tuple[Genes, list[str]]:
        """Genes to score, chosen on these slides, and to train on: the next most variable too.

        Also which of the scored ones, the last, were not chosen but added.
        """
        panel = datasets.choose_genes(dataset, slides, self.config.data)
        added = datasets.genes_beside(dataset, panel, self.config.data)
        targets, scored = self.settings.targets, (*panel, *added)
        if targets <= len(panel):
            return Genes(scored, scored), added
        wanted = min(targets, len(set.intersection(*(set(s.columns) for s in slides))))
        more = [g for g in most_variable_genes(slides, wanted) if g not in set(scored)]
        return Genes(scored, (*scored, *more)), added

    def placed(self, dataset: Dataset, workdir: Path) -> Dataset:
        """Stacks each in one frame; how well sections fit is written and drawn.

        Expression is not looked at.
        """
        if not self.stacked:
            return dataset
        settings = self.settings
        # Of all patients before anything is written: one may be refused.
        found = {
            patient: stack.registered(sections, settings.registration, settings.flips)
            for patient, sections in stack.stacks(dataset.all).items()
        }
        if distributed.is_main():
            _write_registration(workdir, found)
        distributed.barrier("registration")
        return dataset.with_slides([slide for placed, _ in found.values() for slide in placed])

    def write_inputs(self, dataset: Dataset, workdir: Path, cache: Path) -> None:
        unseen = datasets.unseen(self.config.data)
        if unseen and self.encoders:
            unseen = embedded(unseen, self.encoders, cache)
        if not self.stacked:
            for i, slide in enumerate(unseen):
                h5ad.write(slide, workdir / ("slide.h5ad" if i == 0 else f"slide_{i}.h5ad"))
        elif distributed.is_main():
            _write_sections(dataset.all, unseen, workdir)

    def truth(self, cases: Cases) -> score.TestSet:
        test, genes = [case.slide for case in cases.test], cases.genes.scored
        normalization = self.config.data.normalization
        expr = [expression(slide, genes, normalization) for slide in test]
        around = self._copies(cases) if self.stacked else None
        residuals = [pearson_residuals(slide, cases.scored) for slide in test]
        coords, domains = [slide.coords_um for slide in test], [slide.domains for slide in test]
        return score.TestSet(
            *(cases.names.test, coords, expr, around, residuals, len(cases.scored)),
            apart={gene: genes.index(gene) for gene in self.settings.genes if gene in genes},
            programmes=self._programmes(cases),
            domains=domains if any(names is not None for names in domains) else None,
        )

    def _programmes(self, cases: Cases) -> dict[str, np.ndarray]:
        """Weights of the genes by programme; says once which have too few genes."""
        listed, genes = programmes(self.settings.programmes), cases.genes.scored
        normalization = self.config.data.normalization
        train = [expression(case.slide, genes, normalization) for case in cases.train]
        found = weights(listed, genes, np.concatenate(train).std(axis=0))
        few = [name for name in listed if name not in found and name not in self._told]
        if few and (found or self.settings.programmes):
            names = ", ".join(few)
            _LOG.info(
                "fewer than %d genes of these programmes, not in every fold: %s", LEAST, names
            )
            self._told.update(few)
        return found

    @functools.cached_property
    def _told(self) -> set[str]:
        """Programmes of which it was said that they are left out."""
        return set()

    def _copies(self, cases: Cases) -> list[np.ndarray] | None:
        """What was measured around the test spots on neighbouring sections; None without any."""
        train, settings = [case.slide for case in cases.train], StackSettings.of(self.config)
        scaling = settings.seen.standardize, settings.seen.components
        # Of one seed whatever the config's: fits of all seeds are scored by the same truth.
        transform = fit_transform([s.features for s in train], *scaling, 0, train[0].widths)
        expr = [expression(s, cases.genes.scored, settings.seen.normalization) for s in train]
        copies = []
        for case in cases.test:
            own = own_features(transform, (*train, case.slide))
            copies.append(neighbour_copy(case.slide, train, expr, own, settings.reach))
        return None if any(copy is None for copy in copies) else copies

    def truth_arrays(self, truth: score.TestSet) -> dict[str, np.ndarray]:
        found = {"expr": truth.pooled, "coords_um": np.concatenate(truth.coords_um)}
        added = np.concatenate(truth.expr)[:, found["expr"].shape[1] :]
        return found | ({"expr_added": added} if added.shape[1] else {})

    def num_spots(self, case: Section) -> int:
        return case.slide.num_spots

    def collected(self, predictions: Sequence[Any], cases: Cases) -> Predicted:
        g, means, draws = len(cases.scored) + len(cases.added), [], []
        for predicted, case in zip(predictions, cases.test, strict=True):
            n = case.slide.num_spots
            means.append(gathered(predicted.mean, n)[:, :g])
            if predicted.draws is not None:
                draws.append(np.stack([gathered(d, n)[:, :g] for d in predicted.draws]))
        return Predicted(means, draws or None)

    def scores(self, method: Method, predicted: Predicted, truth: score.TestSet, seed: int):
        found = {method.name: score.score_point(predicted.means, truth)}
        if predicted.draws is not None:
            found[method.draws_as] = score.score_draws(predicted.draws, truth, seed)
        return found

    def controls(self, truth: score.TestSet, seed: int) -> dict[str, dict[str, float]]:
        made = controls.predictions(truth.expr, truth.coords_um, seed)
        return {name: score.score_point(prediction, truth) for name, prediction in made.items()}

    def kept(self, predicted: Predicted, true: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        panel, added = predicted.of(slice(true.shape[1])), predicted.of(slice(true.shape[1], None))
        found = super().kept(panel, true, seed)
        if panel.draws is not None:
            found |= score.reliability(panel.draws, true, seed)
        if added.means[0].shape[1]:
            found["mean_added"] = np.concatenate(added.means)
        return found

    def gene_rows(self, fold: int, method: str, found: dict, truth: dict, cases: Cases):
        rows = super().gene_rows(fold, method, found, truth, cases)
        if cases.added:
            arrays = found["mean_added"], truth["expr_added"]
            rows += gene_rows(fold, method, *arrays, cases.added)
        return rows

    def views(self, dataset, fold: dict, truth: dict, values: np.ndarray) -> dict[str, np.ndarray]:
        return {"": values}

    def measured(self, truth: dict) -> np.ndarray:
        return truth["expr"]

    def picture(self, workdir: Path, dataset, fold: dict, truth: dict, rows: Mapping) -> None:
        """Best and worst genes: measured, mean and, of a method that draws, one draw."""
        size, name = fold["spots"][0], list(rows)[-1]
        found = rows[name]
        scores = metrics.pearson(found["mean"], truth["expr"])
        drawn = found.get("one_draw")
        figure = plots.spatial_maps(
            truth["coords_um"][:size],
            truth["expr"][:size],
            found["mean"][:size],
            fold["genes"],
            scores=scores,
            draw=None if drawn is None else drawn[:size],
            title=f"{fold['test'][0]}: measured, {name}'s mean"
            + ("" if drawn is None else ", one draw"),
        )
        plots.save(figure, workdir / f"maps_{file_name(fold['test'][0])}.png")


def _write_registration(workdir: Path, found: Mapping[str, Any]) -> None:
    rows = [row for placed, fit in found.values() for row in stack.report(fit, placed)]
    for patient, (placed, fit) in found.items():
        figure = stack_plots.registration_overlay(
            [s.name for s in placed],
            [s.coords_um for s in placed],
            [s.registered_um for s in placed],
            [f"{pair.residual_um:.0f} um, {pair.overlap:.0%}" for pair in fit.pairs],
        )
        name = f"registration_{file_name(patient)}.png" if patient else "registration.png"
        plots.save(figure, workdir / name)
    write_csv(workdir / "registration.csv", rows)


def _write_sections(slides: Sequence[Slide], unseen: Sequence[Slide], workdir: Path) -> None:
    """Every section, a folder for each stack; those kept out of everything without counts."""
    bare = [dataclasses.replace(s, counts=None, genes=None) for s in unseen]
    for slide in (*slides, *bare):
        folder = workdir / "sections" / file_name(slide.patient or "stack")
        h5ad.write(
            dataclasses.replace(slide, registered_um=None), folder / f"{file_name(slide.name)}.h5ad"
        )
