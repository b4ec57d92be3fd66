"""Pictures of super-resolution: maps of genes at two resolutions, and how samples mix.

As of all pictures no pyplot, and so no global state.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from stfm_jax.data.coarsen import Pair

_POINTS = 9000.0  # area of all marks of a map, points squared


def maps(pair: Pair, columns: Mapping[str, np.ndarray], genes, titles, title: str) -> Figure:
    """Genes in rows; log1p(counts) of every column on one scale.

    Args:
      pair: the sample.
      columns: name -> counts [n, k] of the children or [P, k] of the parents, which are shown per
        child.
      genes: [k] names.
      titles: [k] lines under the names.
      title: of the figure.
    """
    rows, count = len(genes), len(columns)
    figure = Figure(figsize=(2.5 * count, 2.4 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, count, squeeze=False)
    for i, gene in enumerate(genes):
        shown = {}
        for name, values in columns.items():
            low = len(values) == pair.low.num_spots and name == "low resolution"
            per_child = values[:, i] / pair.num_children if low else values[:, i]
            shown[name] = np.log1p(per_child)
        top = max(np.quantile(v, 0.995) for v in shown.values()) or 1.0
        for ax, (name, values) in zip(axes[i], shown.items(), strict=True):
            coarse = name == "low resolution"
            coords = (pair.low if coarse else pair.high).coords_um
            size = _POINTS / len(pair.high.coords_um)
            size = size * np.median(pair.num_children) if coarse else size
            mark = ax.scatter(
                *coords.T, c=values, s=size, marker="s", vmin=0, vmax=top, cmap="magma", lw=0
            )
            ax.set_aspect("equal")
            ax.invert_yaxis()
            ax.set_axis_off()
            if i == 0:
                ax.set_title(name, fontsize=10)
        axes[i, 0].text(
            -0.05, 0.5, f"{gene}\n{titles[i]}", transform=axes[i, 0].transAxes, rotation=90,
            ha="right", va="center", fontsize=8,
        )  # fmt: skip
        figure.colorbar(mark, ax=axes[i].tolist(), shrink=0.8, label="log1p(counts)")
    figure.suptitle(title, fontsize=11)
    return figure


def mixing(features: Mapping[str, np.ndarray], label: np.ndarray) -> Figure:
    """The first two principal axes of every kind of features, a colour for each label."""
    figure = Figure(figsize=(3.4 * len(features), 3.4), layout="constrained")
    axes = figure.subplots(1, len(features), squeeze=False)
    for ax, (name, values) in zip(axes[0], features.items(), strict=True):
        places = PCA(2, random_state=0).fit_transform(values)  # of a picture: no figure follows
        for one in np.unique(label):
            ax.scatter(*places[label == one].T, s=4, label=str(one), alpha=0.6, lw=0)
        ax.set(title=name, xticks=[], yticks=[])
    axes[0, -1].legend(markerscale=3, fontsize=8)
    return figure
