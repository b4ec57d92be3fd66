"""Pictures of methods side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stfm_jax.data.lattice import spot_spacing_um
from stfm_jax.plots.slides import COLORS, draw_spots, shared_limits

_COLUMNS = 4
_LINE_INCHES = 0.28  # of a row of a chart
_FADED = "#bbbbbb"


def accuracy(cells: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Pearson of each method: a dot for the mean, small ones for the folds; best on top.

    Args:
      cells: by method, with `mean` and `folds`, as metrics.json has them.
    """
    figure, ax = _rows(list(cells))
    for i, cell in enumerate(cells.values()):
        folds = [math.nan if v is None else v for v in cell["folds"]]
        ax.plot(folds, np.full(len(folds), i), "o", ms=3.5, color=_FADED)
        ax.plot(cell["mean"], i, "o", ms=7, color=COLORS[0])
    ax.set_xlabel("Pearson, mean over genes (small: single folds)")
    return figure


def differences(against: Mapping[str, Mapping[str, float]], reference: str) -> Figure:
    """Each method's difference from a reference, with its interval; zero is the reference."""
    order = sorted(against, key=lambda name: -against[name]["difference"])
    figure, ax = _rows(order)
    for i, name in enumerate(order):
        found = against[name]
        above, below = found["low"] > 0, found["high"] < 0
        color = COLORS[2] if above else COLORS[1] if below else COLORS[6]
        ax.plot([found["low"], found["high"]], [i, i], color=color, lw=2)
        ax.plot(found["difference"], i, "o", ms=5, color=color)
    ax.axvline(0.0, color=_FADED, lw=1, zorder=0)
    ax.set_xlabel(f"Pearson less {reference}'s, 95 % interval (black: it holds 0)")
    return figure


def gene_scatter(per_gene: Mapping[str, Mapping[str, float]], reference: str) -> Figure:
    """Each gene's Pearson by a method against that by the reference, a panel for each method."""
    names = [name for name in per_gene if name != reference]
    rows = -(-len(names) // _COLUMNS)
    figure = Figure(figsize=(2.3 * _COLUMNS, 2.6 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False, sharex=True, sharey=True).ravel()
    values = [v for genes in per_gene.values() for v in genes.values()]
    low, high = min([*values, 0.0]) - 0.03, max([*values, 0.1]) + 0.03
    for ax, name in zip(panels, names, strict=False):
        shared = [gene for gene in per_gene[reference] if gene in per_gene[name]]
        x, y = ([per_gene[n][gene] for gene in shared] for n in (reference, name))
        ax.plot([low, high], [low, high], color=_FADED, lw=1, zorder=0)
        ax.plot(x, y, "o", ms=3, color=COLORS[0], alpha=0.7)
        ax.set_title(name, fontsize=9)
        ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in panels[len(names) :]:
        ax.set_axis_off()
    figure.supxlabel(reference, fontsize=9)
    return figure


def reliability(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Covered against nominal shares of central intervals, a line for each row."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color=_FADED, lw=1)
    for i, (name, (levels, covered)) in enumerate(curves.items()):
        ax.plot(levels, covered, "o-", ms=4, color=COLORS[i % len(COLORS)], label=name)
    ax.set(xlabel="nominal", ylabel="covered", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return figure


def maps(
    coords_um: np.ndarray, values: Mapping[str, np.ndarray], gene_names: Sequence[str]
) -> Figure:
    """Genes (columns) by method (rows) on one slide; a gene's panels share their colours.

    Args:
      coords_um: [n, 2].
      values: by method [n, g].
      gene_names: [g].
    """
    extent = np.ptp(coords_um, axis=0)
    wide, high = 2.1 * extent / max(extent.max(), 1e-9)
    figure = Figure(
        figsize=(
            max(wide, 0.8) * len(gene_names) + 1.4,
            (max(high, 0.8) + 0.1) * len(values) + 0.4,
        ),
        layout="constrained",
    )
    axes = figure.subplots(len(values), len(gene_names), squeeze=False)
    spacing = spot_spacing_um(coords_um)
    for j, gene in enumerate(gene_names):
        norm = shared_limits([shown[:, j] for shown in values.values()])
        for i, shown in enumerate(values.values()):
            draw_spots(axes[i, j], coords_um, shown[:, j], spacing, norm)
        axes[0, j].set_title(gene, fontsize=9)
    for i, name in enumerate(values):
        axes[i, 0].text(
            -0.05, 0.5, name, transform=axes[i, 0].transAxes, ha="right", va="center", fontsize=8
        )
    return figure


def _rows(names: Sequence[str]) -> tuple[Figure, Axes]:
    """A chart with a line for each name, the first on top."""
    figure = Figure(figsize=(7.2, _LINE_INCHES * len(names) + 0.8), layout="constrained")
    ax = figure.subplots()
    ax.set_yticks(range(len(names)), list(names), fontsize=9)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="x", color="#dddddd", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax
