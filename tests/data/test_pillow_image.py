"""Pictures that Pillow decodes whole: modes, transparency, strips, pixels as they are stored."""

import numpy as np
import pytest
from PIL import Image

from stfm_jax.data.images import pillow_image
from stfm_jax.data.images.pillow_image import PillowImage
from stfm_jax.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)


def read(path):
    image = PillowImage(path)
    return image.read(0, 0, 0, *image.size)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiffs_are_read_as_they_are_stored(tmp_path, orientation):
    """Pillow turns them, and others not."""
    picture = Image.fromarray(PIXELS).convert("CMYK")
    picture.save(tmp_path / "a.tif", tiffinfo={274: orientation})
    if orientation > 4:
        with pytest.raises(InputError, match=r"a\.tif: .* to be turned by 90 degrees"):
            PillowImage(tmp_path / "a.tif")
    else:
        np.testing.assert_array_equal(read(tmp_path / "a.tif"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBX"])
def test_opaque_pictures_of_any_mode_are_rgb(tmp_path, mode):
    picture = Image.fromarray(PIXELS).convert(mode)
    picture.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_shows_through_is_white(tmp_path, mode):
    """Of a palette, which names the colour that does, as well."""
    if mode == "P":
        picture = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2), "P")
        picture.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60, 70, 80, 90])
        picture.save(tmp_path / "a.png", transparency=0)
        wanted = [[255, 255, 255], [10, 20, 30], [40, 50, 60], [70, 80, 90]]
    else:
        colours = np.array([[0, 0, 0, 0], [80, 80, 80, 255], [90, 90, 90, 255], [0, 0, 0, 255]])
        picture = Image.fromarray(colours.astype(np.uint8).reshape(2, 2, 4), "RGBA")
        picture.convert(mode).save(tmp_path / "a.png")
        wanted = [[255] * 3, [80] * 3, [90] * 3, [0] * 3]
    np.testing.assert_array_equal(read(tmp_path / "a.png").reshape(4, 3), wanted)


def test_strips_make_a_whole(tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    for rows in (1, 7, 40, 64):
        monkeypatch.setattr(pillow_image, "_STRIP_ROWS", rows)
        np.testing.assert_array_equal(read(tmp_path / "a.png"), PIXELS)


@pytest.mark.parametrize("mode", ["I;16", "F", "I"])
def test_other_depths_are_refused(tmp_path, mode):
    Image.fromarray(PIXELS[..., 0].astype(np.int32)).convert(mode).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="expected an 8-bit colour image, found mode"):
        PillowImage(tmp_path / "a.tif")
