"""What is behind a slide's patches: the level that is fine enough, the image, some spots of it."""

import numpy as np
import pytest
from PIL import Image

from stfm_jax.data.image import ImagePatches
from stfm_jax.data.patches import at_scale, whole_image
from stfm_jax.data.slide import SubsetPatches
from stfm_jax.errors import InputError


class Stored:
    """Patches of one scale, without an image."""

    um_per_px = 0.5

    def read(self, indices, size_um):
        return np.full((len(indices), 2, 2, 3), indices[0], np.uint8)


@pytest.fixture
def source(tmp_path):
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    return ImagePatches(tmp_path / "a.png", np.array([[10.0, 5.0], [20.0, 30.0]]), 0.5)


def test_what_has_one_scale_keeps_it():
    stored = Stored()
    assert at_scale(stored, 4.0) is stored
    some = at_scale(SubsetPatches(stored, np.array([1])), 4.0)
    assert some.base is stored and some.um_per_px == 0.5
    assert some.read([0], 1.0)[0, 0, 0, 0] == 1


def test_an_image_is_asked_for_its_level():
    class Levels(Stored):
        def at(self, um_per_px):
            coarse = Stored()
            coarse.um_per_px = um_per_px / 2
            return coarse

    assert at_scale(Levels(), 4.0).um_per_px == 2.0
    assert at_scale(SubsetPatches(Levels(), np.array([0])), 4.0).um_per_px == 2.0


def test_the_image_and_where_its_spots_lie(source):
    for given, expected in (
        (source, [[5.0, 2.5], [10.0, 15.0]]),
        (SubsetPatches(source, np.array([1])), [[10.0, 15.0]]),
    ):
        image, um_per_px, coords_um = whole_image(given)
        assert image.size == (60, 40) and um_per_px == 0.5
        np.testing.assert_array_equal(coords_um, expected)
    for without in (Stored(), SubsetPatches(Stored(), np.array([0])), None):
        with pytest.raises(InputError, match="needs the image of the slide"):
            whole_image(without)
