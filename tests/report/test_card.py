"""The card of a model: what it says of slides, patients, encoder and scores, as they are."""

from types import SimpleNamespace

import pytest

from stfm_jax.models.method import EXPRESSION, SPLIT, STACK
from stfm_jax.report.card import card, terms

SLIDES = {
    "A1": {"spots": 300, "patient": "A"},
    "A2": {"spots": 41, "patient": "A"},
    "B1": {"spots": 7, "patient": "B"},
}
FOLDS = [
    {"train": ["A1", "A2"], "test": ["B1"]},
    {"train": ["B1"], "test": ["A1", "A2"]},
]


def said(slides=SLIDES, folds=FOLDS, needs=(), problem=EXPRESSION, rows=("stflow",), **changes):
    method = SimpleNamespace(
        name="stflow", needs=frozenset(needs), problem=problem, draws_as="stflow_sample", papers=()
    )
    model = {
        "method": method, "slides": slides, "epochs": 0, "features": 12, "encoder": "uni",
        "encoders": ("uni",), "individual_level": {},
        "genes": SimpleNamespace(scored=("G1", "G_<2>")),
    }  # fmt: skip
    config = SimpleNamespace(data=SimpleNamespace(task="", reader="her2st", normalization="log1p"))
    metrics = {
        "version": "0.0.1", "split": "by patient", "folds": folds, "folds_in_split": 3,
        "methods": {row: {"pearson": {"mean": 0.5}} for row in rows},
    }  # fmt: skip
    shown = SimpleNamespace(shown=("pearson", "crps"), explained="over genes")
    return card(SimpleNamespace(**model | changes), config, metrics, shown)


def test_slides_spots_and_patients_are_counted():
    text = said()
    assert (
        "3 slides (sections), 348 spots, of 2 patients." in text and "Slides: A1, A2, B1." in text
    )
    one = said(slides={"A1": SLIDES["A1"]}, folds=[{"train": [], "test": ["A1"]}])
    assert "1 slides (sections), 300 spots, of 1 patient." in one
    unnamed = SLIDES | {"C": {"spots": 1, "patient": ""}}
    assert "349 spots, of patients that are not all named." in said(slides=unnamed)
    older = said(slides={})
    assert "which kept no list of its slides" in older and "spots, of" not in older


@pytest.mark.parametrize(
    ("folds", "expected"),
    [
        (FOLDS, "of patients that were not trained on, and few."),
        ([FOLDS[0], {"train": ["A1"], "test": ["A2"]}], "have other slides among those trained on"),
        ([FOLDS[0], {"train": ["A1"], "test": ["X"]}], "is not known here"),
        ([{"train": ["X"], "test": ["A2"]}], "is not known here"),
    ],
)
def test_whose_patients_the_scores_are_of(folds, expected):
    text = said(folds=folds)
    found = [e for e in ("not trained on, and few", "trained on. Expect", "not known") if e in text]
    assert expected in text and len(found) == 1
    assert (
        "Trained on 2 patients." in text and "Trained on" not in said(slides={}).split("Limits")[1]
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "at the spots of an H&E-stained slide from its image"),
        ({"needs": (STACK,)}, "the other sections of its stack"),
        ({"problem": SPLIT}, "splits the counts of spots"),
        ({"problem": SPLIT, "needs": (STACK,)}, "splits the counts of spots"),
    ],
)
def test_what_it_is_for(changes, expected):
    text = said(**changes)
    assert expected in text.splitlines()[2]
    assert ("it splits any" in text) == ("problem" in changes) != ("2 genes predicted" in text)


def test_names_of_genes_are_no_markup_and_epochs_are_told_of():
    assert r"G1, G_\<2\>" in said()
    assert "Epochs of training: 7." in said(epochs=7) and "Epochs" not in said()


def test_what_is_known_of_encoders():
    assert "`uni`, 12 features" in said() and "One that the data do not name, 12" in said(
        encoder=""
    )
    two = said(encoder="uni + b", encoders=("uni", "b"))
    assert "`uni` and `b`, 12 features" in two
    assert "None: it sees no image." in said(features=0) and "None: it" not in said()
    assert "licence Apache-2.0" in terms("stain_texture") and "weights" in terms("stain_texture")
    assert "not known to stfm_jax" in terms("my_own")
    assert "terms to be accepted" in terms("uni_v1") and "accepted" not in terms("resnet50")


def test_scores_say_whose_they_are():
    assert "`stflow` is the row of its mean, `stflow_sample` of its single draws" in said()
    missing = said(rows=("ridge",))
    assert "`stflow` was not scored." in missing
    assert "pearson" in missing and "crps" not in missing
    assert "Mean +- spread over 2 of 3 folds, each" in missing and "\nOver genes.\n" in missing


def test_what_is_of_single_patients_is_listed():
    held = said(individual_level={"anchors": "expression of 5 spots"})
    assert "- `anchors`: expression of 5 spots." in held and "passes these on" in held
    assert "passes these on" not in said()
