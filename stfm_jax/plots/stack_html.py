"""A stack of sections to turn and look into: a page for the browser, drawn by plotly.

The page holds plotly itself (5 MB) and so opens without a network; each spot adds some 20 bytes,
and 6 for each gene: 60,000 spots and 50 genes make about 25 MB. plotly is imported where it is
used; the extra `html` installs it.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stfm_jax.errors import InputError
from stfm_jax.plots.slides import shared_limits
from stfm_jax.runtime import marks
from stfm_jax.runtime.files import write_text

SHOWN = 60_000  # points that a browser still turns smoothly
_HEIGHT, _GAP = 0.8, 0.25  # of the stack, and between its sections, at most; shares of its width
_AROUND = {
    "legend": {
        "title": {"text": "a click hides or shows"},
        "itemsizing": "constant",
        "x": 1.0,
        "y": 0.0,
        "yanchor": "bottom",
    },
    "margin": {"l": 10, "r": 10, "t": 70, "b": 10},
}


def write(
    path: str | os.PathLike,
    coords3d: np.ndarray,
    values: Mapping[str, np.ndarray],
    labels: Sequence[str],
    measured: np.ndarray,
    title: str = "",
    stretch: float | None = None,
) -> None:
    """Writes the page, whole or not at all.

    A menu chooses the gene; a click on a section's name hides it; pointing at a spot shows its
    section, whether that was measured, its place and its value. Of more than SHOWN spots some are
    drawn, and the title says so.

    Args:
      path: of the .html file.
      coords3d: [n, 3] micrometres, common frame; y downwards as in the image, z upwards.
      values: per gene [n]; the first is shown first.
      labels: [n] section of each spot.
      measured: [n] bool; spots of measured sections are discs, those of generated ones diamonds.
      title: of the page, for example the name of the stack.
      stretch: how many times longer a micrometre is along z than in the plane; axis and labels
        say the true z. None: `automatic_stretch`.

    Raises:
      InputError: plotly is not installed; there is no gene; the disk is full.
    """
    drawn = figure(coords3d, values, labels, measured, title, stretch)
    drawing = drawn.to_html(full_html=False, include_plotlyjs=True, div_id="stack")
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{marks.html_tag()}\n<title>{html.escape(title or 'stack')}</title>\n"
        "<style>html, body {height: 100%; margin: 0;} body > div {height: 100%;}</style>\n"
        f"</head>\n<body>\n{drawing}\n</body>\n</html>\n"
    )
    write_text(path, page)


def automatic_stretch(coords3d: np.ndarray) -> float:
    """A round stretch of z by which the sections of [n, 3] are told apart, at least 1.

    The stack becomes at most 0.8 of its width high, the gap between neighbours at most 0.25 of it.
    """
    z = np.unique(coords3d[:, 2])
    width = np.ptp(coords3d[:, :2], axis=0).max()
    if len(z) < 2 or width == 0:
        return 1.0
    most = min(_HEIGHT * width / np.ptp(z), _GAP * width / np.median(np.diff(z)))
    power = 10.0 ** math.floor(math.log10(most))
    return max(1.0, power * math.floor(most / power))


def figure(
    coords3d: np.ndarray,
    values: Mapping[str, np.ndarray],
    labels: Sequence[str],
    measured: np.ndarray,
    title: str = "",
    stretch: float | None = None,
) -> Any:
    """The `plotly.graph_objects.Figure` that `write` writes: a trace for each section."""
    go = plotly()
    if not values:
        raise InputError("the 3D view of a stack shows genes, found none; name at least one.")
    coords3d, labels = np.asarray(coords3d, np.float64), np.asarray(labels).astype(str)
    measured, columns = np.asarray(measured, bool), {g: np.asarray(v) for g, v in values.items()}
    limits = {gene: shared_limits([column]) for gene, column in columns.items()}
    stretch = automatic_stretch(coords3d) if stretch is None else stretch
    notes = [f"z stretched {stretch:g} times"] if stretch != 1 else []
    scene, shown = _scene(coords3d, stretch), np.arange(len(coords3d))
    if len(shown) > SHOWN:
        notes.append(f"{SHOWN:,} of {len(shown):,} spots")
        shown = np.sort(np.random.default_rng(0).choice(shown, SHOWN, replace=False))
    groups = _groups(coords3d, labels, measured, shown)
    colors = {gene: [_short(column[at]) for at in groups] for gene, column in columns.items()}
    first, size = next(iter(colors)), _marker_size(len(shown) / len(groups))
    traces = [
        _trace(go, coords3d[at], color, labels[at[0]], measured[at[0]], size)
        for at, color in zip(groups, colors[first], strict=True)
    ]
    layout = {
        "title": {"text": _title(title, notes), "x": 0.5},
        "scene": scene,
        "coloraxis": {"colorscale": "Viridis", **_color_axis(first, limits[first])},
        "updatemenus": [_menu(colors, limits)],
    }
    return go.Figure(traces, _AROUND | layout)


def plotly() -> Any:
    """The library that draws the view.

    Raises:
      InputError: it is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise InputError(
            "the 3D view of a stack needs plotly, which is not installed: "
            'pip install "stfm_jax[html]", or set --config.predict.html=False.'
        ) from error
    return go


def _groups(coords3d, labels, measured, shown: np.ndarray) -> list[np.ndarray]:
    """The shown spots of every section, the sections in ascending z."""
    found = []
    for label in np.unique(labels[shown]):
        for is_measured in (True, False):
            at = shown[(labels[shown] == label) & (measured[shown] == is_measured)]
            if len(at):
                found.append(at)
    return sorted(found, key=lambda at: coords3d[at, 2].mean())


def _trace(
    go: Any, coords3d: np.ndarray, color: list[float], label: str, measured: bool, size: float
) -> Any:
    x, y, z = (np.round(axis, 1).tolist() for axis in coords3d.T)
    return go.Scatter3d(
        x=x,
        y=y,
        z=z,
        mode="markers",
        marker={
            "color": color,
            "coloraxis": "coloraxis",
            "size": size,
            "symbol": "circle" if measured else "diamond",
            "line": {"width": 0},
        },
        name=f"{html.escape(label)}, {'measured' if measured else 'generated'}",
        hovertemplate="<b>%{fullData.name}</b><br>value %{marker.color:.3f}<br>"
        "x %{x:.0f}, y %{y:.0f}, z %{z:.1f} µm<extra></extra>",
    )


def _marker_size(spots: float) -> float:
    """Such that the spots of a section nearly touch when the page opens."""
    return float(np.clip(4.0 * np.sqrt(600.0 / spots), 1.2, 6.0))


def _scene(coords3d: np.ndarray, stretch: float) -> dict:
    """Axes in true micrometres whose lengths on the screen are in proportion, z stretched."""
    low, high = coords3d.min(axis=0), coords3d.max(axis=0)
    width = max(np.ptp(coords3d[:, :2], axis=0).max(), 1.0)
    margin = 0.03 * width * np.array([1.0, 1.0, 1.0 / stretch])
    low, high = low - margin, high + margin
    x, y, z = (high - low) * [1.0, 1.0, stretch] / width
    ranges = ([low[0], high[0]], [high[1], low[1]], [low[2], high[2]])
    axes = {
        f"{name}axis": {"title": {"text": f"{name}, µm"}, "range": limits, "tickformat": "d"}
        for name, limits in zip("xyz", ranges, strict=True)
    }
    return axes | {
        "aspectmode": "manual",
        "aspectratio": {"x": x, "y": y, "z": z},
        "camera": {"eye": {"x": 0.6, "y": -1.8, "z": 0.75}, "center": {"x": 0, "y": 0, "z": -0.1}},
    }


def _title(title: str, notes: Sequence[str]) -> str:
    return "<br>".join([html.escape(title)] * bool(title) + [f"<sup>{'; '.join(notes)}</sup>"])


def _color_axis(gene: str, limits: Any) -> dict:
    bar = {"title": {"text": html.escape(gene)}, "len": 0.42, "y": 0.78, "thickness": 16}
    return {"cmin": limits.vmin, "cmax": limits.vmax, "colorbar": bar}


def _menu(colors: Mapping[str, list], limits: Mapping[str, Any]) -> dict:
    """The choice of the gene: colours of all traces, and the limits and name of the scale."""
    buttons = []
    for gene, of_traces in colors.items():
        scale = {
            "coloraxis.cmin": limits[gene].vmin,
            "coloraxis.cmax": limits[gene].vmax,
            "coloraxis.colorbar.title.text": html.escape(gene),
        }
        arguments = [{"marker.color": of_traces}, scale]
        buttons.append({"label": html.escape(gene), "method": "update", "args": arguments})
    return {"buttons": buttons, "x": 0, "y": 1, "xanchor": "left", "yanchor": "top"}


def _short(values: np.ndarray) -> list[float]:
    """Four significant digits: a colour needs no more, and the page is a third of the size."""
    return [float(f"{value:.4g}") for value in values]
