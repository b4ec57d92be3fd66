"""The embedding file format, and aligning it to a slide by barcode."""

import dataclasses
import logging

import h5py
import numpy as np
import pytest
from hest_layout import toy_slide

from stfm_jax.data import embeddings, feature_store
from stfm_jax.errors import InputError


def _write(path, slide, rows, encoder="toy_112um"):
    embeddings.write(
        path, slide.features[rows], slide.coords_um[rows], slide.barcodes[rows], encoder
    )
    return embeddings.read(path)


def test_round_trip(tmp_path):
    slide = toy_slide()
    got = _write(tmp_path / "new" / "a.h5", slide, np.arange(20))
    np.testing.assert_array_equal(got.embeddings, slide.features)
    np.testing.assert_array_equal(got.barcodes, slide.barcodes)
    np.testing.assert_array_equal(got.coords, slide.coords_um)
    assert got.encoder == "toy_112um" and got.embeddings.dtype == np.float32
    with h5py.File(tmp_path / "new" / "a.h5") as file:
        assert file["barcodes"].shape == (20, 1) and file["barcodes"].dtype.kind == "S"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.h5"]


def test_reads_what_the_hest_code_writes(tmp_path):
    """Half precision, no encoder, barcodes [n], variable-length strings."""
    slide = toy_slide()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["embeddings"] = slide.features.astype(np.float16)
        file["coords"] = slide.coords_um.astype(int)
        file.create_dataset(
            "barcodes", data=list(slide.barcodes), dtype=h5py.string_dtype(encoding="utf-8")
        )
    got = embeddings.read(tmp_path / "a.h5")
    assert got.embeddings.dtype == np.float32 and got.encoder is None
    np.testing.assert_allclose(got.embeddings, slide.features, atol=2e-3)
    np.testing.assert_array_equal(got.barcodes, slide.barcodes)


def test_failed_write_leaves_what_was_there(tmp_path):
    slide = toy_slide()
    before = _write(tmp_path / "a.h5", slide, np.arange(20))
    with pytest.raises(InputError, match="as many embeddings"):
        embeddings.write(tmp_path / "a.h5", slide.features[:3], slide.coords_um, slide.barcodes, "")
    with pytest.raises((TypeError, ValueError)):
        names = np.array(["x"] * 20, dtype=object)
        embeddings.write(tmp_path / "a.h5", names, slide.coords_um, slide.barcodes, "")
    after = embeddings.read(tmp_path / "a.h5")
    np.testing.assert_array_equal(before.embeddings, after.embeddings)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_align_matches_barcodes_whatever_the_order(tmp_path, caplog):
    slide = toy_slide()
    rows = np.random.default_rng(0).permutation(20)[:15]
    stored = _write(tmp_path / "a.h5", slide, rows, "other_64um")
    bare = dataclasses.replace(slide, features=None, encoder=None)
    with caplog.at_level(logging.INFO, "stfm_jax"):
        got = embeddings.align(bare, stored)
    keep = np.sort(rows)
    np.testing.assert_array_equal(got.barcodes, slide.barcodes[keep])
    np.testing.assert_array_equal(got.features, slide.features[keep])
    np.testing.assert_array_equal(got.counts.toarray(), slide.counts.toarray()[keep])
    assert got.encoder == "other_64um"
    assert "5 of 20 spots dropped" in caplog.text


def test_stored_embeddings_are_aligned_without_being_read(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "BLOCK", 4)
    slide = toy_slide()
    order = np.random.default_rng(0).permutation(20)[:15]
    stored = _write(tmp_path / "a.h5", slide, order, "other_64um")
    got = embeddings.align(slide, embeddings.open_stored(tmp_path / "a.h5"))
    assert isinstance(got.features, feature_store.StoredFeatures) and got.encoder == "other_64um"
    expected = embeddings.align(slide, stored)
    np.testing.assert_array_equal(got.barcodes, expected.barcodes)
    np.testing.assert_array_equal(np.asarray(got.features), expected.features)


def test_align_says_nothing_when_all_match(tmp_path, caplog):
    slide = toy_slide()
    with caplog.at_level(logging.INFO, "stfm_jax"):
        embeddings.align(slide, _write(tmp_path / "a.h5", slide, np.arange(20)))
    assert not caplog.text


def test_align_bad_input(tmp_path):
    slide = toy_slide()
    twice = _write(tmp_path / "a.h5", slide, [0, 1, 1])
    with pytest.raises(InputError, match=r"a.h5.*'A1-0001' occurs 2 times"):
        embeddings.align(slide, twice)
    other = _write(tmp_path / "b.h5", toy_slide("B7"), [0, 1])
    with pytest.raises(InputError, match=r"none of its 20 barcodes.*'A1-0000'.*'B7-0000'"):
        embeddings.align(slide, other)
    bad = dataclasses.replace(toy_slide(), features=None)
    values = slide.features.copy()
    values[3, 1] = np.nan
    embeddings.write(tmp_path / "c.h5", values, slide.coords_um, slide.barcodes, "toy")
    with pytest.raises(InputError, match="features of 1 spots hold NaN"):
        embeddings.align(bad, embeddings.read(tmp_path / "c.h5"))


def test_bad_files(tmp_path):
    slide = toy_slide()
    with pytest.raises(FileNotFoundError, match=r"none.h5: no such file.*mode=embed"):
        embeddings.read(tmp_path / "none.h5")
    (tmp_path / "empty.h5").touch()
    with pytest.raises(InputError, match=r"empty.h5.*0 bytes"):
        embeddings.read(tmp_path / "empty.h5")
    _write(tmp_path / "a.h5", slide, np.arange(20))
    whole = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut.h5"):
        embeddings.read(tmp_path / "cut.h5")
    with h5py.File(tmp_path / "lacks.h5", "w") as file:
        file["embeddings"] = slide.features
    with pytest.raises(InputError, match=r"lacks.h5.*it holds embeddings"):
        embeddings.read(tmp_path / "lacks.h5")
    with h5py.File(tmp_path / "short.h5", "w") as file:
        file["embeddings"], file["coords"] = slide.features, slide.coords_um
        file["barcodes"] = slide.barcodes[:3].astype(bytes)
    with pytest.raises(InputError, match=r"short.h5.*\(20, 5\), \(20, 2\) and \(3,\)"):
        embeddings.read(tmp_path / "short.h5")


@pytest.mark.parametrize(("matched", "level"), [(9, "WARNING"), (10, "INFO"), (15, "INFO")])
def test_that_most_spots_lack_an_embedding_is_a_warning(tmp_path, caplog, matched, level):
    slide = toy_slide()
    with caplog.at_level(logging.INFO, "stfm_jax"):
        embeddings.align(slide, _write(tmp_path / "a.h5", slide, np.arange(matched)))
    (record,) = caplog.records
    assert record.levelname == level
    assert f"{20 - matched} of 20 spots dropped" in record.getMessage()
