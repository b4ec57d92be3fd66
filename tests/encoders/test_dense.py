"""The dense descriptor: near that of patches, the same whatever the file and the other spots."""

import numpy as np
import pytest
from encoders.test_stain_texture import draw_tissue
from PIL import Image
from slide_files import write_ome

from stfm_jax.data.image import H5Patches, ImagePatches
from stfm_jax.data.slide import SubsetPatches
from stfm_jax.encoders import dense, load, stain_texture
from stfm_jax.encoders.dense import StainTextureDense
from stfm_jax.encoders.encoder import StainTexture
from stfm_jax.errors import InputError

UM_PER_PX = 0.5
ENCODER = StainTextureDense(fields_um=(100.0,))


@pytest.fixture(scope="module", autouse=True)
def small_squares():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dense, "CORE_UM", 192)
        patched.setattr(dense, "MARGIN_UM", 112)
        patched.setattr(StainTextureDense, "AT_ONCE", 15)
        yield


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """640 x 480 um of drawn tissue, other nuclei in every part, as a picture and as a pyramid."""
    folder = tmp_path_factory.mktemp("dense")
    parts = [
        [draw_tissue(3 * i + j, nuclei=30 + 40 * i + 25 * j, stain=0.4 + 0.1 * j) for j in range(4)]
        for i in range(3)
    ]
    pixels = np.concatenate([np.concatenate(row, axis=1) for row in parts])
    Image.fromarray(pixels).save(folder / "a.png")
    return folder / "a.png", write_ome(folder / "a.ome.tif", pixels, UM_PER_PX)


@pytest.fixture(scope="module")
def coords():
    """Away from the edge in pixels of level 0."""
    return np.random.default_rng(0).uniform((110, 110), (1170, 850), (40, 2))


@pytest.fixture(scope="module")
def described(slide, coords):
    return features(slide[0], coords)


def features(path, coords, um_per_px=UM_PER_PX, encoder=ENCODER):
    return encoder.embed_slide(ImagePatches(path, coords, um_per_px), coords * um_per_px)


def apart(one, other, spread):
    return np.abs(one - other).mean(axis=0) / (spread.std(axis=0) + 1e-3)


def test_it_is_near_the_descriptor_of_patches(slide, coords, described):
    patches = features(slide[0], coords, encoder=StainTexture(fields_um=(100.0,)))
    assert described.shape == patches.shape and described.dtype == np.float32
    names = np.array(stain_texture.feature_names())
    fine = [any(x in name for x in ("colour", ".1um", ".2um")) for name in names]
    assert np.median(apart(described, patches, patches)[fine]) < 0.15
    for name in ("colour.H.g50", "colour.R.all", "glass.g90", "nuclei.above0.1.all"):
        column = described[:, names == name], patches[:, names == name]
        assert np.corrcoef(*(c.ravel() for c in column))[0, 1] > 0.98, name


def test_a_pyramid_gives_what_the_picture_does(slide, coords, described):
    """From the same level exactly; from a coarser one but for the rounding of its pixels."""
    one, other = (features(path, coords, 0.8) for path in slide)
    np.testing.assert_allclose(one, other, atol=1e-6)
    error = apart(features(slide[1], coords), described, described)
    assert np.median(error) < 0.02 and np.quantile(error, 0.95) < 0.2


def test_other_spots_and_their_order_do_not_matter(slide, coords, described, monkeypatch):
    order = np.random.default_rng(1).permutation(len(coords))
    np.testing.assert_allclose(features(slide[0], coords[order]), described[order], atol=1e-5)
    few = ENCODER.embed_slide(
        SubsetPatches(ImagePatches(slide[0], coords, UM_PER_PX), np.arange(5)), coords[:5]
    )
    np.testing.assert_allclose(few, described[:5], atol=2e-4)
    monkeypatch.setattr(dense, "IN_MEMORY", 0)
    np.testing.assert_array_equal(features(slide[0], coords), described)


def test_squares_leave_no_seam(slide, coords, described, monkeypatch):
    monkeypatch.setattr(dense, "CORE_UM", 1024)
    error = apart(features(slide[0], coords), described, described)
    assert np.median(error) < 0.01 and np.quantile(error, 0.95) < 0.1


def test_spots_on_the_edge_are_described(slide):
    edge = np.array([[0.0, 0.0], [1279.0, 959.0], [640.0, 2.0]])
    assert np.isfinite(features(slide[0], edge)).all()


def test_name_identity_and_what_it_needs(tmp_path, slide):
    encoder = load("stain_texture_dense")
    assert encoder == StainTextureDense() and encoder.identity == "stain_texture_dense_400um"
    assert encoder.width == StainTexture().width
    import h5py

    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["img"] = np.zeros((2, 224, 224, 3), np.uint8)
    with pytest.raises(InputError, match=r"needs the image of the slide.*take stain_texture"):
        encoder.embed_slide(H5Patches(tmp_path / "p.h5", np.arange(2)), np.zeros((2, 2)))
