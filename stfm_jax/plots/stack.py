"""Pictures of a stack of sections: data in, `matplotlib.figure.Figure` out; see `plots.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stfm_jax.data.retrieval import Placed, Retrieved
from stfm_jax.plots.slides import (
    COLORS,
    draw_spots,
    scale_bar,
    shared_limits,
    spot_spacing_um,
)

_COLUMNS = 4  # pairs in a row
_PANEL_INCHES = 2.9  # of a pair; the two overlays above are twice as wide
_MAP_INCHES = 2.3  # longer side of one section's map
_KINDS = {True: ("measured", "#444444", "-", 1.0), False: ("generated", "#B04A00", "--", 1.5)}
_PALE, _OWN, _CROSS = "#dddddd", "#777777", "#D00000"
_WEIGHT_MAP = "viridis_r"


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


def gene_through_stack(
    names: Sequence[str],
    z_um: Sequence[float],
    coords_um: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    measured: Sequence[bool],
    gene: str,
    title: str = "",
) -> Figure:
    """One gene on every section of a stack: ascending z, one frame, one colour scale.

    Args:
      names: [s] of the sections, in any order.
      z_um: [s].
      coords_um: per section [n_i, 2] in the common frame, micrometres, y downwards.
      values: per section [n_i] expression; colours span the 1st to 99th percentile of all.
      measured: [s] which were measured (solid grey frame); the others are generated (dashed).
      gene: its name.
      title: behind the gene's name, for example the stack's.

    Returns:
      The figure: a map for each section, named and marked `measured` or `generated`.
    """
    low, high = _window(coords_um)
    order = np.argsort(z_um, kind="stable")
    columns = _grid_columns(len(order))
    figure, axes = _grid(-(-len(order) // columns), columns, high - low)
    norm = shared_limits([np.asarray(column, np.float64) for column in values])
    for ax, i in zip(axes.flat, order, strict=False):
        spots = draw_spots(ax, coords_um[i], values[i], spot_spacing_um(coords_um[i]), norm)
        _frame(ax, low, high, measured[i])
        _label(ax, names[i], f"z {z_um[i]:g} µm, {_KINDS[bool(measured[i])][0]}", measured[i])
    for ax in axes.flat[len(order) :]:
        ax.set_axis_off()
    _bar_below(axes[-1, 0], low, high)
    _color_bar(figure, axes, spots, gene)
    figure.suptitle(f"{gene}: {title}" if title else gene, fontsize=12)
    return figure


def why(
    sections: Sequence[Placed],
    target: int,
    spot: int,
    retrieved: Retrieved,
    measured: Sequence[bool],
    title: str = "",
) -> Figure:
    """Where the spots lie that were retrieved for one spot; the table of it is `why.table`.

    Args:
      sections: of the stack.
      target: index of the section whose spot it is.
      spot: its row there.
      retrieved: of all spots of the target.
      measured: per section, whether its expression was given; frames as in `gene_through_stack`.
      title: over the figure, for example the spot's name.

    Returns:
      The figure: a column for the own section and for each one that spots were retrieved from, in
      ascending z; whole above, around the spot below, where retrieved spots bear their weights.
    """
    weight, center = retrieved.weight[spot], sections[target].coords_um[spot]
    used = set(np.unique(retrieved.section[retrieved.weight > 0]).tolist()) | {target}
    shown = sorted(used, key=lambda s: sections[s].z_um)
    low, high = _window([sections[s].coords_um for s in shown])
    reach = np.linalg.norm(retrieved.offset_um[spot, weight > 0, :2], axis=1).max(initial=0.0)
    half = 1.15 * reach + 1.7 * spot_spacing_um(sections[target].coords_um)
    norm = Normalize(0, float(weight.max()))
    figure, axes = _grid(2, len(shown), high - low)
    for (above, below), s in zip(axes.T, shown, strict=True):
        at = (retrieved.section[spot] == s) & (weight > 0)
        coords, kept = sections[s].coords_um, retrieved.spot[spot, at]
        own = spot if s == target else None
        _draw_retrieved(above, coords, own, kept, weight[at], norm)
        _frame(above, low, high, measured[s])
        above.add_patch(Rectangle(center - half, 2 * half, 2 * half, fill=False, lw=0.8))
        above.plot(*center, "+", color=_CROSS, ms=9, mew=1.6)
        _draw_retrieved(below, coords, own, kept, weight[at], norm, edge=0.5)
        _frame(below, center - half, center + half, measured[s])
        # Behind the retrieved spots and their numbers, before the others.
        below.axvline(center[0], color=_CROSS, lw=1.0, zorder=1.5)
        below.axhline(center[1], color=_CROSS, lw=1.0, zorder=1.5)
        _write_weights(below, coords[kept], weight[at], norm)
        dz = f"dz {sections[s].z_um - sections[target].z_um:+g}".replace("-", "\u2212")
        line = f"{dz} µm, weight {weight[at].sum():.2f}" if own is None else "section of the spot"
        _label(above, sections[s].name, f"{line}\n{_KINDS[bool(measured[s])][0]}", measured[s])
    _bar_below(axes[0, 0], low, high)
    _bar_below(axes[1, 0], center - half, center + half)
    colors = ScalarMappable(norm, _WEIGHT_MAP)  # a section may have no retrieved spot
    _color_bar(figure, axes, colors, "weight of a retrieved spot")
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _grid_columns(num: int) -> int:
    """Columns of a grid of maps: up to five, whichever leave the fewest empty; more above 25."""
    if num <= 5:
        return num
    most = max(5, math.ceil(math.sqrt(1.6 * num))) if num > 25 else 5
    return min(range(most, most - 3, -1), key=lambda columns: -num % columns)


def _grid(rows: int, columns: int, extent_um: np.ndarray) -> tuple[Figure, np.ndarray]:
    """A figure with axes [rows, columns] for maps of the given extent."""
    width, height = np.maximum(_MAP_INCHES * extent_um / extent_um.max(), 1.7)
    figure = Figure(
        figsize=(width * columns + 1.1, (height + 0.45) * rows + 0.45), layout="constrained"
    )
    return figure, figure.subplots(rows, columns, squeeze=False)


def _window(coords_um: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Corners (low, high) that show all spots of all sections, with a margin."""
    pooled = np.concatenate(coords_um)
    low, high = pooled.min(axis=0), pooled.max(axis=0)
    margin = 0.02 * (high - low).max() + spot_spacing_um(coords_um[0])
    return low - margin, high + margin


def _frame(ax: Axes, low: np.ndarray, high: np.ndarray, measured: bool) -> None:
    """Shows the window and frames it as what it is; y downwards."""
    _, color, style, width = _KINDS[bool(measured)]
    ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]))
    ax.spines[:].set(visible=True, color=color, linestyle=style, linewidth=width)


def _label(ax: Axes, name: str, line: str, measured: bool) -> None:
    """The name, its middle left out where it is long, over a line of facts."""
    name = name if len(name) <= 26 else f"{name[:12]}…{name[-13:]}"
    ax.set_title(f"{name}\n{line}", fontsize=8, color=_KINDS[bool(measured)][1])


def _bar_below(ax: Axes, low: np.ndarray, high: np.ndarray) -> None:
    """A scale bar under the frame."""
    gap = 0.03 * (high - low).max()
    scale_bar(ax, np.stack([low, high]), 0.5 * gap)


def _color_bar(figure: Figure, axes: np.ndarray, colors: ScalarMappable, label: str) -> None:
    """One for all maps, about two maps high."""
    bar = figure.colorbar(
        colors, ax=axes, fraction=0.05, pad=0.02, aspect=25, shrink=min(0.9, 1.8 / len(axes))
    )
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=9)


def _draw_retrieved(
    ax: Axes,
    coords_um: np.ndarray,
    own: int | None,
    kept: np.ndarray,
    weight: np.ndarray,
    norm: Normalize,
    edge: float = 0.0,
) -> None:
    """All spots pale, the kept ones coloured by weight, the spot itself dark where it is here."""
    size = 0.95 * spot_spacing_um(coords_um)
    layers = [(slice(None), np.zeros(len(coords_um)), _PALE)]
    if len(kept):
        layers.append((kept, weight, None))
    if own is not None:
        layers.append(([own], np.zeros(1), _OWN))
    for order, (rows, values, color) in enumerate(layers):
        spots = draw_spots(ax, coords_um[rows], values, size, norm)
        spots.set(cmap=_WEIGHT_MAP, edgecolor="white", linewidth=edge, zorder=1 + order)
        if color is not None:
            spots.set(array=None, facecolor=color)


def _write_weights(ax: Axes, coords_um: np.ndarray, weight: np.ndarray, norm: Normalize) -> None:
    for (x, y), w in zip(coords_um, weight, strict=True):
        color = "white" if norm(w) > 0.45 else "black"
        text = f"{w:.2f}".removeprefix("0")
        ax.text(x, y, text, fontsize=6.5, color=color, ha="center", va="center")
