"""A slide's own overview: the tissue that was found on it, and predictions laid over it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stfm_jax.data.lattice import spot_spacing_um
from stfm_jax.plots.slides import draw_spots, most_variable, scale_bar, shared_limits

_INCHES = 4.0  # longer side of a panel
_COLUMNS = 3
_MASK_COLOR = "#009E73"
_FADED = 0.35  # share of the overview's contrast under spots
MOST_PX = 1_200  # longer side of the overview that is drawn


def over_slide(
    overview: np.ndarray,
    mask: np.ndarray,
    um_per_px: float,
    coords_um: np.ndarray,
    predicted: np.ndarray,
    gene_names: Sequence[str],
    num_genes: int = 5,
    title: str = "",
) -> Figure:
    """The overview with the outline of its tissue, and maps of genes over it.

    Args:
      overview: [h, w, 3] uint8.
      mask: [h, w] bool.
      um_per_px: of both; their corner is the origin of the coordinates.
      coords_um: [n, 2] spots.
      predicted: [n, g].
      gene_names: [g].
      num_genes: those whose prediction varies most.
      title: over the figure.
    """
    genes = most_variable(predicted, num_genes)
    panels = 1 + len(genes)
    columns = min(_COLUMNS, panels)
    rows = -(-panels // columns)
    high, wide = overview.shape[:2]
    width, height = _INCHES * np.array([wide, high]) / max(wide, high)
    size = (max(width, 1.5) + 0.7) * columns, (height + 0.35) * rows + 0.5
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    _slide(axes[0], overview, mask, um_per_px)
    axes[0].set_title("tissue", fontsize=11)
    spacing = spot_spacing_um(coords_um)
    faded = np.round(255 - _FADED * (255.0 - overview)).astype(np.uint8)
    for ax, gene in zip(axes[1:], genes, strict=False):
        norm = shared_limits([predicted[:, gene]])
        spots = draw_spots(ax, coords_um, predicted[:, gene], spacing, norm)
        _slide(ax, faded, None, um_per_px)
        ax.set_title(gene_names[gene], fontsize=11)
        bar = figure.colorbar(spots, ax=ax, fraction=0.05, pad=0.02, shrink=0.85)
        bar.outline.set_visible(False)
    for ax in axes[panels:]:
        ax.set_axis_off()
    scale_bar(axes[0], np.array([[0.0, 0.0], [wide, high]]) * um_per_px, 0.01 * high * um_per_px)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _slide(ax: Axes, overview: np.ndarray, mask: np.ndarray | None, um_per_px: float) -> None:
    """The overview in micrometres, under what is there, with the outline of a mask."""
    high, wide = overview.shape[:2]
    step = max(1, -(-max(high, wide) // MOST_PX))
    extent = (0, wide * um_per_px, high * um_per_px, 0)
    ax.imshow(overview[::step, ::step], extent=extent, zorder=-1, aspect="equal")
    if mask is not None:
        y, x = (np.arange(0, n, step) * um_per_px for n in mask.shape)
        drawn = mask[::step, ::step].astype(float)
        if 0 < drawn.mean() < 1 and min(drawn.shape) > 1:
            ax.contour(x, y, drawn, levels=[0.5], colors=_MASK_COLOR, linewidths=1)
    ax.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
