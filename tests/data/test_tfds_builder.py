"""Data sets written with tensorflow-datasets and read again."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny
from hest_layout import toy_slide
from tensorflow_datasets.core import shuffle

from stfm_jax.data import datasets, tfds_builder, tfds_layout
from stfm_jax.data.datasets import Dataset
from stfm_jax.data.folds import Fold
from stfm_jax.errors import InputError

ARRAYS = ("barcodes", "coords_um", "coords_in", "genes", "features", "registered_um", "parent",
          "domains")  # fmt: skip
TEXTS = ("name", "spatial_unit", "encoder", "patient", "section", "z_um")


def of_stack(slide):
    """The slide with every optional field."""
    return dataclasses.replace(
        slide,
        patient="C",
        section="C4",
        z_um=48.0,
        registered_um=slide.coords_um + 7.0,
        parent=np.array([f"p{i // 4}" for i in range(slide.num_spots)]),
        domains=np.array(["", "tumour", "stroma"] * slide.num_spots)[: slide.num_spots],
        coords_in=slide.coords_um / 0.25,
        spatial_unit="pixel",
    )


def dataset_of(*slides, genes=None):
    names = tuple(slide.name for slide in slides)
    folds = (Fold(names[1:], names[:1]), Fold(names[:1], names[1:]))
    return Dataset({slide.name: slide for slide in slides}, folds, genes, "as published")


def read(folder) -> Dataset:
    return datasets.load(tiny.config(data__reader="tfds", data__dir=str(folder)).data)


def assert_same(got, slide):
    for field in ARRAYS:
        a, b = getattr(got, field), getattr(slide, field)
        assert (a is None) == (b is None), field
        if b is not None:
            np.testing.assert_array_equal(a, b, err_msg=field)
            assert a.dtype.kind == b.dtype.kind
    np.testing.assert_array_equal(got.counts.toarray(), slide.counts.toarray())
    assert got.counts.dtype == slide.counts.dtype
    for field in TEXTS:
        assert getattr(got, field) == getattr(slide, field), field


SOURCE = dataset_of(
    of_stack(toy_slide("TENX-95")), toy_slide("INT1", n=23), genes=("GENE5", "GENE1")
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return tfds_builder.write(SOURCE, tmp_path_factory.mktemp("out"), spots_per_record=8)


def test_round_trip(built):
    """The order of slides too, which is not that of their names."""
    got = read(built)
    assert (got.folds, got.genes, got.folds_from) == (SOURCE.folds, SOURCE.genes, "as published")
    assert list(got.slides) == list(SOURCE.slides)
    for name, slide in SOURCE.slides.items():
        assert_same(got.slides[name], slide)
        assert got.slides[name].source == str(built)


def test_it_is_read_with_tensorflow_datasets_alone(built):
    """As others would, wherever the folder was moved to."""
    builder = tfds.builder_from_directory(built)
    records = builder.as_data_source(split="TENX_95")
    assert sorted(item["first_spot"] for item in records) == [0, 8, 16]
    assert sorted(len(item["features"]) for item in records) == [4, 8, 8]
    about = builder.info.metadata
    assert about["folds"][0] == {"train": ["INT1"], "test": ["TENX-95"]}
    assert about["genes"] == ["GENE5", "GENE1"] and about["encoders"] == ["toy_112um"]
    assert (built.parent.name, built.name) == ("stfm_slides", "1.0.0")
    assert list(built.parent.parent.iterdir()) == [built.parent]  # no rubbish


def test_what_slides_lack_stays_absent(tmp_path):
    """Features of one slide of two; counts that are integers, and all zero."""
    one, other = toy_slide("a1"), toy_slide("all")
    bare = dataclasses.replace(other, features=None, encoder=None, counts=other.counts * 0)
    bare.counts.eliminate_zeros()
    source = dataset_of(one, bare)
    source = source.with_slides(
        [dataclasses.replace(s, counts=s.counts.astype(np.int32)) for s in source.all]
    )
    got = read(tfds_builder.write(source, tmp_path))
    for name, slide in source.slides.items():
        assert_same(got.slides[name], slide)
    assert got.genes is None and got.slides["all"].counts.nnz == 0


def test_data_sets_from_before_have_no_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_layout, "_OF_SPOTS", ("parent",))
    folder = tfds_builder.write(SOURCE, tmp_path)
    monkeypatch.undo()
    assert "domains" not in tfds.builder_from_directory(folder).info.features
    got = read(folder).slides["TENX-95"]
    assert got.domains is None and got.parent is not None


def test_without_any_features(tmp_path):
    slides = [dataclasses.replace(toy_slide(n), features=None, encoder=None) for n in ("a", "b")]
    folder = tfds_builder.write(dataset_of(*slides), tmp_path)
    assert all(slide.features is None for slide in read(folder).all)
    assert "features" not in tfds.builder_from_directory(folder).info.features


def test_large_slides_need_no_tensorflow(tmp_path, monkeypatch):
    """Beyond this limit (1,000 MiB) tfds sorts records through TensorFlow's files."""
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 100)
    folder = tfds_builder.write(SOURCE, tmp_path, spots_per_record=4)
    assert read(folder).slides["INT1"].num_spots == 23
    assert shuffle.MAX_MEM_BUFFER_SIZE == 100


def test_nothing_is_left_of_what_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"'TENX-95' and 'TENX_95' cannot be told apart.*rename"):
        tfds_builder.write(dataset_of(toy_slide("TENX-95"), toy_slide("TENX_95")), tmp_path / "out")
    with pytest.raises(InputError, match="equally wide in all slides, found 5 in a, 6 in b"):
        wider = toy_slide("b", width=6)
        tfds_builder.write(dataset_of(toy_slide("a"), wider), tmp_path / "out")
    with pytest.raises(InputError, match="at least 1"):
        tfds_builder.write(SOURCE, tmp_path / "out", spots_per_record=0)
    monkeypatch.setattr(tfds_layout, "RECORD_BYTES", 1000)
    with pytest.raises(InputError, match="stay below 2 GiB; set spots_per_record below"):
        tfds_builder.write(SOURCE, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_it_is_not_written_twice(built):
    with pytest.raises(InputError, match=r"1\.0\.0: is already there; read it by.*or delete it"):
        tfds_builder.write(SOURCE, built.parent.parent)


def copied(built: Path, to: Path) -> Path:
    subprocess.run(["cp", "-r", built, to], check=True)
    return to


def set_info(**fields):
    def change(folder):
        path = folder / "dataset_info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def shorter(folder):
    """A record less, and what tfds knows of it."""
    about = json.loads((folder / "metadata.json").read_text())
    about["slides"]["INT1"] += 8
    (folder / "metadata.json").write_text(json.dumps(about))


def truncate(name):
    def change(folder):
        path = next(folder.glob(name))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda f: (f / "dataset_info.json").unlink(),
            "expected a data set of tensorflow-datasets",
        ),
        (set_info(name="mnist"), r"expected the data set stfm_slides 1\.0\.0, found mnist 1\.0\.0"),
        (set_info(version="2.0.0"), r"found stfm_slides 2\.0\.0, which was written by another"),
        (shorter, "expected 31 spots of 'INT1', found records of 23; records are missing"),
        (lambda f: next(f.glob("*TENX*")).unlink(), "cannot be read .* export it again"),
        (truncate("*TENX*"), "cannot be read .* export it again"),
        (truncate("dataset_info.json"), "cannot be read .* export it again"),
        (truncate("features.json"), "cannot be read .* export it again"),
        (truncate("metadata.json"), "cannot be read .* export it again"),
        (lambda f: (f / "metadata.json").write_text("{}"), "cannot be read .* export it again"),
    ],
)
def test_a_damaged_data_set_is_refused(built, tmp_path, change, words):
    folder = copied(built, tmp_path / "there")
    change(folder)
    with pytest.raises((InputError, FileNotFoundError), match=f"there: .*{words}") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "absent"),
    [("export_data", "tensorflow"), ("cli", "tensorflow_datasets")],
)
def test_what_is_not_needed_is_not_imported(module, absent):
    code = f"import sys; import stfm_jax.{module}; assert {absent!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_nobody_finds_it_by_a_name_alone():
    """It is built from a folder; a registered name would stand in the way of another's."""
    assert not {"slides", "stfm_slides"} & set(tfds.list_builders(with_community_datasets=False))
