"""Whether an image can be that of a slide's spots: what is said, and when nothing is."""

import numpy as np
import pytest
from PIL import Image
from test_tissue import UM, disc, overview

from stfm_jax.data import fit
from stfm_jax.data.image import ImagePatches
from stfm_jax.data.slide import Slide

TISSUE = disc(150, 200, 100)  # of 300 x 400 pixels
TICKS = np.stack(np.meshgrid(np.arange(6.0, 400, 12), np.arange(6.0, 300, 12)), axis=-1)
PLACES = TICKS.reshape(-1, 2)
ON = PLACES[TISSUE[PLACES[:, 1].astype(int), PLACES[:, 0].astype(int)]]  # pixels (x, y)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("fit") / "a.png"
    Image.fromarray(overview()).save(path)
    return path


def said(path, pixels, caplog, um=UM):
    caplog.clear()
    patches = ImagePatches(path, pixels, um)
    fit.say_odd(Slide("a", np.arange(len(pixels)).astype(str), pixels * um, patches=patches))
    return " ".join(caplog.messages)


def test_spots_on_the_tissue_of_their_image_are_not_remarked_on(picture, caplog):
    assert said(picture, ON, caplog) == ""
    assert said(picture, ON[::7], caplog) == ""
    assert said(picture, ON + 4.0, caplog) == ""  # half a spot beside


def test_places_of_a_smaller_image(picture, caplog):
    text = said(picture, ON * 0.3, caplog)
    reached = ", ".join(f"{v:.0f}" for v in (ON * 0.3).max(axis=0))
    assert f"spots reach to ({reached}), the tissue in {picture} to (" in text
    ends = [int(v) for v in text.split(" to (")[2].split(")")[0].split(", ")]
    np.testing.assert_allclose(ends, [300, 250], atol=6)
    assert "scaled down" not in said(picture, ON * 0.55, caplog)


def test_places_of_another_image(picture, caplog):
    """Fewer than half of them lie on the tissue, or half a spot beside it."""
    x, y = PLACES.astype(int).T
    beside = PLACES[~disc(150, 200, 120)[y, x]]
    some = ON[:: len(ON) // 100][:100]
    text = said(picture, np.concatenate([some, beside[:110]]), caplog)
    assert "48 % of its spots lie on the tissue in" in text and str(picture) in text
    assert said(picture, np.concatenate([some, beside[:90]]), caplog) == ""


def test_an_image_without_colours(tmp_path, caplog):
    grey = np.asarray(Image.fromarray(overview()).convert("L"))
    for off, warned in ((2, True), (3, False)):
        pixels = np.stack([grey.clip(5, 250)] * 3, axis=-1)
        pixels[..., 0] += off
        Image.fromarray(pixels).save(tmp_path / "a.png")
        text = said(tmp_path / "a.png", ON, caplog)
        assert ("a.png is grey; expected the colours of H&E" in text) == warned


def test_large_images_are_looked_at_small_and_larger_ones_not_at_all(picture, caplog, monkeypatch):
    """On an overview of 100 pixels the figures are those of the image all the same."""
    monkeypatch.setattr(fit, "_SIDE", 100)
    assert said(picture, ON, caplog) == ""
    text = said(picture, ON * 0.3, caplog)
    assert "spots reach to (" + ", ".join(f"{v:.0f}" for v in (ON * 0.3).max(axis=0)) in text
    ends = [int(v) for v in text.split(" to (")[2].split(")")[0].split(", ")]
    np.testing.assert_allclose(ends, [300, 250], atol=12)
    monkeypatch.setattr(fit, "_MOST_PIXELS", 300 * 400)
    assert said(picture, ON * 0.3, caplog)
    monkeypatch.setattr(fit, "_MOST_PIXELS", 300 * 400 - 1)
    assert said(picture, ON * 0.3, caplog) == ""


def test_spots_without_an_image_are_not_remarked_on(caplog):
    fit.say_odd(Slide("a", np.arange(len(ON)).astype(str), ON))
    assert not caplog.messages
