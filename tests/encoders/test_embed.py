"""Embedding slides: order, names, and a cache that is whole or absent."""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import h5py
import numpy as np
import pytest
from hest_layout import toy_slide

from stfm_jax.data import embeddings
from stfm_jax.encoders import embed, encoder, stain_texture
from stfm_jax.encoders.embed import cache_path, embedded
from stfm_jax.encoders.encoder import Encoder, StainTexture
from stfm_jax.errors import InputError
from stfm_jax.runtime import progress

ENCODER = StainTexture(fields_um=(64.0,))


@dataclasses.dataclass(frozen=True)
class Brightness(Encoder):
    """Two features, in blocks of three patches: the grey value, and its square."""

    name: str = "brightness"
    fields_um: tuple[float, ...] = (10.0,)
    identity = "brightness_10um_0123456789abcdef"
    width = 2
    um_per_px = (1.0,)
    preprocess = None

    def embed(self, images):
        grey = images[:, 0, 0, 0].astype(np.float32)
        return np.stack([grey, grey**2], axis=1)

    def blocks(self, source, spots):
        for i in range(0, len(spots), 3):
            yield self.embed(source.read(spots[i : i + 3], self.fields_um[0]))


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
    values = [patches[:, 0, 0, 0], np.full(n, side), np.full(n, um_per_px)]
    return np.stack(values, axis=1).astype(np.float32)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stain_texture, "describe", describe)
    monkeypatch.setattr(stain_texture, "feature_names", lambda: ("grey", "side", "scale"))
    monkeypatch.setattr(encoder.os, "cpu_count", lambda: 1)


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


def test_cached_once_in_tridents_format(tmp_path):
    slide = with_patches()
    (first,) = embedded([slide], [ENCODER], tmp_path)
    path = tmp_path / "stain_texture_64um" / "A1.h5"
    assert cache_path(tmp_path, ENCODER, slide) == path
    stored = embeddings.read(path)
    assert stored.encoder == first.encoder == "stain_texture_64um"
    np.testing.assert_array_equal(stored.barcodes, slide.barcodes)
    scale = slide.patches.um_per_px
    assert stored.um_per_px == scale and stored.side_px == 64 / scale
    np.testing.assert_allclose(stored.centres, slide.coords_um / scale, atol=0.5)
    reads = slide.patches.reads
    (second,) = embedded([slide], [ENCODER], tmp_path)
    assert slide.patches.reads == reads, "embedded again"
    np.testing.assert_array_equal(first.features, second.features)
    embedded([slide], [StainTexture(fields_um=(100.0,))], tmp_path)
    assert slide.patches.reads > reads, "another patch size is another encoder"


def test_a_cache_of_shuffled_spots_is_matched_by_barcode(tmp_path):
    slide = with_patches()
    order = np.random.default_rng(0).permutation(40)
    embedded([slide.subset(order)], [ENCODER], tmp_path)
    (again,) = embedded([slide], [ENCODER], tmp_path)
    np.testing.assert_array_equal(again.features[:, 0], np.arange(40))


def test_a_failure_closes_the_progress_bar():
    """Its last line is ended, so that the error has a line of its own."""
    bars, made = [], progress.bar
    bar = mock.Mock(side_effect=lambda *a, **k: bars.append(made(*a, **k)) or bars[-1])
    broken = mock.Mock(side_effect=InputError("a damaged image"))
    with (
        mock.patch.object(progress, "bar", bar),
        mock.patch.object(Shades, "read", broken),
        pytest.raises(InputError, match="damaged"),
    ):
        embed.embed(with_patches(), ENCODER)
    assert [each.disable for each in bars] == [True], "tqdm's own mark of a closed bar"


def test_a_failure_leaves_no_cache(tmp_path):
    slide = with_patches()
    broken = mock.Mock(side_effect=InputError("a damaged image"))
    with mock.patch.object(Shades, "read", broken), pytest.raises(InputError, match="damaged"):
        embedded([slide], [ENCODER], tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_image():
    slide = dataclasses.replace(toy_slide(), features=None, encoder=None)
    with pytest.raises(InputError, match=r"'A1'.*neither features nor an image"):
        embed.embed(slide, ENCODER)


class Stopped(BaseException):
    """As a signal stops a run."""


def stops_at(spot):
    """Shades that fail when this spot's patch is read."""
    read = Shades.read

    def reads(self, indices, size_um):
        if spot in indices:
            raise Stopped
        return read(self, indices, size_um)

    return mock.patch.object(Shades, "read", reads)


def test_goes_on_where_it_was_stopped(tmp_path):
    slide, made = with_patches(n=20), Brightness()
    with stops_at(7), pytest.raises(Stopped):
        embedded([slide], [made], tmp_path)
    path = cache_path(tmp_path, made, slide)
    partial = path.with_suffix(".partial")
    assert partial.exists() and not path.exists()
    with open(partial, "ab") as file:
        file.write(b"abc")  # half a row, as a kill may leave it
    reads = slide.patches.reads
    (again,) = embedded([slide], [made], tmp_path)
    assert slide.patches.reads == reads + 5, "spots 6 to 19, three at a time"
    np.testing.assert_array_equal(again.features[:, 1], np.arange(20) ** 2)
    assert path.exists() and not partial.exists()


@pytest.mark.parametrize("other", ["spots", "encoder", "rubbish"])
def test_begins_anew_where_rows_are_of_something_else(tmp_path, other):
    slide, made = with_patches(n=20), Brightness()
    with stops_at(7), pytest.raises(Stopped):
        embedded([slide.subset(np.arange(20)[::-1])], [made], tmp_path)
    with stops_at(7), pytest.raises(Stopped):
        embedded([slide], [made], tmp_path)
    partial = cache_path(tmp_path, made, slide).with_suffix(".partial")
    if other == "spots":
        slide = slide.subset(np.arange(1, 20))
    elif other == "rubbish":
        partial.write_bytes(b"rubbish" * 50)
    else:
        partial.write_bytes(partial.read_bytes().replace(b"brightness", b"otherwise_"))
    (again,) = embedded([slide], [made], tmp_path)
    grey = np.arange(20)[20 - slide.num_spots :]
    np.testing.assert_array_equal(again.features[:, 0], grey)


def test_an_embedding_is_of_the_encoder_that_its_folder_names(tmp_path):
    slide, made = with_patches(), Brightness()
    embedded([slide], [made], tmp_path)
    path = cache_path(tmp_path, made, slide)
    with h5py.File(path, "r+") as file:
        file.attrs["encoder"] = "brightness_10um_of_other_weights"
    with pytest.raises(InputError, match=r"A1.h5: .* found one by 'brightness_10um_of_other"):
        embedded([slide], [made], tmp_path)


def test_of_several_encoders_side_by_side(tmp_path):
    slide, made = with_patches(), Brightness()
    (found,) = embedded([slide], [ENCODER, made], tmp_path)
    assert found.encoder == f"stain_texture_64um+{made.identity}" and found.widths == (3, 2)
    np.testing.assert_array_equal(found.features[:, :3], embed.embed(slide, ENCODER))
    np.testing.assert_array_equal(found.features[:, 3:], embed.embed(slide, made))
    (single,) = embedded([slide], [made], tmp_path)
    assert (single.encoder, single.widths) == (made.identity, ())


def test_rate_and_progress_are_told(tmp_path, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="stfm_jax"):
        embedded([with_patches()], [Brightness()], tmp_path)
    assert re.search(r"A1: 40 patches embedded into .*A1.h5, [\d.]+ a second", caplog.text)
    assert "A1: brightness" in capsys.readouterr().err


def test_two_at_once_wait_for_each_other(tmp_path):
    """The second finds what the first has made."""
    made, first, second = Brightness(), with_patches(n=20), with_patches(n=20)
    begun, go_on = threading.Event(), threading.Event()
    read = Shades.read

    def reads(self, indices, size_um):
        begun.set()
        go_on.wait(10)
        return read(self, indices, size_um)

    with mock.patch.object(Shades, "read", reads), ThreadPoolExecutor(2) as pool:
        one = pool.submit(embedded, [first], [made], tmp_path)
        begun.wait(10)
        two = pool.submit(embedded, [second], [made], tmp_path)
        go_on.set()
        results = [one.result()[0], two.result()[0]]
    assert second.patches.reads == 0
    for found in results:
        np.testing.assert_array_equal(found.features[:, 0], np.arange(20))
