"""Tissue on drawn overviews: what is stained is found, ink, borders, dust and glass are not."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.color import rgb_from_hed
from slide_files import ArrayImage

from stfm_jax.data import tissue
from stfm_jax.data.lattice import covering, find_lattice
from stfm_jax.errors import InputError

UM = tissue.OVERVIEW_UM
SHAPE = (300, 400)


def overview(density=0.5, glass=(240, 240, 243), seed=0):
    """A disc of tissue of 100 pixels' radius in the middle, half haematoxylin and half eosin."""
    rng = np.random.default_rng(seed)
    stains = np.zeros((*SHAPE, 3))
    texture = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2)
    texture = np.clip(1 + 2 * texture, 0.3, 2)
    stains[disc(150, 200, 100)] = 1
    stains[:, :200, 1] = 0
    stains[:, 200:, 0] = 0
    od = np.clip((stains * density * texture[..., None])[..., :2] @ rgb_from_hed[:2], 0, None)
    noise = rng.normal(0, 1.5, (*SHAPE, 3))
    return np.clip(np.asarray(glass) * 10**-od + noise, 0, 255).astype(np.uint8)


def disc(y, x, radius):
    rows, columns = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def agreement(mask, wanted):
    return (mask & wanted).sum() / (mask | wanted).sum()


@pytest.mark.parametrize(("density", "least"), [(0.15, 0.85), (0.5, 0.93), (1.2, 0.93)])
@pytest.mark.parametrize("glass", [(240, 240, 243), (255, 255, 255), (235, 215, 235)])
def test_pale_and_dark_tissue_on_any_glass(density, least, glass):
    mask, threshold = tissue.of_overview(overview(density, glass), UM)
    assert agreement(mask, disc(150, 200, 100)) > least
    assert 0.03 <= threshold <= 0.12


@pytest.mark.parametrize(
    "ink", [(20, 90, 30), (20, 30, 140), (10, 10, 12)], ids=["green", "blue", "black"]
)
def test_ink_is_no_tissue(ink):
    marked = overview()
    marked[20:50, 20:380] = ink
    mask, _ = tissue.of_overview(marked, UM)
    assert not mask[15:50].any()
    assert agreement(mask[60:], disc(150, 200, 100)[60:]) > 0.95


def test_black_borders_grey_dust_and_small_pieces_are_left_out():
    spoilt = overview()
    spoilt[:, :30] = 3
    spoilt[250:290, 330:380] = 120  # grey
    spoilt[20:30, 100:110] = overview()[150:160, 150:160]  # 80 x 80 um of tissue
    mask, _ = tissue.of_overview(spoilt, UM)
    assert agreement(mask, disc(150, 200, 100)) > 0.95
    assert not mask[:, :30].any() and not mask[250:290, 330:].any() and not mask[20:30].any()


def test_large_holes_stay_and_small_ones_are_filled():
    holed = overview()
    holed[disc(150, 160, 25)] = (240, 240, 243)
    holed[disc(150, 240, 5)] = (240, 240, 243)
    mask, _ = tissue.of_overview(holed, UM)
    assert not mask[150, 160] and mask[150, 240]


def image_of(picture):
    return ArrayImage([picture], UM)


def test_no_tissue_and_odd_shares(caplog):
    blank = np.full((*SHAPE, 3), 240, np.uint8) + np.random.default_rng(0).integers(
        0, 6, (*SHAPE, 3), dtype=np.uint8
    )
    for picture in (blank, np.zeros_like(blank)):
        with pytest.raises(InputError, match=r"no tissue .* 3\.2 x 2\.4 mm.*tissue_threshold"):
            tissue.find(image_of(picture), UM)
    with caplog.at_level("WARNING", "stfm_jax"):
        found = tissue.find(image_of(overview()), UM)
        assert not caplog.records and found.share == pytest.approx(np.pi / 12, rel=0.05)
        tissue.find(image_of(overview()[110:190, 160:240]), UM)
        assert "100.0 % of the slide were taken" in caplog.text
    fewer = tissue.find(image_of(overview(0.2)), UM, threshold=0.15)
    assert fewer.threshold == 0.15 and fewer.share < found.share


def test_the_mask_does_not_hang_on_the_levels():
    """The same slide at 2 um with levels, and at 8 um without."""
    fine = np.repeat(np.repeat(overview(), 4, axis=0), 4, axis=1)
    deep = tissue.find(ArrayImage([fine, fine[::2, ::2], fine[::4, ::4]]), 2.0)
    np.testing.assert_array_equal(deep.mask, tissue.find(image_of(overview()), UM).mask)


def test_places_on_tissue():
    found = tissue.find(image_of(overview()), UM)
    coords = np.array([[1600.0, 1200.0], [10.0, 10.0], [-5.0, 3.0], [1e5, 1200.0]])
    np.testing.assert_array_equal(found.at(coords), [True, False, False, False])


@pytest.mark.parametrize("kind", ["hex", "square"])
def test_a_lattice_covers_the_slide(kind):
    size = (5_100.0, 4_300.0)
    points = covering(size, 100.0, kind)
    assert (points > 0).all() and (points < size).all()
    expected = 5_100 * 4_300 / (100**2 * (np.sqrt(0.75) if kind == "hex" else 1))
    assert len(points) == pytest.approx(expected, rel=0.03)
    lattice, _ = find_lattice(points, "it")
    assert lattice.kind == kind
    np.testing.assert_allclose(np.linalg.norm(lattice.basis, axis=1), 100.0, rtol=1e-6)
    blocks = points // 2_000
    assert (np.any(np.diff(blocks, axis=0) != 0, axis=1)).sum() == 8  # each square once


def test_black_is_below_60_and_reaches_the_edge():
    """Of the brightest channel; a dark spot inside is tissue, however dark."""
    picture = np.full((20, 30, 3), 200, np.uint8)
    picture[:, :4], picture[:, -5:], picture[8:12, 10:14] = (59, 0, 20), (60, 0, 20), 0
    expected = np.zeros((20, 30), bool)
    expected[:, :4] = True
    np.testing.assert_array_equal(tissue._border(picture), expected)
