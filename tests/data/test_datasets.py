"""Data sets: how slides are found and split, and which genes are chosen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny
from hest_layout import toy_slide, write_embeddings, write_task

from configs import demo
from stfm_jax.data import datasets
from stfm_jax.data.expression import most_variable_genes
from stfm_jax.data.folds import Fold, leave_one_out, leave_patients_out, leave_sections_out
from stfm_jax.data.readers import h5ad
from stfm_jax.errors import InputError


def slides(**patients: str) -> dict:
    """Toy slides by name, with their patients."""
    return {name: dataclasses.replace(toy_slide(name), patient=p) for name, p in patients.items()}


def test_folds_leave_patients_out():
    folds, note = leave_one_out(slides(a1="A", b1="B", a2="A", c1="C"))
    assert [(fold.train, fold.test) for fold in folds] == [
        (("b1", "c1"), ("a1", "a2")),
        (("a1", "a2", "c1"), ("b1",)),
        (("a1", "b1", "a2"), ("c1",)),
    ]
    assert "3 patients" in note


def test_folds_leave_sections_out_where_there_is_one_patient_and_say_so():
    folds, note = leave_one_out(slides(a1="A", a2="A"))
    assert [fold.test for fold in folds] == [("a1",), ("a2",)]
    assert "sections of one patient" in note and "not generalisation" in note


def test_slides_without_a_patient_are_patients_of_their_own():
    folds, note = leave_one_out(slides(a1="", a2="", b1="B"))
    assert [fold.test for fold in folds] == [("b1",), ("a1",), ("a2",)] or len(folds) == 3
    assert "3 patients" in note


def test_a_section_is_left_out_of_every_stack():
    """Its siblings are trained on; a section without any is always trained on, never tested."""
    six = slides(a1="A", b1="B", a2="A", c1="C", b2="B", a3="A")
    folds, note = leave_sections_out(six)
    assert [(fold.train, fold.test) for fold in folds] == [
        (("a2", "c1", "b2", "a3"), ("a1", "b1")),
        (("a1", "b1", "c1", "a3"), ("a2", "b2")),
        (("a1", "b1", "a2", "c1", "b2"), ("a3",)),
    ]
    assert "each of 2 stacks (c1, alone of a patient, always trained on)" in note
    assert "not generalisation" in note
    one = slides(a1="A", a2="A", a3="A")
    assert leave_sections_out(one)[0] == leave_one_out(one)[0]
    assert [fold.test for fold in leave_sections_out(slides(a="", b=""))[0]] == [
        ("a",),
        ("b",),
    ]


def test_data_folds_chooses(tmp_path):
    """By default what was always done."""
    cohort = [
        dataclasses.replace(slide, patient=patient, z_um=None)
        for slide, patient in zip(tiny.slides(4), "AABB", strict=True)
    ]
    tiny.write(tmp_path, cohort)

    def tests(**fields):
        data = tiny.config(data__dir=str(tmp_path), **fields).data
        return [fold.test for fold in datasets.load(data).folds]

    by_patient = [("P1_S1", "P1_S2"), ("P1_S3", "P1_S4")]
    assert tests() == tests(data__folds="patient") == by_patient
    assert tests(data__folds="section") == [("P1_S1", "P1_S3"), ("P1_S2", "P1_S4")]
    for choice, words in (("published", "'anndata' has no splits"), ("donor", "one of auto")):
        with pytest.raises(InputError, match=words):
            tests(data__folds=choice)


@pytest.mark.parametrize(
    ("patients", "make", "words"),
    [
        (
            {"a1": "A", "a2": "A"},
            leave_patients_out,
            "two patients or more, found 2 of 'A'; choose --config.data.folds=section",
        ),
        (
            {"a1": "A", "b1": ""},
            leave_patients_out,
            r"say its patient, found 1 of 2 that do not \(b1\); set obs\['patient'\]",
        ),
        (
            {"a1": "A", "b1": "B"},
            leave_sections_out,
            "two sections or more, found 2 slides of 2 patients",
        ),
    ],
)
def test_folds_that_the_data_cannot_give(patients, make, words):
    with pytest.raises(InputError, match=words):
        make(slides(**patients))


def test_one_slide_cannot_be_split(tmp_path):
    """But it can be scored by what was trained on others."""
    assert leave_one_out(slides(a1="A"))[0] == ()
    h5ad.write(tiny.slides(1)[0], tmp_path / "a1.h5ad")
    data = tiny.config(data__dir=str(tmp_path)).data
    with pytest.raises(InputError, match=r"a1: one slide alone.*at least two"):
        datasets.load(data)
    alone = datasets.load(data, trained_on=False)
    assert list(alone.slides) == ["a1"] and alone.folds == ()


def test_anndata_folder(tmp_path):
    sections = tiny.slides(3)
    tiny.write(tmp_path, sections)
    (tmp_path / "notes.txt").write_text("not a slide")
    data = tiny.config(data__dir=str(tmp_path)).data
    dataset = datasets.load(data)
    assert list(dataset.slides) == [s.name for s in sections] and dataset.genes is None
    for slide in sections:
        read = dataset.slides[slide.name]
        np.testing.assert_array_equal(read.counts.toarray(), slide.counts.toarray())
        np.testing.assert_array_equal(read.features, slide.features)
        assert read.encoder == tiny.ENCODER
    assert [s.name for s in dataset[dataset.folds[1].test]] == ["P1_S2"]


def test_hest_folder_keeps_the_published_folds_and_panel(tmp_path):
    toys = [toy_slide(name) for name in ("T1", "T2", "T3")]
    panel = ["GENE5", "GENE0", "GENE7"]
    write_task(tmp_path, "IDC", toys, panel, patches=False)
    write_embeddings(tmp_path / "embed", "IDC", "uni_v1", toys)
    data = tiny.config(data__reader="hest", data__dir=str(tmp_path), data__task="IDC").data
    dataset = datasets.load(data, str(tmp_path / "embed"), "uni_v1")
    assert dataset.genes == tuple(panel) and "published" in dataset.folds_from
    assert [fold.test for fold in dataset.folds] == [("T1",), ("T2",), ("T3",)]
    assert dataset.slides["T2"].encoder == "uni_v1"
    assert datasets.choose_genes(dataset, list(dataset.slides.values()), data) == panel
    assert datasets.load(data).slides["T2"].features is None
    data.folds = "published"
    assert datasets.load(data).folds == dataset.folds
    data.folds = "section"  # slides without a patient are a stack; the list of genes stays
    sections = datasets.load(data)
    assert sorted(fold.test for fold in sections.folds) == [("T1",), ("T2",), ("T3",)]
    assert "published" not in sections.folds_from and "genes are the data" in sections.folds_from
    assert sections.genes == dataset.genes


def test_genes_are_chosen_on_the_training_slides_alone(tmp_path):
    """A gene that varies in the test slide only is not chosen for it."""
    sections = tiny.slides(3)
    special = most_variable_genes(sections[:2], 20)[-1]
    counts = sections[2].counts.tolil()
    counts[:, list(sections[2].genes).index(special)] = np.tile([0, 90_000], 50)[
        : counts.shape[0], None
    ]
    sections[2] = dataclasses.replace(sections[2], counts=counts.tocsr())
    tiny.write(tmp_path, sections)
    data = tiny.config(data__dir=str(tmp_path)).data
    dataset = datasets.load(data)
    train = dataset[dataset.folds[2].train]
    chosen = datasets.choose_genes(dataset, train, data)
    assert chosen == most_variable_genes(sections[:2], 8)
    assert special not in chosen
    assert special in datasets.choose_genes(dataset, list(dataset.slides.values()), data)


def test_genes_absent_from_a_slide(tmp_path):
    toys = [toy_slide("T1"), toy_slide("T2")]
    toys[1] = dataclasses.replace(
        toys[1], counts=toys[1].counts[:, 1:].tocsr(), genes=toys[1].genes[1:]
    )
    dataset = datasets.Dataset({t.name: t for t in toys}, (), ("GENE0", "GENE3"), "")
    data = tiny.config().data
    with pytest.raises(InputError, match=r"'T2'.*1 of 2 genes found; missing GENE0"):
        datasets.choose_genes(dataset, toys, data)
    data.missing_genes = "drop"
    assert datasets.choose_genes(dataset, toys, data) == ["GENE3"]
    assert datasets.choose_genes(dataset, toys[:1], data) == ["GENE3"], "T2 could not be scored"


def test_simulated_tissue_and_what_is_kept_out_of_it():
    fields = {"data__tissue__num_sections": 3, "data__tissue__spots": 20}
    data = tiny.config(data__reader="simulated", data__unseen=1, data__seeds=(0, 1), **fields).data
    data.tissue.num_genes = 5
    dataset = datasets.load(data)
    kept_out = datasets.unseen(data)
    assert [slide.name for slide in kept_out] == ["P2_S3"]
    assert list(dataset.slides) == ["P1_S1", "P1_S2", "P1_S3", "P2_S1", "P2_S2"]
    assert [fold.test for fold in dataset.folds] == [
        ("P1_S1", "P1_S2", "P1_S3"),
        ("P2_S1", "P2_S2"),
    ]
    assert dataset.folds_from.startswith("simulated")


def test_an_unknown_field_of_the_tissue():
    data = tiny.config(data__reader="simulated", data__unseen=1).data.unlock()
    data.tissue.genes, data.tissue.spot = 5, 20
    for make in (datasets.load, datasets.unseen):
        with pytest.raises(
            InputError,
            match="config.data.tissue has no field 'genes', 'spot'; it "
            r"has num_sections, spots, num_genes",
        ):
            make(data)


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for slide in tiny.slides(2):
        h5ad.write(slide, tmp_path / "mine" / f"{slide.name}.h5ad")
    assert len(datasets.load(tiny.config(data__dir="~/mine").data).slides) == 2


@pytest.mark.parametrize(("train", "refused"), [(["P_S0", "P_S1"], True), (["P_S1"], False)])
def test_a_fold_that_trains_on_a_slide_and_tests_its_copy_is_refused(train, refused):
    one = {each.name: each for each in tiny.slides(3)}
    a, b, c = one.values()
    there = {"P_S0": a, "P_S1": b, "P_S2": dataclasses.replace(a, name="P_S2"), "P_S3": c}
    dataset = datasets.Dataset(there, (Fold(tuple(train), ("P_S2", "P_S3")),), None, "")
    if refused:
        with pytest.raises(InputError, match="a fold trains on one and tests the other"):
            datasets._without_copies(dataset)
    else:
        assert set(datasets._without_copies(dataset).slides) == set(there)


def test_sections_of_her2st_are_those_asked_for_or_all(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(datasets.her2st, "sections", lambda root: ["A1", "B1", "C1"])
    monkeypatch.setattr(datasets.her2st, "read", lambda root, name, rules: read.append(name))
    config = demo.get_config()
    config.data.dir = str(tmp_path)
    for asked, expected in (((), ["A1", "B1", "C1"]), (("C1", "A1"), ["C1", "A1"])):
        config.data.sections = asked
        assert list(datasets._her2st(config.data).slides) == expected
    assert read == ["A1", "B1", "C1", "C1", "A1"]
