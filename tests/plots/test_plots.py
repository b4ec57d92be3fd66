"""plots: what the figures hold (how they look is for people to judge)."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from stfm_jax.errors import InputError
from stfm_jax.plots import slides as plots


def lattice(hexagons=False, rows=12, columns=20, pitch=200.0):
    row, column = np.divmod(np.arange(rows * columns), columns)
    if hexagons:
        return pitch * np.stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2], axis=1)
    return pitch * np.stack([column, row], axis=1).astype(float)


def slide(g=7):
    rng, coords = np.random.default_rng(0), lattice()
    measured = rng.gamma(2.0, size=(len(coords), g))
    return coords, measured, 0.5 * measured + 0.5, [f"G{i}" for i in range(g)]


def maps_of(figure):
    """The axes that hold spots, as rows by label."""
    axes = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    return [ax for ax in axes if ax.collections]


@pytest.mark.parametrize("columns", [False, True])
def test_learning_curve_draws_every_fold_and_marks_the_chosen_epoch(columns):
    history = [
        {"fold": fold, "epoch": e, "train_loss": 1.0 / (e + 1), "validation": 0.1 * e + fold}
        for fold in (0, 1)
        for e in range(4)
    ]
    history[2]["validation"] = ""  # not measured at this epoch
    if columns:
        history = {name: [row[name] for row in history] for name in history[0]}
    figure = plots.learning_curve(history, chosen={0: 3, 1: 1})
    loss, score = figure.axes
    assert [line.get_label() for line in loss.lines][:2] == ["fold 0", "fold 1"]
    np.testing.assert_allclose(score.lines[0].get_xdata(), [0, 1, 3])
    dots = [line for line in score.lines if line.get_marker() == "o"]
    marked = [(float(d.get_xdata()[0]), float(d.get_ydata()[0])) for d in dots]
    assert marked == [(3.0, pytest.approx(0.3)), (1.0, pytest.approx(1.1))]


def test_learning_curve_without_folds_or_validation(tmp_path):
    history = {"epoch": [0, 1], "train_loss": [1.0, 0.5]}
    plots.save(plots.learning_curve(history), tmp_path / "curve.png")
    plots.save(plots.learning_curve([]), tmp_path / "empty.png")
    assert (tmp_path / "curve.png").stat().st_size > 0


def test_maps_show_the_best_and_the_worst_genes_and_no_constant_one():
    coords, measured, predicted, genes = slide()
    scores = np.array([0.1, 0.9, np.nan, 0.5, -0.2, 0.7, 0.3])
    figure = plots.spatial_maps(coords, measured, predicted, genes, scores)
    labels = [ax.get_ylabel().split("\n") for ax in maps_of(figure)[::2]]
    assert [gene for gene, _ in labels] == ["G1", "G5", "G3", "G0", "G4"]
    assert labels[0][1] == "Pearson 0.90"


@pytest.mark.parametrize(("g", "expected"), [(1, 1), (2, 2), (4, 4), (30, 5)])
def test_no_gene_is_shown_twice(g, expected):
    predicted = slide(g)[2]
    chosen = plots._chosen_genes(predicted, np.linspace(0, 1, g), 3, 2)
    assert len(chosen) == len(set(chosen)) == expected
    assert plots._chosen_genes(predicted, np.full(g, np.nan), 3, 2) == [0]


def test_panels_of_a_gene_share_colours_size_and_direction():
    coords, measured, predicted, genes = slide()
    figure = plots.spatial_maps(
        coords, measured, predicted, genes, np.linspace(0, 1, 7), draw=measured, title="C3"
    )
    axes = maps_of(figure)
    assert [ax.get_title() for ax in axes[:3]] == ["measured", "predicted", "one draw"]
    for row in (axes[:3], axes[3:6]):
        limits = {ax.collections[0].get_clim() for ax in row}
        assert len(limits) == 1
    low, high = axes[0].collections[0].get_clim()
    pooled = np.concatenate([measured[:, 6], predicted[:, 6], measured[:, 6]])
    np.testing.assert_allclose((low, high), np.percentile(pooled, [1, 99]))
    assert all(ax.yaxis_inverted() and ax.get_aspect() == 1 for ax in axes)
    np.testing.assert_array_equal(axes[1].collections[0].get_array(), predicted[:, 6])
    np.testing.assert_array_equal(axes[1].collections[0].get_offsets(), coords)


def test_maps_without_measurement_show_the_most_variable_genes():
    coords, _, predicted, genes = slide()
    predicted[:, 4] *= 10
    figure = plots.spatial_maps(coords, None, predicted, genes)
    axes = maps_of(figure)
    assert len(axes) == 5 and axes[0].get_ylabel() == "G4" and axes[0].get_title() == "predicted"


def test_colour_limits_of_rare_and_constant_genes_are_not_empty():
    rare = np.zeros(500)
    rare[3] = 2.0
    norm = plots.shared_limits([rare, np.zeros(500)])
    assert (norm.vmin, norm.vmax) == (0.0, 2.0)
    norm = plots.shared_limits([np.ones(5)])
    assert norm.vmax > norm.vmin


@pytest.mark.parametrize("hexagons", [False, True])
@pytest.mark.parametrize("share_left", [1.0, 0.8])
def test_spacing_is_the_pitch_even_of_lattices_with_holes(hexagons, share_left):
    coords = lattice(hexagons)
    coords = coords[np.random.default_rng(0).random(len(coords)) < share_left]
    coords = coords + np.random.default_rng(1).normal(size=coords.shape)
    assert plots.spot_spacing_um(coords) == pytest.approx(200.0, rel=0.03)


def test_spacing_of_scattered_and_of_few_spots():
    coords = np.random.default_rng(0).uniform(0, 1000, (400, 2))
    assert 45 < plots.spot_spacing_um(coords) < 65  # 1 / sqrt(density) = 50
    assert plots.spot_spacing_um(coords[:1]) > 0
    assert plots.spot_spacing_um(np.array([[0.0, 0.0], [0.0, 7.0]])) == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("at_most", "expected"), [(1, 1), (1.9, 1), (999, 500), (1000, 1000), (0.3, 0.2), (7200, 5000)]
)
def test_scale_bars_have_round_lengths(at_most, expected):
    assert plots.nice_length(at_most) == pytest.approx(expected)


def test_the_scale_bar_is_as_long_as_it_says():
    coords, measured, predicted, genes = slide()  # 3.8 mm wide
    ax = maps_of(plots.spatial_maps(coords, measured, predicted, genes, np.arange(7.0)))[-2]
    assert [text.get_text() for text in ax.texts] == ["1 mm"]
    assert np.ptp(ax.lines[0].get_xdata()) == 1000.0
    assert ax.lines[0].get_ydata()[0] > coords[:, 1].max()


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_save_writes_the_format_of_the_suffix_and_nothing_else(tmp_path, suffix):
    coords, measured, predicted, genes = slide(1)
    path = tmp_path / "new" / f"maps.{suffix}"
    plots.save(plots.spatial_maps(coords, measured, predicted, genes, np.ones(1)), path, dpi=40)
    assert path.read_bytes()[:4] in (b"\x89PNG", b"%PDF")
    assert os.listdir(path.parent) == [path.name]


def test_a_full_disk_leaves_no_picture(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(InputError, match="disk is full"):
        plots.save(plots.learning_curve([]), tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


def test_a_slide_of_one_spot_can_be_drawn(tmp_path):
    figure = plots.spatial_maps(np.zeros((1, 2)), None, np.ones((1, 2)), ["A", "B"])
    plots.save(figure, tmp_path / "one.png", dpi=40)


def test_no_pyplot_and_so_no_global_state():
    """In all that the command line imports."""
    code = "import sys, stfm_jax.cli; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_many_spots_are_means_over_squares_without_holes():
    axis = np.arange(300.0)
    coords = np.stack([a.ravel() for a in np.meshgrid(axis, axis)], axis=1)
    values = coords[:, 0] / 299 + np.random.default_rng(0).normal(size=len(coords))
    ax = Figure().subplots()
    drawn = plots.draw_spots(ax, coords, values, 1.0, Normalize(0, 5))
    means = drawn.get_array()
    assert plots.MANY < len(coords) and means.size < len(coords) / 3
    filled = means[:-1, :-1]
    assert not np.ma.is_masked(filled)
    assert filled[:, 0].mean() == pytest.approx(0.0, abs=0.2)
    assert filled[:, -1].mean() == pytest.approx(1.0, abs=0.2)
    assert filled.std() < 0.7  # of the spots 1.04
