"""The page of a comparison: which method for what, and all that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import stfm_jax
from stfm_jax.ops import metrics
from stfm_jax.plots import comparison as plots
from stfm_jax.report import page
from stfm_jax.report.compared import Part, notes_of, tables_of

FLOOR = "mean"  # the row that sees nothing
NEAR = 0.02  # [ours] of Pearson: as good as the best, for someone who waits
_NOTES = (
    "Everything is scored on slides that no method was fitted to. Pearson is per gene over the "
    "test spots of a fold, then the mean over genes. Intervals are of a paired bootstrap over "
    "blocks of tissue: they speak of new tissue of these slides, not of new patients. Seconds are "
    "of this machine, beside whatever else it did; what several methods compute alike is counted "
    "for the first of them; memory is the whole process's at its peak; size is the numbers that a "
    "trained model keeps. Rows of other groups' methods follow what their papers and code say and "
    "are no replication of published figures. Not for clinical use."
)


def page_of(
    parts: Sequence[Part],
    against: Mapping[str, Mapping[str, dict]],
    ranks: Mapping[str, float],
    reference: str,
    maps: int,
) -> str:
    """The HTML.

    Args:
      parts: in the order they are shown.
      against: by part and method, its difference from the reference with its interval.
      ranks: mean rank by method, best first.
      reference: method that the others are set against.
      maps: genes that are drawn by method.
    """
    body = [page.heading("Which method for what")]
    for part in parts:
        body += [page.paragraph(said) for said in _verdict(part)]
    body.append(page.paragraph(_scope(parts)))
    body += [
        page.heading("Rank"),
        page.paragraph(
            "Mean rank by Pearson over all folds of all parts; 1 would be the best in every one."
        ),
        page.table(("method", "mean rank"), [(name, f"{r:.1f}") for name, r in ranks.items()]),
    ]
    for part in parts:
        body += _part_html(part, against[part.name], reference, maps)
    body += [page.heading("How it was made"), page.facts(_made(parts))]
    body.append(page.paragraph(_NOTES))
    return page.page("Methods side by side", body)


def _verdict(part: Part) -> list[str]:
    """What a reader wants to know first."""
    if not part.of_slides:
        return [f"{part.name}: nothing was scored."]
    best, *others = part.of_slides
    top = part.value(best, "pearson")
    near = [n for n in others if part.value(n, "pearson") >= top - NEAR]
    said = [
        f"{part.name}. The most accurate mean is {best}'s, Pearson {top:.3f}"
        + (f"; within {NEAR:g} of it: {', '.join(near)}." if near else ".")
    ]
    timed = {n: part.costs.get(n, {}).get("fit_seconds", np.inf) for n in (best, *near)}
    quick = min(timed, key=timed.get)
    if quick != best and timed[quick] < timed[best]:
        said.append(
            f"Where time matters: {quick}, {part.value(quick, 'pearson'):.3f} after "
            f"{timed[quick]:.1f} s instead of {timed[best]:.1f} s of fitting."
        )
    if part.of_stacks:
        most = part.of_stacks[0]
        said.append(
            f"With neighbouring sections of the same tissue at hand: {most}, "
            f"{part.value(most, 'pearson'):.3f}."
        )
    drawn = [n for n in part.drawn if not (part.sees_stack(n) or np.isnan(part.value(n, "crps")))]
    if drawn:
        sharp = min(drawn, key=lambda name: part.value(name, "crps"))
        covered = part.value(sharp, "coverage80")
        said.append(
            f"For uncertainty, and for samples that look like tissue: {sharp}, the lowest CRPS "
            f"({part.value(sharp, 'crps'):.3f}); its 80 % intervals cover {covered:.0%}."
        )
    below = [n for n in part.means if n != FLOOR and part.value(n, "pearson") <= 0.02]
    if below:
        said.append(f"No better than the training mean here: {', '.join(below)}.")
    return said


def _scope(parts: Sequence[Part]) -> str:
    splits = dict.fromkeys(part.dataset.folds_from for part in parts)
    return f"What this holds for: {'; '.join(splits)}."


def _part_html(part: Part, against: Mapping[str, dict], reference: str, maps: int) -> list[str]:
    body = [page.heading(part.name)]
    for columns, rows in tables_of(part, against, reference):
        body.append(page.table(columns, [[str(c).replace("+-", "±") for c in r] for r in rows]))
    body += [page.paragraph(note.replace("+-", "±")) for note in notes_of(part)]
    drawn = [name for name in part.means if name != FLOOR] or part.means  # it leaves no room
    cells = {name: part.rows[name]["pearson"] for name in drawn}
    body.append(page.figure(plots.accuracy(cells), f"{part.name}: Pearson of each method"))
    set_against = {name: against[name] for name in drawn if name in against}
    if set_against:
        figure = plots.differences(set_against, reference)
        body.append(page.figure(figure, f"differences from {reference}"))
    per_gene = {name: genes for name, genes in _per_gene(part).items() if name != FLOOR}
    if reference in per_gene and len(per_gene) > 1:
        figure = plots.gene_scatter(per_gene, reference)
        body += [
            page.paragraph(f"Each gene's Pearson, by each method against {reference}:"),
            page.figure(figure, "gene by gene"),
        ]
    curves = _reliability(part)
    if curves:
        body += [
            page.paragraph("What central intervals of the draws cover, against what they should:"),
            page.figure(plots.reliability(curves), "reliability"),
        ]
    return [*body, *_maps(part, maps)]


def _per_gene(part: Part) -> dict[str, dict[str, float]]:
    """Pearson of each gene of the panel by method, means over folds and seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for f in part.folds:
        for scored in f.of_seeds.values():
            for name, row in scored.rows.items():
                for of_gene in row["per_gene"]:
                    value = of_gene.get("pearson")
                    chosen = of_gene["gene"] in f.fold["genes"]
                    if chosen and value is not None and np.isfinite(value):
                        found.setdefault(name, {}).setdefault(of_gene["gene"], []).append(value)
    return {
        name: {gene: float(np.mean(values)) for gene, values in genes.items()}
        for name, genes in found.items()
    }


def _reliability(part: Part) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Nominal levels and covered shares of each row of draws, means over folds and seeds."""
    found = {}
    for method in part.methods:
        kept = [
            scored.predictions[method.name]
            for f in part.folds
            for scored in f.of_seeds.values()
            if "covered" in scored.predictions.get(method.name, {})
        ]
        if kept:
            covered = np.mean([p["covered"] for p in kept], axis=0)
            found[method.draws_as] = kept[0]["levels"], covered
    return found


def _maps(part: Part, count: int) -> list[str]:
    """Genes by method on the first test slide of the first fold, as it was measured first."""
    if not part.folds or not part.folds[0].first.predictions:
        return []
    f = part.folds[0]
    size, true = f.fold["spots"][0], f.truth["expr"]
    named = {n: p["mean"] for n, p in f.first.predictions.items() if n != FLOOR}
    scores = np.mean([metrics.pearson(p, true) for p in named.values()], axis=0)
    genes = np.argsort(-np.nan_to_num(scores))[:count]
    figure = plots.maps(
        f.truth["coords_um"][:size],
        {"measured": true[:size, genes], **{n: p[:size, genes] for n, p in named.items()}},
        [f.fold["genes"][i] for i in genes],
    )
    return [
        page.paragraph(
            f"{f.fold['test'][0]}, held out: the genes that all methods together predict best."
        ),
        page.figure(figure, "maps of genes by method"),
    ]


def _made(parts: Sequence[Part]) -> dict[str, Any]:
    first = parts[0]
    return {
        "data": f"{first.config.data.reader}, {len(first.dataset.all)} slides",
        "features": first.dataset.all[0].encoder or first.config.encoder.name,
        "genes": f"{len(first.folds[0].fold['genes'])} scored" if first.folds else "",
        "seeds": ", ".join(map(str, first.seeds)),
        "epochs at most": first.config.train.epochs,
        "version": f"stfm_jax {stfm_jax.__version__}",
    }
