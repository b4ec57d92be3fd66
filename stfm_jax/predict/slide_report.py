"""`OUT_report.html` beside a predicted slide: for a person who did not see the command.

Made from the output, its picture, the model and what its workdir knows of genes; nothing of the
slide but its pixels is in it: never its label or the text of its header.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from anndata.io import read_elem

from stfm_jax.data import feature_store
from stfm_jax.regression.features import FeatureTransform
from stfm_jax.report import page
from stfm_jax.report.card import terms
from stfm_jax.runtime.files import atomic_path, read_csv
from stfm_jax.store import Model

_LOG = logging.getLogger("stfm_jax")
GENES = 20  # of the table
TRUSTED = 0.3  # [ours] Pearson on held-out slides from which a gene's map says something
FAR, VERY_FAR = 1.0, 2.0  # [ours] standard deviations that a feature's mean is off on average


@contextlib.contextmanager
def warnings_said() -> Iterator[list[str]]:
    """What is logged as a warning while the block runs."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    _LOG.addHandler(handler)
    try:
        yield said
    finally:
        _LOG.removeHandler(handler)


def feature_shift(model: Model, features: feature_store.Features) -> float | None:
    """How far a slide's features lie from those of the training slides.

    The difference of the means, in standard deviations of the training spots, averaged over the
    features; a method that standardises each slide by itself takes a part of it out. None of a
    model that keeps no moments.
    """
    transform = _transform(model.state)
    if transform is None or len(transform.mean) != features.shape[1]:
        return None
    total = np.zeros(features.shape[1])
    for _, rows in feature_store.blocks(features):
        total += rows.sum(axis=0, dtype=np.float64)
    varies = transform.std > 1e-6
    off = np.abs(total / len(features) - transform.mean)[varies] / transform.std[varies]
    return float(np.minimum(off, 10).mean())


def _transform(state: Any) -> FeatureTransform | None:
    """The first that a state holds."""
    if isinstance(state, FeatureTransform):
        return state
    parts = state if isinstance(state, tuple) else ()
    return next((found for part in parts if (found := _transform(part)) is not None), None)


def gene_scores(folder: Path, method: str) -> dict[str, float]:
    """Mean Pearson of genes on held-out slides, by the workdir that a model's folder lies in."""
    rows = read_csv(folder.parents[3] / "per_gene.csv") if len(folder.parents) > 3 else []
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.get("method") == method and row.get("pearson"):
            found.setdefault(row["gene"], []).append(float(row["pearson"]))
    return {gene: float(np.mean(values)) for gene, values in found.items()}


def write(output: Path, model: Model, folder: Path, warned: list[str]) -> None:
    """Writes the report of a predicted slide beside it.

    Args:
      output: its .h5ad; a picture of the same name is put in.
      model: that predicted it.
      folder: of the model.
      warned: what was warned of.
    """
    with h5py.File(output) as file:
        about, genes = read_elem(file["uns/stfm"]), [str(g) for g in read_elem(file["var"]).index]
        spots = file["X"].shape[0]
        normalization = str(read_elem(file["uns/normalization"]))
    scores = {g: s for g, s in gene_scores(folder, model.method.name).items() if g in set(genes)}
    shift = about.get("feature_shift")
    notes = [*dict.fromkeys(warned), *_distance_warning(shift)]
    parts = [page.paragraph(_summary(model, about, spots, genes))]
    parts += [page.warning(note) for note in notes]
    drawn = output.with_suffix(".png")
    if drawn.exists():
        parts += [page.heading("Maps"), page.picture(drawn, "maps of genes over the slide")]
    parts += [page.heading("Genes to trust"), *_genes(scores)]
    parts += [page.heading("How far the slide is from what the model has seen"), _distance(shift)]
    parts += [page.heading("How it was made"), page.facts(_made(model, about, normalization))]
    parts += [page.paragraph("Not for clinical use.")]
    path = output.with_name(f"{output.stem}_report.html")
    with atomic_path(path) as temporary:
        temporary.write_text(page.page(output.stem, parts), encoding="utf-8")


def _summary(model: Model, about: dict[str, Any], spots: int, genes: list[str]) -> str:
    of = f" on {about['image']}" if "image" in about else ""
    return (
        f"Expression of {len(genes)} genes at {spots:,} spots{of}, predicted from the H&E image "
        f"by the method {model.method.name}. No expression was measured for it."
    )


def _genes(scores: dict[str, float]) -> list[str]:
    if not scores:
        return [page.paragraph("Not known here: the model came without its scores by gene.")]
    best = sorted(scores.items(), key=lambda item: -item[1])
    good = sum(score >= TRUSTED for score in scores.values())
    return [
        page.paragraph(
            f"On slides that were held out in training {good} of {len(scores)} genes reached a "
            f"Pearson correlation of {TRUSTED:g}. On another patient, organ, stain or scanner "
            "expect less. The best:"
        ),
        page.table(("gene", "Pearson"), [(gene, f"{score:.2f}") for gene, score in best[:GENES]]),
    ]


def _distance(shift: float | None) -> str:
    if shift is None:
        return page.paragraph("Not known: the model keeps no moments of its training features.")
    return page.paragraph(
        f"The mean of an image feature is {shift:.2f} standard deviations of the training spots "
        f"off, averaged over the features. Above {FAR:g} the slide looks unlike those the model "
        "has seen: another tissue, stain or scanner."
    )


def _distance_warning(shift: float | None) -> list[str]:
    if shift is None or shift < FAR:
        return []
    how = "very unlike" if shift >= VERY_FAR else "unlike"
    return [
        f"The slide looks {how} those the model was trained on ({shift:.1f} standard deviations "
        "off on average): do not trust its values without a check."
    ]


def _made(model: Model, about: dict[str, Any], normalization: str) -> dict[str, Any]:
    patients = {slide["patient"] for slide in model.slides.values()}
    known = {
        "image": "image",
        "um_per_px": "micrometres per pixel",
        "spacing_um": "spots apart, um",
        "lattice": "lattice",
        "tissue_share": "share of the slide that is tissue",
    }
    made = {said: _short(about[name]) for name, said in known.items() if name in about}
    made["values"] = f"{about.get('X', 'prediction')}, {normalization}"
    made["method"] = f"{model.method.name}, {'; '.join(model.method.papers) or 'stfm_jax'}"
    made["trained on"] = f"{len(model.slides)} slides of {len(patients)} patients"
    for encoder in filter(None, model.encoders):
        made[f"encoder {encoder}"] = terms(encoder)
    return made | {"stfm_jax": about.get("version", "")}


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else value
