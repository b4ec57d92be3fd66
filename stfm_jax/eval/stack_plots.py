"""Pictures of a stack of sections: data in, `matplotlib.figure.Figure` out; see `plots.py`."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from stfm_jax.eval.plots import COLORS, draw_spots, scale_bar, spot_spacing_um

_COLUMNS = 4  # pairs in a row
_PANEL_INCHES = 2.9  # of a pair; the two overlays above are twice as wide


def registration_overlay(
    names: Sequence[str],
    before_um: Sequence[np.ndarray],
    after_um: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """All sections' spots before and after registration, and each section on the next.

    Args:
      names: [s] of the sections, in the order of the stack.
      before_um: per section [n_i, 2] spot centres as they came, micrometres, y downwards.
      after_um: per section [n_i, 2] in the common frame.
      captions: [s - 1] a line for each pair of neighbours, for example its residual.
      title: over the figure.

    Returns:
      The figure: above, all sections before | after; below, a panel for each pair of neighbours,
      the first section as large discs and the second as small ones.
    """
    pairs = len(names) - 1
    rows = -(-pairs // _COLUMNS)
    figure = Figure(
        figsize=(_PANEL_INCHES * _COLUMNS, _PANEL_INCHES * (1.9 + rows) + 0.6),
        layout="constrained",
    )
    grid = figure.add_gridspec(1 + rows, _COLUMNS, height_ratios=[1.9] + [1.0] * rows)
    half = _COLUMNS // 2
    colors = _section_colors(len(names))
    for label, coords, columns in (
        ("before", before_um, slice(0, half)),
        ("after", after_um, slice(half, None)),
    ):
        ax = figure.add_subplot(grid[0, columns])
        _draw(ax, coords, colors, [0.4] * len(names))
        ax.set_title(label, fontsize=11)
        scale_bar(ax, np.concatenate(coords), spot_spacing_um(coords[0]), right=True)
        if label == "before":
            _legend(ax, names, colors)
    for i in range(pairs):
        ax = figure.add_subplot(grid[1 + i // _COLUMNS, i % _COLUMNS])
        _draw(ax, after_um[i : i + 2], (COLORS[5], COLORS[1]), (0.85, 0.4))
        ax.set_title(f"{names[i]} (large), {names[i + 1]} (small)", fontsize=9)
        if captions is not None:
            ax.set_xlabel(captions[i], fontsize=8)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _section_colors(num: int) -> list:
    """Distinct colours for few sections, a sequence along the stack for many."""
    if num <= len(COLORS):
        return list(COLORS[:num])
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 1, num)))


def _draw(
    ax: Axes, sections: Sequence[np.ndarray], colors: Sequence, diameters: Sequence[float]
) -> None:
    """Discs of the given diameters (in spot spacings) in one colour per section."""
    for coords, color, diameter in zip(sections, colors, diameters, strict=True):
        size = diameter * spot_spacing_um(coords)
        spots = draw_spots(ax, coords, np.zeros(len(coords)), size, Normalize(0, 1))
        spots.set(array=None, facecolor=color, alpha=0.75)
    pooled = np.concatenate(sections)
    margin = spot_spacing_um(sections[0])
    low, high = pooled.min(axis=0) - margin, pooled.max(axis=0) + margin
    ax.set(xlim=(low[0], high[0]), ylim=(high[1] + margin, low[1]))


def _legend(ax: Axes, names: Sequence[str], colors: Sequence) -> None:
    shown = range(len(names)) if len(names) <= 8 else (0, len(names) - 1)
    for i in shown:
        ax.plot([], [], "o", color=colors[i], label=names[i])
    ax.legend(loc="upper left", bbox_to_anchor=(0, 0), frameon=False, fontsize=8, ncols=8)
