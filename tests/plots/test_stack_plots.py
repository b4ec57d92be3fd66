"""Pictures of a stack: what is on them."""

import numpy as np
import pytest

from stfm_jax.data.retrieval import Placed, Reach, retrieve
from stfm_jax.plots.stack import _grid_columns, gene_through_stack, registration_overlay
from stfm_jax.plots.stack import why as why_plot
from stfm_jax.predict import why


@pytest.mark.parametrize("num", [2, 5, 9])
def test_overlay_has_both_frames_and_every_pair_of_neighbours(num):
    ticks = 200.0 * np.arange(6)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    names = [f"S{i}" for i in range(num)]
    before = [grid + 900.0 * i for i in range(num)]
    captions = [f"residual {i} um" for i in range(num - 1)]
    figure = registration_overlay(names, before, [grid] * num, captions, title="stack")
    before_ax, after_ax, *pairs = figure.axes
    assert (before_ax.get_title(), after_ax.get_title()) == ("before", "after")
    assert [ax.get_xlabel() for ax in pairs] == captions
    assert all(a in ax.get_title() for a, ax in zip(names[1:], pairs, strict=True))
    assert len(before_ax.collections) == len(after_ax.collections) == num
    low, high = np.sort(before_ax.get_ylim())
    assert low < 0 and high > 900 * (num - 1) + 1000
    figure.canvas.draw()


def scattered(num, spots=60, seed=0):
    """Sections [n, 2] of one tissue, none on another's lattice."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(0, 3000, (spots + i, 2)) for i in range(num)]


def through(num, order=None):
    """A figure of a gene on `num` sections given in some order, its maps, and what was drawn."""
    order = range(num) if order is None else order
    coords, rng = scattered(num), np.random.default_rng(1)
    values = [rng.gamma(2.0, size=len(at)) + 0.5 * i for i, at in enumerate(coords)]
    figure = gene_through_stack(
        [f"S{i}" for i in order],
        [16.0 * i for i in order],
        [coords[i] for i in order],
        [values[i] for i in order],
        [i % 2 == 0 for i in order],
        "EPCAM",
        title="C",
    )
    return figure, [ax for ax in figure.axes if ax.collections and ax.axison], coords, values


def test_a_gene_is_shown_on_all_sections_from_below_in_one_frame_and_scale():
    figure, axes, coords, values = through(5, order=[3, 0, 4, 1, 2])
    axes = [ax for ax in axes if ax.get_label() != "<colorbar>"]
    assert len(axes) == 5
    limits = np.percentile(np.concatenate(values), [1, 99])
    for i, ax in enumerate(axes):
        kind = "measured" if i % 2 == 0 else "generated"
        assert ax.get_title() == f"S{i}\nz {16 * i} µm, {kind}"
        (spots,) = ax.collections
        np.testing.assert_array_equal(spots.get_offsets(), coords[i])
        np.testing.assert_array_equal(spots.get_array(), values[i])
        np.testing.assert_allclose(spots.get_clim(), limits)
        assert ax.get_xlim() == axes[0].get_xlim() and ax.get_ylim() == axes[0].get_ylim()
        assert ax.yaxis_inverted() and ax.get_aspect() == 1
    pooled = np.concatenate(coords)
    assert axes[0].get_xlim()[0] < pooled[:, 0].min() < pooled[:, 0].max() < axes[0].get_xlim()[1]
    assert figure.get_suptitle() == "EPCAM: C"


def test_generated_sections_are_framed_otherwise_than_measured_ones():
    axes = through(4)[1]
    frames = [(ax.spines["top"].get_edgecolor(), ax.spines["top"].get_linestyle()) for ax in axes]
    assert frames[0] == frames[2] != frames[1] == frames[3]
    assert all(spine.get_visible() for ax in axes[:4] for spine in ax.spines.values())


@pytest.mark.parametrize("num", [1, 3, 7, 20])
def test_one_colour_bar_one_scale_bar_and_nothing_over_another_thing(num):
    figure = through(num)[0]
    assert sum(ax.get_label() == "<colorbar>" for ax in figure.axes) == 1
    bars = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert bars == ["1 mm"]
    figure.canvas.draw()
    boxes = [ax.get_tightbbox() for ax in figure.axes if ax.axison]
    page = figure.bbox
    for i, box in enumerate(boxes):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        for other in boxes[:i]:
            apart = max(box.x0 - other.x1, other.x0 - box.x1, box.y0 - other.y1, other.y0 - box.y1)
            assert apart > -1


def test_names_that_are_too_long_keep_both_ends():
    name = "TENX94_Human_Breast_Cancer_section_12"
    coords = scattered(1)
    figure = gene_through_stack([name], [0.0], coords, [coords[0][:, 0]], [True], "A")
    shown = figure.axes[0].get_title().split("\n")[0]
    assert len(shown) <= 27 and name.startswith(shown[:12]) and name.endswith(shown[-12:])


@pytest.mark.parametrize(
    ("num", "columns"), [(1, 1), (5, 5), (6, 3), (7, 4), (8, 4), (10, 5), (20, 5), (60, 10)]
)
def test_grids_are_wide_and_nearly_full(num, columns):
    assert _grid_columns(num) == columns


SPOT, TARGET = 11, 2


@pytest.fixture(scope="module")
def placed():
    rng = np.random.default_rng(3)
    return [
        Placed(f"S{i}", at, 16.0 * i, rng.standard_normal((len(at), 5)))
        for i, at in enumerate(scattered(5))
    ]


@pytest.fixture(scope="module", params=[1, 2])
def found(request, placed):
    return retrieve(placed, TARGET, range(5), Reach(sections=request.param, kept=6))


def test_why_shows_the_retrieved_spots_where_they_are_with_their_weights(placed, found):
    measured = [True, True, False, False, True]
    figure = why_plot(placed, TARGET, SPOT, found, measured, title="spot")
    shown = sorted({*np.unique(found.section).tolist(), TARGET})
    maps = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    above, below = maps[: len(shown)], maps[len(shown) :]
    assert len(below) == len(shown)
    barcodes = [np.arange(len(section.coords_um)) for section in placed]
    rows = why.table(placed, barcodes, TARGET, SPOT, found, measured)
    for s, whole, near in zip(shown, above, below, strict=True):
        of_section = [row for row in rows if row["section"] == f"S{s}"]
        name, line, kind = whole.get_title().split("\n")
        assert (name, kind) == (f"S{s}", "measured" if measured[s] else "generated")
        weight = sum(row["weight"] for row in of_section)
        dz = f"{16 * (s - TARGET):+d}".replace("-", "\u2212")
        assert line == (
            "section of the spot" if s == TARGET else f"dz {dz} µm, weight {weight:.2f}"
        )
        numbers = [text for text in near.texts if "m" not in text.get_text()]  # not the scale bar
        assert len(numbers) == len(of_section)
        for row, text in zip(of_section, numbers, strict=True):
            place = placed[s].coords_um[int(row["barcode"])]
            np.testing.assert_allclose(text.get_position(), place)
            assert float(text.get_text()) == pytest.approx(row["weight"], abs=0.0051)
            inside = near.get_xlim()[0] < place[0] < near.get_xlim()[1]
            assert inside and near.get_ylim()[1] < place[1] < near.get_ylim()[0]
        for ax in (whole, near):
            pale, *others = ax.collections
            np.testing.assert_array_equal(pale.get_offsets(), placed[s].coords_um)
            assert bool(others) == bool(of_section or s == TARGET)


def test_why_marks_the_spot_on_every_section(placed, found):
    figure = why_plot(placed, TARGET, SPOT, found, [True] * 5)
    center = placed[TARGET].coords_um[SPOT]
    maps = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    above, below = np.split(np.array(maps), 2)
    for ax in above:
        (cross,) = (line for line in ax.lines if line.get_marker() == "+")
        np.testing.assert_array_equal(np.ravel(cross.get_data()), center)
    for ax in below:
        assert ax.lines[0].get_xdata()[0] == center[0] and ax.lines[1].get_ydata()[0] == center[1]
        np.testing.assert_allclose(np.mean(ax.get_xlim()), center[0])
        np.testing.assert_allclose(np.mean(ax.get_ylim()), center[1])
    figure.canvas.draw()
