"""The 3D view: what the page holds, how z is stretched, what is drawn of many spots."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from stfm_jax.errors import InputError
from stfm_jax.plots import stack_html

pytest.importorskip("plotly")


def stack(num=3, n=40, gap_um=16.0, width_um=6000.0):
    """coords3d, values, labels, measured; sections in descending z, every other one measured."""
    rng = np.random.default_rng(0)
    plane = rng.uniform(0, width_um, (num * n, 2))
    plane[0], plane[1] = 0.0, width_um
    section = np.repeat(np.arange(num)[::-1], n)
    coords = np.column_stack([plane, gap_um * section])
    values = {gene: rng.gamma(2.0, size=num * n) for gene in ("EPCAM", "A<B>&C")}
    return coords, values, [f"S{i}" for i in section], section % 2 == 0


def page(path, *arguments, **options):
    """(html, traces, layout) of a written page."""
    stack_html.write(path, *arguments, **options)
    text = path.read_text(encoding="utf-8")
    start = text.index("[", text.rindex("Plotly.newPlot("))
    traces, end = json.JSONDecoder().raw_decode(text, start)
    layout, _ = json.JSONDecoder().raw_decode(text, text.index("{", end))
    return text, traces, layout


def test_the_page_holds_every_value_of_every_gene(tmp_path):
    coords, values, labels, measured = stack()
    path = tmp_path / "new" / "stack.html"
    text, traces, layout = page(path, coords, values, labels, measured, title="C <1>")
    assert os.listdir(path.parent) == ["stack.html"]
    assert "<title>C &lt;1&gt;</title>" in text and "plotly.js v" in text
    assert "<script src=" not in text  # opens without a network
    assert [trace["name"] for trace in traces] == ["S0, measured", "S1, generated", "S2, measured"]
    assert [trace["marker"]["symbol"] for trace in traces] == ["circle", "diamond", "circle"]
    (menu,) = layout["updatemenus"]
    assert [button["label"] for button in menu["buttons"]] == ["EPCAM", "A&lt;B&gt;&amp;C"]
    for i, trace in enumerate(traces):
        at = np.array(labels) == f"S{i}"
        drawn = np.stack([trace["x"], trace["y"], trace["z"]], axis=1)
        np.testing.assert_allclose(drawn, coords[at], atol=0.06)
        assert trace["marker"]["color"] == menu["buttons"][0]["args"][0]["marker.color"][i]
        for button, column in zip(menu["buttons"], values.values(), strict=True):
            shown = button["args"][0]["marker.color"][i]
            np.testing.assert_allclose(shown, column[at], rtol=1e-3)


def test_all_sections_share_one_scale_that_the_menu_changes_with_the_gene(tmp_path):
    coords, values, labels, measured = stack()
    _, traces, layout = page(tmp_path / "a.html", coords, values, labels, measured)
    assert {trace["marker"]["coloraxis"] for trace in traces} == {"coloraxis"}
    scales = [button["args"][1] for button in layout["updatemenus"][0]["buttons"]]
    for scale, column in zip(scales, values.values(), strict=True):
        limits = scale["coloraxis.cmin"], scale["coloraxis.cmax"]
        np.testing.assert_allclose(limits, np.percentile(column, [1, 99]))
    first = layout["coloraxis"]
    assert first["cmin"] == scales[0]["coloraxis.cmin"]
    assert first["cmax"] == scales[0]["coloraxis.cmax"]
    assert first["colorbar"]["title"]["text"] == "EPCAM"


def test_pointing_at_a_spot_shows_section_kind_value_and_true_z(tmp_path):
    _, traces, layout = page(tmp_path / "a.html", *stack())
    for trace in traces:
        for part in ("%{fullData.name}", "%{marker.color", "%{z"):
            assert part in trace["hovertemplate"]
    assert layout["scene"]["yaxis"]["range"][0] > layout["scene"]["yaxis"]["range"][1]


@pytest.mark.parametrize(("given", "expected"), [(None, 90), (20, 20), (1, 1)])
def test_z_is_stretched_on_the_screen_and_true_on_the_axis(given, expected):
    coords, *rest = stack(num=2)
    figure = stack_html.figure(coords, *rest, title="T", stretch=given)
    scene = figure.layout.scene
    length = {axis: np.ptp(scene[f"{axis}axis"].range) for axis in "xyz"}
    shown = {axis: scene.aspectratio[axis] / length[axis] for axis in "xyz"}
    assert shown["y"] == pytest.approx(shown["x"])
    assert shown["z"] / shown["x"] == pytest.approx(expected)
    said = f"z stretched {expected} times" in figure.layout.title.text
    assert said == (expected != 1)
    assert set(np.concatenate([trace.z for trace in figure.data])) == {0.0, 16.0}


@pytest.mark.parametrize(
    ("num", "gap_um", "expected"),
    [(2, 16, 90), (5, 16, 70), (20, 16, 10), (1, 16, 1), (3, 5000, 1), (2, 0.01, 100_000)],
)
def test_automatic_stretch_is_round_and_keeps_the_stack_lower_than_wide(num, gap_um, expected):
    coords = stack(num, gap_um=gap_um)[0]
    assert stack_html.automatic_stretch(coords) == pytest.approx(expected)
    assert stack_html.automatic_stretch(np.zeros((3, 3))) == 1


def test_of_many_spots_some_are_drawn_and_the_title_says_so(monkeypatch):
    coords, values, labels, measured = stack()
    monkeypatch.setattr(stack_html, "SHOWN", 50)
    figure = stack_html.figure(coords, values, labels, measured, title="T")
    assert sum(len(trace.x) for trace in figure.data) == 50
    assert "50 of 120 spots" in figure.layout.title.text
    by_place = {tuple(np.round(c, 1)): v for c, v in zip(coords, values["EPCAM"], strict=True)}
    for trace in figure.data:
        for x, y, z, color in zip(trace.x, trace.y, trace.z, trace.marker.color, strict=True):
            assert color == pytest.approx(by_place[x, y, z], rel=1e-3)
    monkeypatch.setattr(stack_html, "SHOWN", 120)
    whole = stack_html.figure(coords, values, labels, measured, title="T")
    assert "spots" not in whole.layout.title.text


def test_missing_plotly_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(InputError, match=r'pip install "stfm_jax\[html\]"'):
        stack_html.write(tmp_path / "a.html", *stack())
    assert not os.listdir(tmp_path)


def test_no_gene_is_refused(tmp_path):
    coords, _, labels, measured = stack()
    with pytest.raises(InputError, match="name at least one"):
        stack_html.write(tmp_path / "a.html", coords, {}, labels, measured)


def test_plotly_is_not_needed_until_a_page_is_written():
    code = "import sys, stfm_jax.plots.stack_html; sys.exit('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
