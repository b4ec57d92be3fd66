"""Predicts the sections of a stack that were not measured, into one AnnData of the volume.

Each generated section is drawn given the measured ones; sections that are generated do not see one
another's expression, their images only.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stfm_jax.data import stack
from stfm_jax.data.expression import expression, require_genes
from stfm_jax.data.readers import h5ad
from stfm_jax.data.retrieval import retrieve
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.models.method import Section, gathered
from stfm_jax.models.neighbour_copy import in_stack
from stfm_jax.ops import metrics
from stfm_jax.plots import slides as plots
from stfm_jax.plots import stack as stack_plots
from stfm_jax.plots import stack_html
from stfm_jax.predict import outputs, volume, why
from stfm_jax.predict import slide as predict
from stfm_jax.predict.afterwards import afterwards
from stfm_jax.predict.features import arranged
from stfm_jax.runtime import marks
from stfm_jax.runtime.files import write_csv
from stfm_jax.store import Model

_LOG = logging.getLogger("stfm_jax")
MAPPED = 2  # genes of which a picture through the stack is drawn
IN_HTML = 12  # genes of the 3D view


@dataclasses.dataclass(frozen=True)
class StackInput:
    """The sections of one stack, registered, in order of height."""

    sections: list[Slide]  # those to generate without counts
    counts: dict[str, Slide]  # sections to generate that hold counts all the same, by name
    why: tuple[int, int] | None = None  # section and spot of which it is asked


def read_input(config: Any, model: Model) -> StackInput:
    """The stack to predict, in one frame.

    Raises:
      InputError: no stack, nothing to generate in it, features of another encoder or width, no
        place along z or in the common frame, a measured section that lacks the model's genes, or
        `predict.why` asks of no spot there is.
    """
    options = config.predict
    if options.image or options.embeddings:
        raise InputError(
            "a stack's features are read from its .h5ad files (obsm['features']), not from "
            "--config.predict.image or --config.predict.embeddings; store each section's there."
        )
    if options.html and options.maps:
        stack_html.plotly()  # missing, it is told before the work, not after the volume is written
    keywords = {
        "features_key": options.features_key,
        "spatial_unit": options.spatial_unit or None,
        "um_per_px": options.um_per_px,
        "tissue_mask": options.in_tissue,
    }
    path = Path(options.input)
    if path.resolve() == Path(options.output).resolve().parent:
        raise InputError(
            f"--config.predict.output: {options.output!r} lies in the folder of the sections, "
            "where it would be taken for one of them; choose another folder."
        )
    read = h5ad.read_folder_to_predict if path.is_dir() else h5ad.read_stack_to_predict
    slides, counts = _to_generate(read(path, **keywords), options.sections, str(path))
    patients = list(dict.fromkeys(slide.patient for slide in slides))
    if len(patients) > 1:
        raise InputError(
            f"{path}: expected the sections of one stack, found those of {len(patients)} patients "
            f"({', '.join(map(repr, patients[:3]))}); give one patient's at a time."
        )
    slides = stack.spaced(slides, config.data.section_spacing_um)
    (sections,) = stack.stacks(slides).values()
    sections = [_checked(model, slide) for slide in sections]
    asked = _asked_why(options.why, sections)
    placed, _ = stack.registered(sections, config.stack.registration, config.stack.flips)
    return StackInput(placed, counts, asked)


def _to_generate(
    slides: list[Slide], wanted: Sequence[str], where: str
) -> tuple[list[Slide], dict[str, Slide]]:
    """The slides, those to generate without counts; and such as had counts."""
    labels = {stack.label(slide) for slide in slides} | {slide.name for slide in slides}
    unknown = [name for name in wanted if name not in labels]
    if unknown:
        raise InputError(
            f"config.predict.sections: {where} has no section {unknown[0]!r}; it has "
            f"{', '.join(stack.label(s) for s in slides)}."
        )
    wanted, had, out = set(wanted), {}, []
    for slide in slides:
        if wanted & {stack.label(slide), slide.name} and slide.counts is not None:
            had[slide.name] = slide
            slide = dataclasses.replace(slide, counts=None, genes=None)
        out.append(slide)
    generated = [slide for slide in out if slide.counts is None]
    if not generated:
        raise InputError(
            f"{where}: every section is measured, so there is nothing to generate; leave a "
            "section's counts out, say obs['measured'] = False for it, or name it by "
            "--config.predict.sections."
        )
    if len(generated) == len(out):
        _LOG.warning("%s: no section is measured; images alone are looked at", where)
    return out, had


def _checked(model: Model, slide: Slide) -> Slide:
    """The slide with the features that the model sees."""
    if slide.features is None:
        raise InputError(
            f"{slide.where}: has no features; every section of the stack needs the embedding of "
            f"{model.encoder or 'the encoder the model was trained on'} in obsm."
        )
    _, slide = arranged(model, slide)
    model.method.check_input(slide)
    if slide.counts is not None:
        try:
            require_genes(slide, model.genes.targets)
        except InputError as error:
            raise InputError(
                f"{slide.where}: is measured, but not for all {len(model.genes.targets)} genes of "
                "the model; give it without counts to have it generated from the other sections. "
                f"({error})"
            ) from error
    return slide


def run(model: Model, given: StackInput, config: Any, checkpoint: Path) -> None:
    """Writes the volume to `config.predict.output`, and pictures beside it.

    OUT.h5ad as `volume.volume`; OUT.png, genes through the stack; OUT.html, the stack in 3D; and
    with `predict.why = SECTION:BARCODE` which spots of its neighbours a spot was told of, as
    OUT_why.csv and OUT_why.png. What generated sections hold of counts is compared, never seen.
    """
    output, genes = Path(config.predict.output), model.genes.scored
    results, drawn = [], False
    for index, slide in enumerate(given.sections):
        if slide.counts is not None:
            results.append(_measured(slide, genes, config.data.normalization))
        else:
            results.append(_generated(model, slide, index, given, config))
            drawn |= results[-1].std is not None
    adata = volume.volume(
        results,
        genes,
        config.data.normalization,
        predict.provenance(model, config, checkpoint, drawn) | {"encoder": model.encoder},
    )
    volume.write_volume(output, adata)
    _LOG.info(
        "%d sections, %d of them generated, %d spots, %d genes -> %s",
        len(results),
        sum(not r.measured for r in results),
        *adata.shape,
        output,
    )
    if config.predict.maps:
        with afterwards(output, "its pictures"):
            _draw(output, results, genes, config.predict.html)
    if given.why is not None:
        _explain(model, given.sections, *given.why, output)


def _measured(slide: Slide, genes: Sequence[str], normalization: str) -> volume.SectionResult:
    y = expression(slide, genes, normalization)
    return volume.SectionResult(slide, slide.registered_um, True, y, np.zeros_like(y), y, y)


def _generated(model: Model, slide, index, given: StackInput, config) -> volume.SectionResult:
    if model.method.trained_on(model.state, slide):
        _LOG.warning(
            "%s: the model was trained on this section; what it generates is no test of it",
            slide.where,
        )
    others = [s for s in given.sections if s is not slide]
    case = Section(slide, others, model.familiar(slide))
    request, genes = predict.request_of(model, config, index), model.genes.scored
    predicted, n, g = model.method.predict(model.state, case, request), slide.num_spots, len(genes)
    mean = gathered(predicted.mean, n)[:, :g]
    held = given.counts.get(slide.name)
    if held is not None and set(genes) <= set(held.genes):
        y = expression(held, genes, config.data.normalization)
        score = metrics.mean_over_genes(metrics.pearson(mean, y))[0]
        _LOG.info("%s: holds counts too: gene-wise Pearson %.3f", slide.where, score)
    if predicted.draws is None:
        return volume.SectionResult(slide, slide.registered_um, False, mean)
    draws = np.stack([gathered(draw, n)[:, :g] for draw in predicted.draws])
    spread = [metrics.quantiles(draws, p) for p in predict.QUANTILES.values()]
    std = draws.std(axis=0, ddof=1)
    return volume.SectionResult(slide, slide.registered_um, False, mean, std, *spread)


def _draw(output: Path, results: Sequence[volume.SectionResult], genes, html: bool) -> None:
    pooled = np.concatenate([r.mean for r in results])
    order = np.argsort(-pooled.var(axis=0), kind="stable")
    names = volume.section_labels([r.slide for r in results])
    z_um, measured = [r.slide.z_um for r in results], [r.measured for r in results]
    places = [r.registered_um for r in results]
    for i, gene in enumerate(order[:MAPPED]):
        figure = stack_plots.gene_through_stack(
            names, z_um, places, [r.mean[:, gene] for r in results], measured, genes[gene]
        )
        first = i == 0
        path = outputs.beside(output, "map") if first else outputs.gene_map(output, genes[gene])
        plots.save(figure, path)
    if html:
        sizes = [r.slide.num_spots for r in results]
        heights = np.repeat(z_um, sizes)[:, None]
        stack_html.write(
            outputs.beside(output, "3D view"),
            np.concatenate([np.concatenate(places), heights], axis=1),
            {genes[gene]: pooled[:, gene] for gene in order[:IN_HTML]},
            np.repeat(names, sizes),
            np.repeat(measured, sizes),
            title=output.stem,
        )


def _asked_why(asked: str, sections: Sequence[Slide]) -> tuple[int, int] | None:
    """Section and spot of SECTION:BARCODE."""
    if not asked:
        return None
    name, _, barcode = asked.partition(":")
    found = [i for i, s in enumerate(sections) if name in (stack.label(s), s.name)]
    if not found:
        known = ", ".join(stack.label(s) for s in sections)
        raise InputError(
            f"config.predict.why must be SECTION:BARCODE, found {asked!r}; sections are {known}."
        )
    at = np.flatnonzero(sections[found[0]].barcodes.astype(str) == barcode)
    if not len(at):
        example = str(sections[found[0]].barcodes[0])
        raise InputError(
            f"config.predict.why: section {name!r} has no spot {barcode!r}; barcodes look like "
            f"{example!r}."
        )
    return found[0], int(at[0])


def _explain(model: Model, sections, target: int, spot: int, output: Path) -> None:
    slide = sections[target]
    others = [s for s in sections if in_stack(s, slide)]
    ordered = sorted([slide, *others], key=lambda s: s.z_um)
    method = model.method
    placed = method.placed(model.state, ordered)
    own = ordered.index(slide)
    found = retrieve(placed, own, range(len(placed)), method.settings.reach)
    known = [s.counts is not None and method.expressed for s in ordered]
    barcodes = [s.barcodes for s in ordered]
    rows = why.table(placed, barcodes, own, spot, found, known)
    write_csv(outputs.beside(output, "table of why"), marks.marked(rows))
    title = f"{slide.name}, spot {slide.barcodes[spot]}: what it was told of"
    figure = stack_plots.why(placed, own, spot, found, known, title)
    plots.save(figure, outputs.beside(output, "picture of why"))
