"""Labels compared however they are spelled: what is the same, what is not, what says nothing."""

import logging

import numpy as np
import pandas as pd
import pytest

from stfm_jax.data import labels


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("P1 ", "p1"), ("1.0", "1"), ("007", "7"), ("Patient_2", "patient 2"), ("a-b", "A  b"),
        ("-3", "-3."), ("\uff11", "1"), ("nan", ""), ("N/A", None), ("+5", "5.00"),
    ],
)  # fmt: skip
def test_what_is_the_same(one, other):
    assert labels.key(one) == labels.key("" if other is None else other)


@pytest.mark.parametrize(
    ("one", "other"), [("P1", "P10"), ("1.5", "1"), ("-1", "1"), ("a.b", "a b"), ("1", "1a")]
)
def test_what_is_not(one, other):
    assert labels.key(one) != labels.key(other)


def test_what_says_nothing():
    said = [labels.said(label) for label in (" A ", "NaN", None, "unknown", "nano")]
    assert said == ["A", "", "", "", "nano"]


def test_the_first_spelling_is_kept():
    found = labels.one_spelling(["P1 ", "p1", "P2", "none"])
    assert found == {"P1 ": "P1", "p1": "P1", "P2": "P2", "none": ""}


@pytest.mark.parametrize("name", ["library_id", "Sample.ID", "batch", "orig.ident", "Section"])
def test_columns_that_name_slides(name):
    assert labels.is_slide_column(name)


@pytest.mark.parametrize("name", ["section", "cluster", "batches of cells", "x"])
def test_columns_that_do_not(name):
    assert not labels.is_slide_column(name)


def test_several_slides_have_three_spots_each_at_least():
    assert labels.several(pd.Series(["a"] * 5 + ["b"])) == ["a", "b"]
    assert labels.several(pd.Series(["a"] * 4 + ["b"])) == []
    assert labels.several(pd.Series(["a"] * 6)) == []
    assert labels.several(pd.Series(["b", "a", " a"] * 2)) == ["a", "b"]


def test_marks_around_barcodes():
    core = ["ACGTACGTAC", "ACGTACGTAG", "ACGTACGTAT"]
    assert labels.marks([f"{c}-{i}" for i in (1, 2) for c in core]) == ["-1", "-2"]
    assert labels.marks([f"{c}-1" for c in core] * 2) == []
    assert labels.marks([f"s{i}_3x-{j}" for i in (1, 2) for j in range(3)]) == ["s1_", "s2_"]
    assert labels.marks([f"{c}-{i}" for i in (1, 2) for c in core] + ["other"]) == []


def test_places_of_names(caplog):
    with caplog.at_level(logging.INFO, "stfm_jax"):
        found = labels.places(["b", "c", "a"], ["a", "b"], "slide")
        np.testing.assert_array_equal(found, [1, -1, 0])
        assert not caplog.messages
        found = labels.places(["1", "2", "5"], ["002", "1", "003"], "slide X")
    np.testing.assert_array_equal(found, [1, 0, -1])
    assert caplog.messages == [
        "slide X: 1 names are spelled otherwise, such as '2' for '002', and taken for the same"
    ]


def test_names_that_could_be_either_are_not_guessed():
    np.testing.assert_array_equal(labels.places(["1", "01"], ["001", "2"], ""), [-1, -1])
    np.testing.assert_array_equal(labels.places(["1", "3"], ["001", "01", "3"], ""), [-1, 2])
