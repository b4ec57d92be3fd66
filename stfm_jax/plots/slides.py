"""Pictures: data in, `matplotlib.figure.Figure` out.

No pyplot and so no global state; nothing here reads data or computes a score. `save` writes a
figure atomically.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from stfm_jax.data.lattice import spot_spacing_um
from stfm_jax.runtime import marks
from stfm_jax.runtime.files import atomic_path

# Okabe and Ito's colours, told apart by colour-blind readers too; light yellow left out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#666666"
_PANEL_INCHES = 2.6  # longer side of one map
_EXPRESSION_MAP = "viridis"
_DISTANCES = 50_000  # spots of a map of distances
MANY = 20_000  # spots of a map from which on they are averaged
PER_SQUARE = 4  # of them


def learning_curve(
    history: Mapping[str, Sequence] | Sequence[Mapping],
    chosen: Mapping[int | str, int] | None = None,
    loss: str = "train_loss",
    score: str = "validation",
) -> Figure:
    """Training loss above, validation score below, by epoch, a line per fold.

    Args:
      history: rows of history.csv (dictionaries), or a dictionary of columns: `epoch`, `fold`
        (may be absent), and the two columns named next. Empty, None or NaN: not measured.
      chosen: epoch chosen on the validation set, by fold; marked by a dot.
      loss: column of the training loss.
      score: column of the validation score.

    Returns:
      The figure.
    """
    folds = _series(history, (loss, score))
    chosen = {str(fold): epoch for fold, epoch in (chosen or {}).items()}
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for index, (fold, columns) in enumerate(folds.items()):
        color = COLORS[index % len(COLORS)]
        style = ("-", "--", ":")[index // len(COLORS) % 3]
        for ax, column in zip(axes, (loss, score), strict=True):
            measured = np.isfinite(columns[column])
            epochs, values = columns["epoch"][measured], columns[column][measured]
            # A single value is a point: a line through it would not be seen.
            marker = "." if len(values) == 1 else None
            ax.plot(epochs, values, style, color=color, lw=1.5, marker=marker, label=_label(fold))
        if fold in chosen:
            _mark_epoch(axes[1], columns["epoch"], columns[score], chosen[fold], color)
    axes[0].set_ylabel("training loss")
    axes[1].set_ylabel(score)
    axes[1].set_xlabel("epoch")
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes:
        _plain_axes(ax)
    if chosen:
        axes[0].plot([], [], "o", color="white", mec=_GREY, mew=1.5, label="chosen epoch")
    if len(folds) > 1 or chosen:
        first = 0 if len(folds) > 1 else 1
        handles, labels = axes[0].get_legend_handles_labels()
        axes[0].legend(handles[first:], labels[first:], frameon=False, fontsize=8, ncols=2)
    return figure


def _label(fold: str) -> str:
    return f"fold {fold}" if fold.isdigit() else fold


def _series(
    history: Mapping[str, Sequence] | Sequence[Mapping], columns: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """The history by fold: {fold: {"epoch" and each column: [epochs] float64}}."""
    if isinstance(history, Mapping):
        names = list(history)
        history = [
            dict(zip(names, row, strict=True)) for row in zip(*history.values(), strict=True)
        ]
    folds: dict[str, list[Mapping]] = {}
    for row in history:
        folds.setdefault(str(row.get("fold", "")), []).append(row)
    return {
        fold: {
            name: np.array([_number(row.get(name)) for row in rows]) for name in ("epoch", *columns)
        }
        for fold, rows in folds.items()
    }


def _number(value: object) -> float:
    return math.nan if value is None or value == "" else float(value)


def _mark_epoch(ax: Axes, epochs: np.ndarray, values: np.ndarray, epoch: int, color: str) -> None:
    ax.axvline(epoch, color=color, lw=0.8, alpha=0.35, zorder=0)
    at = np.flatnonzero((epochs == epoch) & np.isfinite(values))
    if len(at):
        ax.plot(epoch, values[at[-1]], "o", color="white", mec=color, mew=1.5, ms=6, zorder=3)


def _plain_axes(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#dddddd", lw=0.6)
    ax.set_axisbelow(True)


def spatial_maps(
    coords_um: np.ndarray,
    measured: np.ndarray | None,
    predicted: np.ndarray,
    gene_names: Sequence[str],
    scores: np.ndarray | None = None,
    draw: np.ndarray | None = None,
    num_best: int = 3,
    num_worst: int = 2,
    title: str = "",
) -> Figure:
    """Maps of the best and worst genes of one slide: measured | predicted (| one draw).

    The panels of a gene share colour limits (1st to 99th percentile over all of them), so that a
    prediction that is too smooth looks it. Spots are drawn in micrometres and tile the tissue at
    any size of the figure.

    Args:
      coords_um: [n, 2] spot centres in micrometres, y downwards as in the image.
      measured: [n, g] expression; None where there is none.
      predicted: [n, g].
      gene_names: [g].
      scores: [g] Pearson per gene, which ranks the genes; NaN (constant genes) are left out.
        None: the genes whose prediction varies most.
      draw: [n, g] one draw, for a third column.
      num_best: rows of best genes.
      num_worst: rows of worst genes; none without scores.
      title: over the figure, for example the slide's name.

    Returns:
      The figure.
    """
    panels = {"measured": measured, "predicted": predicted, "one draw": draw}
    panels = {name: np.asarray(v, np.float64) for name, v in panels.items() if v is not None}
    genes = _chosen_genes(np.asarray(predicted), scores, num_best, num_worst)
    coords = np.asarray(coords_um, np.float64)
    spacing = spot_spacing_um(coords)
    extent = np.ptp(coords, axis=0) + 2 * spacing
    width, height = np.maximum(_PANEL_INCHES * extent / extent.max(), 0.9)
    figure = Figure(
        figsize=(width * len(panels) + 1.5, (height + 0.2) * len(genes) + 0.6),
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
    axes = figure.subplots(len(genes), len(panels), squeeze=False)
    for row, gene in zip(axes, genes, strict=True):
        norm = shared_limits([values[:, gene] for values in panels.values()])
        for ax, values in zip(row, panels.values(), strict=True):
            spots = draw_spots(ax, coords, values[:, gene], spacing, norm)
        figure.colorbar(spots, ax=row, fraction=0.05, pad=0.02, shrink=0.85).outline.set_visible(
            False
        )
        row[0].set_ylabel(_row_label(gene_names[gene], scores, gene), fontsize=10)
    for ax, name in zip(axes[0], panels, strict=True):
        ax.set_title(name, fontsize=11)
    scale_bar(axes[-1, 0], coords, spacing)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def distance_map(coords_um: np.ndarray, distance: np.ndarray) -> Figure:
    """How far spots are from the training slides; of many spots some are drawn.

    Args:
      coords_um: [n, 2].
      distance: [n] over the median spot of a left-out training slide.
    """
    if len(coords_um) > _DISTANCES:
        some = np.random.default_rng(0).choice(len(coords_um), _DISTANCES, replace=False)
        coords_um, distance = coords_um[some], distance[some]
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    ax = figure.subplots()
    logs = np.log2(np.maximum(distance, 1e-3))
    spacing = spot_spacing_um(coords_um)
    drawn = draw_spots(ax, coords_um, logs, spacing, Normalize(-1.0, max(2.0, logs.max())))
    bar = figure.colorbar(drawn, ax=ax, shrink=0.8)
    bar.set_label("distance, log2 (0: as a left-out training slide)")
    scale_bar(ax, coords_um, spacing)
    return figure


def _chosen_genes(
    predicted: np.ndarray, scores: np.ndarray | None, num_best: int, num_worst: int
) -> list[int]:
    """Indices of the best genes, best first, then of the worst, worst last; no gene twice."""
    if scores is None:
        return most_variable(predicted, num_best + num_worst)
    order = np.argsort(-np.asarray(scores), kind="stable")  # NaN sorts last
    order = order[: int((~np.isnan(scores)).sum())].tolist() or [0]
    worst = order[num_best:]
    return order[:num_best] + worst[max(len(worst) - num_worst, 0) :]


def most_variable(predicted: np.ndarray, count: int) -> list[int]:
    """Columns of [n, g] that vary most over the spots, the most variable first."""
    return np.argsort(-predicted.var(axis=0), kind="stable")[:count].tolist()


def _row_label(gene: str, scores: np.ndarray | None, index: int) -> str:
    if scores is None or np.isnan(scores[index]):
        return str(gene)
    return f"{gene}\nPearson {scores[index]:.2f}"


def shared_limits(columns: Sequence[np.ndarray]) -> Normalize:
    pooled = np.concatenate(columns)
    low, high = np.percentile(pooled, [1, 99])
    if high <= low:  # a gene in very few spots
        low, high = pooled.min(), pooled.max()
    return Normalize(low, high if high > low else low + 1.0)


def draw_spots(
    ax: Axes, coords_um: np.ndarray, values: np.ndarray, diameter_um: float, norm: Normalize
) -> ScalarMappable:
    """Draws spots as discs of a size given in micrometres; equal aspect, y downwards, no frame.

    More than MANY are drawn as means over squares: discs would be smaller than what is printed, and
    where only some of the spots are given there would be holes.

    Args:
      ax: axes to draw into.
      coords_um: [n, 2].
      values: [n] what the colour shows.
      diameter_um: diameter of a disc.
      norm: colour limits.

    Returns:
      What was drawn, for a colour bar.
    """
    look = {"norm": norm, "cmap": _EXPRESSION_MAP, "rasterized": True}
    if len(coords_um) > MANY:
        drawn = ax.pcolormesh(*_squares(coords_um, values), **look)
    else:
        size = np.full(len(coords_um), diameter_um)
        drawn = EllipseCollection(
            size, size, np.zeros(len(size)), units="xy", offsets=coords_um,
            offset_transform=ax.transData, linewidth=0, **look,
        )  # fmt: skip
        drawn.set_array(values)
        ax.add_collection(drawn)
    low, high = coords_um.min(axis=0) - diameter_um, coords_um.max(axis=0) + diameter_um
    ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), xticks=[], yticks=[])
    ax.set_aspect("equal")
    ax.spines[:].set_visible(False)
    return drawn


def _squares(
    coords_um: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ma.MaskedArray]:
    """Edges along x and y of squares with some PER_SQUARE spots, and the means in them."""
    low, high = coords_um.min(axis=0), coords_um.max(axis=0)
    side = math.sqrt(PER_SQUARE * np.prod(np.maximum(high - low, 1e-6)) / len(coords_um))
    x, y = (np.arange(a, b + 2 * side, side) for a, b in zip(low, high, strict=True))
    bins = coords_um[:, 1], coords_um[:, 0]
    sums, *_ = np.histogram2d(*bins, bins=(y, x), weights=values)
    counts, *_ = np.histogram2d(*bins, bins=(y, x))
    return x, y, np.ma.masked_invalid(sums / np.where(counts, counts, np.nan))


def scale_bar(ax: Axes, coords_um: np.ndarray, spacing: float, right: bool = False) -> None:
    """A bar of 1, 2 or 5 times a power of ten, about a quarter of the width, under the spots.

    Args:
      ax: with the spots on it.
      coords_um: [n, 2] their centres.
      spacing: of the spots, micrometres.
      right: whether it ends at the last spot rather than begins at the first.
    """
    low, high = coords_um.min(axis=0), coords_um.max(axis=0)
    length = nice_length(0.3 * max(high[0] - low[0], spacing))
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    start, bottom = high[0] - length if right else low[0], high[1] + 2 * spacing
    ax.plot([start, start + length], [bottom] * 2, color="black", lw=2, clip_on=False)
    ax.annotate(
        label,
        (start + length / 2, bottom),
        xytext=(0, -3),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=8,
        annotation_clip=False,
    )


def nice_length(at_most: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `at_most` (> 0)."""
    power = 10.0 ** math.floor(math.log10(at_most))
    return max(step * power for step in (1, 2, 5) if step * power <= at_most * (1 + 1e-9))


def take_literally(figure: Figure) -> None:
    """Makes `$` in names of genes and slides a dollar; to matplotlib two of them are a formula."""
    for text in figure.findobj(Text):
        if "$" in text.get_text():
            text.set_parse_math(False)


def save(figure: Figure, path: str | os.PathLike, dpi: int = 150) -> None:
    """Writes the figure atomically; the suffix of `path` decides the format.

    Raises:
      InputError: the disk is full.
    """
    take_literally(figure)
    with atomic_path(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "stfm"}):
        named = {"Software": marks.made_by()} if temporary.suffix == ".png" else None
        figure.savefig(temporary, dpi=dpi, metadata=named)
