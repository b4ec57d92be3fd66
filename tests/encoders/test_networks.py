"""Whole slides through encoders: fields, blocks and batches, and images that are too coarse."""

from __future__ import annotations

import dataclasses
import logging

import encoder_folders as folders
import numpy as np
import pytest

from stfm_jax import encoders
from stfm_jax.encoders import networks, stain_texture


@dataclasses.dataclass
class Noise:
    """A picture of noise; the patch of spot i is around (i, i)."""

    um_per_px: float = 0.5

    def read(self, indices, size_um):
        side = round(size_um / self.um_per_px)
        pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
        corners = [i + (200 - side) // 2 for i in indices]
        return np.stack([pixels[c : c + side, c : c + side] for c in corners])


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return encoders.load(folders.timm_vit(tmp_path_factory.mktemp("encoder") / "mine"))


@pytest.mark.parametrize("n", [0, 1, 19, 32])
def test_every_spot_in_its_order(network, n):
    """Whatever is left of the last block."""
    found = network.embed_slide(Noise(), np.zeros((n, 2)))
    assert found.dtype == np.float32 and found.shape == (n, network.width)
    if n:
        patches = Noise().read(np.arange(n), network.fields_um[0])
        np.testing.assert_allclose(found, network.embed(patches), atol=1e-5)


def test_fields_of_view_side_by_side(network):
    two = dataclasses.replace(network, fields_um=(16.0, 32.0))
    found = two.embed_slide(Noise(), np.zeros((3, 2)))
    views = [network.embed(Noise().read(np.arange(3), field)) for field in two.fields_um]
    np.testing.assert_allclose(found, np.concatenate(views, axis=1), atol=1e-5)
    assert two.width == 2 * network.width and "_16_32um_" in two.identity


def test_larger_batches_of_accelerators_give_the_same(network, monkeypatch):
    expected = network.embed_slide(Noise(), np.zeros((9, 2)))
    monkeypatch.setattr(networks, "_block", lambda: (8, 8))
    np.testing.assert_allclose(network.embed_slide(Noise(), np.zeros((9, 2))), expected, atol=1e-5)
    patches = Noise().read(np.arange(9), network.fields_um[0])
    np.testing.assert_allclose(network.embed(patches), expected, atol=1e-5)


@pytest.mark.parametrize(("um_per_px", "told"), [(0.5, False), (1.0, True)])
def test_coarse_images_are_enlarged_and_told_of(network, um_per_px, told, caplog):
    with caplog.at_level(logging.WARNING, logger="stfm_jax"):
        found = network.embed_slide(Noise(um_per_px), np.zeros((2, 2)))
    assert np.isfinite(found).all() and found.shape == (2, network.width)
    assert ("images have 1 um a pixel" in caplog.text) == told


def test_the_descriptor_of_a_slide():
    encoder, source = encoders.load("stain_texture", patch_um=80), Noise()
    found = encoder.embed_slide(source, np.zeros((20, 2)))
    expected = stain_texture.describe(source.read(np.arange(20), 80.0), 0.5)
    np.testing.assert_array_equal(found, expected)
