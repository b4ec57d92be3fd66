"""The stain and texture descriptor on drawn tissue: shapes, symmetries, scales, stains, limits."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.color import rgb_from_hed

from stfm_jax.encoders.stain_texture import MIN_SIZE_UM, WINDOW_NAMES, describe, feature_names
from stfm_jax.errors import InputError

SIDE_UM = 160


def draw_tissue(seed, nuclei=150, stain=0.6, radius_um=4.0, fibres=False, um_per_px=0.5):
    """Nuclei on an eosin ground of some roughness, [p, p, 3] uint8."""
    rng = np.random.default_rng(seed)
    p = int(SIDE_UM / um_per_px)
    y, x = (np.arange(p) * um_per_px)[:, None], np.arange(p) * um_per_px
    h = np.zeros((p, p))
    for cy, cx in rng.uniform(0, SIDE_UM, (nuclei, 2)):
        h = np.maximum(h, stain / (1 + np.exp((np.hypot(y - cy, x - cx) - radius_um) * 2)))
    width = (1.0, 16.0) if fibres else (4.0, 4.0)
    ground = ndimage.gaussian_filter(rng.normal(size=(p, p)), [w / um_per_px for w in width])
    e = 0.25 + 0.1 * ground / ground.std()
    density = np.stack([h, np.maximum(e, 0), np.zeros_like(h)], axis=-1) @ rgb_from_hed
    return np.round(255 * 10**-density).astype(np.uint8)


def value(features, name):
    return features[..., feature_names().index(name)]


@pytest.fixture(scope="module")
def tissues():
    """Different tissues, whose spread says how large a difference is large, [b, p, p, 3]."""
    return np.stack(
        [
            draw_tissue(0),
            draw_tissue(1, nuclei=40, stain=0.4),
            draw_tissue(2, nuclei=80, radius_um=6.0),
            draw_tissue(3, nuclei=5, fibres=True),
            draw_tissue(4, nuclei=10, stain=0.9),
        ]
    )


def test_names_agree_with_columns_for_any_patch_size(tissues):
    names = feature_names()
    assert len(set(names)) == len(names)
    for patches in (tissues[:2], tissues[:2, :150, :150]):
        features = describe(patches, 0.5)
        assert features.shape == (2, len(names))
        assert features.dtype == np.float32
    assert describe(tissues[:0], 0.5).shape == (0, len(names))


def test_each_patch_is_described_on_its_own(tissues):
    together = describe(tissues[:2], 0.5)
    np.testing.assert_array_equal(together[1], describe(tissues[1:2], 0.5)[0])


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (240, 238, 241), (255, 0, 0)])
def test_empty_patches_are_finite_and_symmetric(colour):
    patch = np.empty((1, 131, 131, 3), np.uint8)
    patch[:] = colour
    patch[:, 20:30, 50:70] = 255 - np.asarray(colour)
    plain = np.broadcast_to(np.asarray(colour, np.uint8), patch.shape)
    features = describe(np.concatenate([patch, plain]), 0.69)
    assert np.isfinite(features).all()
    turned = describe(np.rot90(patch, axes=(1, 2)), 0.69)
    np.testing.assert_allclose(turned, features[:1], atol=2e-3)


@pytest.mark.parametrize("um_per_px", [0.5, 0.57])
def test_quarter_turns_and_mirrors_change_nothing(tissues, um_per_px):
    features = describe(tissues, um_per_px)
    spread = features.std(axis=0) + 1e-3
    for turn in (
        lambda x: np.rot90(x, 1, axes=(1, 2)),
        lambda x: np.rot90(x, 2, axes=(1, 2)),
        lambda x: x[:, ::-1],
        lambda x: np.swapaxes(x, 1, 2),
    ):
        assert np.abs((describe(turn(tissues), um_per_px) - features) / spread).max() < 0.02


def test_coarser_pixels_of_the_same_tissue_give_the_same_description(tissues):
    b, p = tissues.shape[:2]
    coarse = tissues.reshape(b, p // 2, 2, p // 2, 2, 3).mean(axis=(2, 4)).round().astype(np.uint8)
    fine, coarse = describe(tissues, 0.5), describe(coarse, 1.0)
    error = np.abs(fine - coarse).mean(axis=0) / (fine.std(axis=0) + 1e-3)
    assert np.median(error) < 0.02
    assert np.quantile(error, 0.95) < 0.2
    wrong = describe(tissues[:, :160, :160], 1.0)  # a wrong resolution is no small matter
    assert np.median(np.abs(wrong - coarse).mean(axis=0) / (fine.std(axis=0) + 1e-3)) > 0.3


def test_haematoxylin_nuclei_and_fibres_answer(tissues):
    dense, pale, large, fibrous, few = describe(tissues, 0.5)
    for window in WINDOW_NAMES:
        assert value(dense, f"colour.H.{window}") > value(pale, f"colour.H.{window}")
        assert value(dense, f"nuclei.above0.05.{window}") > value(
            pale, f"nuclei.above0.05.{window}"
        )
        assert value(large, f"nuclei.size.mean.{window}") > value(
            pale, f"nuclei.size.mean.{window}"
        )
    assert value(fibrous, "aligned.O.4um.g50") > 2 * value(few, "aligned.O.4um.g50")


def test_nuclei_are_counted():
    """Discs laid on a grid 20 um apart: a quarter of a nucleus per (10 um)^2."""
    y, x = np.meshgrid(np.arange(400) / 2, np.arange(400) / 2, indexing="ij")
    h = 0.5 * (np.hypot((y % 20) - 10, (x % 20) - 10) < 4)
    density = np.stack([h, np.full_like(h, 0.2), np.zeros_like(h)], axis=-1) @ rgb_from_hed
    features = describe(np.round(255 * 10**-density).astype(np.uint8)[None], 0.5)[0]
    assert value(features, "nuclei.above0.05.all") ** 2 == pytest.approx(0.25, rel=0.02)
    assert np.exp(value(features, "nuclei.near.mean.g50")) == pytest.approx(20, rel=0.1)


def test_the_centre_counts_more_than_the_rim(tissues):
    middle, rim = tissues[1].copy(), tissues[1].copy()
    middle[120:200, 120:200] = 0
    rim[:80, :80] = 0
    near, far, plain = describe(np.stack([middle, rim, tissues[1]]), 0.5)
    column = feature_names().index("colour.H.g50")
    assert abs(near - plain)[column] > 1.5 * abs(far - plain)[column]


@pytest.mark.parametrize(
    ("patches", "um_per_px", "message"),
    [
        (np.zeros((2, 200, 100, 3), np.uint8), 0.5, "square"),
        (np.zeros((200, 200, 3), np.uint8), 0.5, "square"),
        (np.zeros((1, 200, 200, 3), np.float32), 0.5, "uint8"),
        (np.zeros((1, 200, 200, 3), np.uint8), float("nan"), "um_per_px"),
        (np.zeros((1, 200, 200, 3), np.uint8), -1.0, "um_per_px"),
        (np.zeros((1, 100, 100, 3), np.uint8), 0.99 * MIN_SIZE_UM / 100, "64 um"),
    ],
)
def test_bad_patches_are_refused(patches, um_per_px, message):
    with pytest.raises(InputError, match=message):
        describe(patches, um_per_px)
