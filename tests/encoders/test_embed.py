"""Embedding slides: order, names, and a cache that is whole or absent."""

from __future__ import annotations

import dataclasses
from unittest import mock

import numpy as np
import pytest
from hest_layout import toy_slide
from tqdm import tqdm

from stfm_jax.data import embeddings
from stfm_jax.encoders import embed
from stfm_jax.encoders.embed import BUILT_IN, Encoder, cache_path, embedded
from stfm_jax.errors import InputError

ENCODER = Encoder("stain_texture", 64.0)


@dataclasses.dataclass
class Shades:
    """A patch of spot i has the grey value i."""

    um_per_px: float = 2.0
    reads: int = 0
    closed: bool = False

    def read(self, indices, size_um):
        self.reads += 1
        side = round(size_um / self.um_per_px)
        grey = np.asarray(indices, np.uint8)[:, None, None, None]
        return np.broadcast_to(grey, (len(indices), side, side, 3)).copy()

    def close(self):
        self.closed = True


def describe(patches, um_per_px):
    """Grey value, side in pixels, micrometres per pixel."""
    n, side = patches.shape[:2]
    return np.stack([patches[:, 0, 0, 0], np.full(n, side), np.full(n, um_per_px)], axis=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setitem(BUILT_IN, "stain_texture", describe)
    monkeypatch.setattr(embed.os, "cpu_count", lambda: 1)


def with_patches(name="A1", n=40):
    return dataclasses.replace(toy_slide(name, n=n), features=None, encoder=None, patches=Shades())


def test_each_spot_gets_its_own_patch_in_order():
    slide = with_patches()
    features = embed.embed(slide, ENCODER)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, [[i, 32, 2.0] for i in range(40)])
    assert slide.patches.closed


def test_of_a_subset_too():
    index = np.array([5, 3, 8])
    np.testing.assert_array_equal(embed.embed(with_patches().subset(index), ENCODER)[:, 0], index)


def test_name_carries_the_patch_size():
    assert ENCODER.name == "stain_texture_64um"
    assert Encoder("stain_texture", 112.5).name == "stain_texture_112.5um"
    with pytest.raises(InputError, match=r"encoder.name must be one of stain_texture.*'resnet'"):
        Encoder("resnet", 64.0)


def test_cached_once_in_the_hest_format(tmp_path):
    slide = with_patches()
    (first,) = embedded([slide], ENCODER, tmp_path)
    path = tmp_path / "stain_texture_64um" / "A1.h5"
    assert cache_path(tmp_path, ENCODER, slide) == path
    stored = embeddings.read(path)
    assert stored.encoder == first.encoder == "stain_texture_64um"
    np.testing.assert_array_equal(stored.barcodes, slide.barcodes)
    np.testing.assert_array_equal(stored.coords, slide.coords_in)
    reads = slide.patches.reads
    (second,) = embedded([slide], ENCODER, tmp_path)
    assert slide.patches.reads == reads, "embedded again"
    np.testing.assert_array_equal(first.features, second.features)
    embedded([slide], Encoder("stain_texture", 100.0), tmp_path)
    assert slide.patches.reads > reads, "another patch size is another encoder"


def test_a_cache_of_shuffled_spots_is_matched_by_barcode(tmp_path):
    slide = with_patches()
    order = np.random.default_rng(0).permutation(40)
    embedded([slide.subset(order)], ENCODER, tmp_path)
    (again,) = embedded([slide], ENCODER, tmp_path)
    np.testing.assert_array_equal(again.features[:, 0], np.arange(40))


def test_a_failure_closes_the_progress_bar():
    """Its last line is ended, so that the error has a line of its own."""
    bars = []
    bar = mock.Mock(side_effect=lambda *a, **k: bars.append(tqdm(*a, **k)) or bars[-1])
    broken = mock.Mock(side_effect=InputError("a damaged image"))
    with (
        mock.patch.object(embed, "tqdm", bar),
        mock.patch.object(Shades, "read", broken),
        pytest.raises(InputError, match="damaged"),
    ):
        embed.embed(with_patches(), ENCODER)
    assert [made.disable for made in bars] == [True], "tqdm's own mark of a closed bar"


def test_a_failure_leaves_no_cache(tmp_path):
    slide = with_patches()
    broken = mock.Mock(side_effect=InputError("a damaged image"))
    with mock.patch.object(Shades, "read", broken), pytest.raises(InputError, match="damaged"):
        embedded([slide], ENCODER, tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_no_image():
    slide = dataclasses.replace(toy_slide(), features=None, encoder=None)
    with pytest.raises(InputError, match=r"'A1'.*neither features nor an image"):
        embed.embed(slide, ENCODER)
