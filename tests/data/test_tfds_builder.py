"""The tensorflow-datasets build of a HEST folder, against reading the folder directly."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hest_layout import toy_slide, write_embeddings, write_task
from tensorflow_datasets.core import shuffle

from stfm_jax.data import tfds_builder
from stfm_jax.data.readers import hest
from stfm_jax.errors import InputError

SLIDES = [dataclasses.replace(toy_slide(name, n=23)) for name in ("INT1", "TENX-95")]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench")
    write_task(path / "bench", "IDC", SLIDES, ["GENE1"], um_per_px=0.25, without_patch=3)
    write_embeddings(path / "embed", "IDC", "uni", SLIDES)
    return path


@pytest.fixture(scope="module")
def built(bench):
    return tfds_builder.write(
        bench / "bench",
        "IDC",
        bench / "out",
        embed_root=bench / "embed",
        encoder="uni",
        spots_per_record=8,
    )


@pytest.mark.parametrize("name", ["INT1", "TENX-95"])
def test_round_trip(bench, built, name):
    direct = hest.read(bench / "bench", "IDC", name, embed_root=bench / "embed", encoder="uni")
    got = tfds_builder.read_slide(built, name)
    assert got.num_spots == 20
    for field in ("barcodes", "coords_um", "coords_in", "genes", "features"):
        np.testing.assert_array_equal(getattr(got, field), getattr(direct, field), err_msg=field)
        assert getattr(got, field).dtype.kind == getattr(direct, field).dtype.kind
    np.testing.assert_array_equal(got.counts.toarray(), direct.counts.toarray())
    for field in ("name", "spatial_unit", "encoder", "patient", "section", "z_um", "source"):
        assert getattr(got, field) == getattr(direct, field), field


def test_spots_are_spread_over_records(built):
    """Read with tensorflow-datasets alone, as others would."""
    records = tfds.builder_from_directory(built).as_data_source(split="TENX_95")
    assert sorted(item["first_spot"] for item in records) == [0, 8, 16]
    assert sorted(len(item["features"]) for item in records) == [4, 8, 8]
    assert built.name == "1.0.0" and built.parent.name == "IDC"
    assert list(built.parent.parent.parent.iterdir()) == [built.parent.parent]  # no rubbish


def test_without_embeddings_and_some_samples(bench, tmp_path):
    folder = tfds_builder.write(bench / "bench", "IDC", tmp_path, samples=["INT1"])
    slide = tfds_builder.read_slide(folder, "INT1")
    assert slide.features is None and slide.encoder is None
    with pytest.raises(InputError, match="has no sample 'TENX-95'; it has INT1"):
        tfds_builder.read_slide(folder, "TENX-95")


def test_large_slides_need_no_tensorflow(bench, tmp_path, monkeypatch):
    """Beyond this limit (1,000 MiB) tfds sorts records through TensorFlow's files."""
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 100)
    folder = tfds_builder.write(
        bench / "bench", "IDC", tmp_path, samples=["INT1"], spots_per_record=4
    )
    assert tfds_builder.read_slide(folder, "INT1").num_spots == 20
    assert shuffle.MAX_MEM_BUFFER_SIZE == 100


def test_spots_without_counts_and_stacks(bench):
    """Records of zeros, and the optional fields."""
    slide = dataclasses.replace(SLIDES[0], z_um=48.0, patient="C", section="C4")
    slide = dataclasses.replace(slide, counts=slide.counts * 0)
    slide.counts.eliminate_zeros()
    record = tfds_builder._record(slide, 0, 23)
    features = tfds.features.FeaturesDict(tfds_builder._fields(5))
    stored = features.deserialize_example_np(features.serialize_example(record))
    got = tfds_builder._slide([stored], "x")
    assert got.counts.nnz == 0 and got.counts.shape == slide.counts.shape
    assert (got.z_um, got.patient, got.section) == (48.0, "C", "C4")


def test_bad_input(bench, built, tmp_path, monkeypatch):
    root = bench / "bench"
    with pytest.raises(InputError, match="is already there"):
        tfds_builder.write(root, "IDC", bench / "out", embed_root=bench / "embed", encoder="uni")
    with pytest.raises(FileNotFoundError, match="COAD: no such folder"):
        tfds_builder.write(root, "COAD", tmp_path)
    with pytest.raises(FileNotFoundError, match="no data set there"):
        tfds_builder.read_slide(tmp_path, "INT1")
    with pytest.raises(InputError, match="2 ids and 1 different"):
        tfds_builder.write(root, "IDC", tmp_path, samples=["TENX-95", "TENX_95"])
    with pytest.raises(InputError, match="at least 1"):
        tfds_builder.write(root, "IDC", tmp_path, spots_per_record=0)
    monkeypatch.setattr(tfds_builder, "RECORD_BYTES", 1000)
    with pytest.raises(InputError, match="stay below 2 GiB; set spots_per_record below"):
        tfds_builder.write(root, "IDC", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"NONE\.h5ad"):
        tfds_builder.write(root, "IDC", tmp_path, samples=["NONE"])
    assert not list(tmp_path.rglob("*.array_record*"))


def test_needs_no_tensorflow():
    code = "import sys; import stfm_jax.data.tfds_builder; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
