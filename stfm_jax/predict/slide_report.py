"""`OUT_report.html` beside a predicted slide: for a person who did not see the command.

Made from the output, its picture and the model; nothing of the slide but its pixels is in it: never
its label or the text of its header.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from stfm_jax.plots import slides as plots
from stfm_jax.predict import outputs
from stfm_jax.report import page
from stfm_jax.report.card import terms
from stfm_jax.runtime.files import write_text
from stfm_jax.store import Model

_LOG = logging.getLogger("stfm_jax")
GENES = 20  # of the table
TRUSTED = 0.3  # [ours] Pearson on held-out slides from which a gene's map says something


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


def write(output: Path, model: Model, warned: list[str], drawn: Path | None) -> None:
    """Writes the report of a predicted slide beside it.

    Args:
      output: its .h5ad.
      model: that predicted it.
      warned: what was warned of.
      drawn: its map, to be put in; None where there is none.
    """
    with h5py.File(output) as file:
        about, genes = read_elem(file["uns/stfm"]), read_elem(file["var"])
        obs, coords_um = read_elem(file["obs"]), read_elem(file["obsm/spatial_um"])
        normalization = str(read_elem(file["uns/normalization"]))
    parts = [page.paragraph(_summary(model, about, len(obs), len(genes)))]
    parts += [page.warning(note) for note in dict.fromkeys(warned)]
    if drawn is not None:
        parts += [page.heading("Maps"), page.picture(drawn, "maps of genes over the slide")]
    parts += [page.heading("Genes to trust"), *_genes(genes)]
    parts += [page.heading("How far the slide is from what the model has seen")]
    parts += _distance(about)
    if "distance" in obs:
        figure = plots.distance_map(coords_um, obs["distance"].to_numpy())
        parts += [page.figure(figure, "map of the distance of each spot")]
    parts += [page.heading("How it was made"), page.facts(_made(model, about, normalization))]
    parts += [page.paragraph("Not for clinical use.")]
    write_text(outputs.beside(output, "report"), page.page(output.stem, parts))


def _summary(model: Model, about: dict[str, Any], spots: int, genes: int) -> str:
    of = f" on {about['image']}" if "image" in about else ""
    return (
        f"Expression of {genes} genes at {spots:,} spots{of}, predicted from the H&E image "
        f"by the method {model.method.name}. These are predictions, not measurements."
    )


def _genes(genes: pd.DataFrame) -> list[str]:
    known = genes[genes["expected_folds"] > 0].sort_values("expected_pearson", ascending=False)
    if known.empty:
        return [page.paragraph("Not known here: the model came without its scores by gene.")]
    good = int((known["expected_pearson"] >= TRUSTED).sum())
    low, high = (f"expected_pearson_q{q}" for q in (10, 90))
    rows = [
        (gene, f"{row['expected_pearson']:.2f}", _interval(row[low], row[high]))
        for gene, row in known.head(GENES).iterrows()
    ]
    return [
        page.paragraph(
            f"On slides that were held out in training {good} of {len(known)} genes reached a "
            f"Pearson correlation of {TRUSTED:g}. On another patient, organ, stain or scanner "
            "expect less. The best, and between what a further slide's lies 8 times in 10:"
        ),
        page.table(("gene", "Pearson", "further slides"), rows),
    ]


def _interval(low: float, high: float) -> str:
    return "" if np.isnan(low) else f"{low:.2f} to {high:.2f}"


def _distance(about: dict[str, Any]) -> list[str]:
    """What the output says of its distance; see `models.strangers`."""
    if "distance_ratio" not in about:
        return [page.paragraph("Not known: the method does not measure it.")]
    ratio, stranger = about["distance_ratio"], about["distance_stranger"]
    said = (
        f"The slide is {ratio:.2f} times as far from the training slides as these are from one "
        f"another. Up to {about['distance_usual']:.2f} is usual, from {stranger:.2f} on it is a "
        f"stranger. {round(100 * (1 - about['flexible_share']))} % of the prediction is of the fit "
        "for strangers."
    )
    if ratio > stranger:
        return [page.warning(said + " Do not trust its values without a check.")]
    return [page.paragraph(said)]


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
    counts = {"slide": len(model.slides), "patient": len(patients)}
    made["trained on"] = " of ".join(f"{n} {what}{'s' * (n > 1)}" for what, n in counts.items())
    for encoder in filter(None, model.encoders):
        made[f"encoder {encoder}"] = terms(encoder)
    return made | {"stfm_jax": about.get("version", "")}


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else value
