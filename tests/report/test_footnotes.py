"""Marks at the names of rows whose test slides lacked what they are for, and their lines."""

from types import SimpleNamespace

from stfm_jax.report.footnotes import marked

COPY = SimpleNamespace(name="copy", draws_as=None)
FLOW = SimpleNamespace(name="flow", draws_as="flow_sample")
ROWS = {"copy": {"pearson": 1}, "flow": {"pearson": 2}, "flow_sample": {"pearson": 3}}


def test_nothing_lacks_nothing_is_marked():
    assert marked(ROWS, {0: {}}, [COPY, FLOW]) == (ROWS, [])


def test_marks_are_numbered_in_turn_and_draws_have_their_methods():
    lacks = {
        0: {"copy": {"S1": "no neighbour", "S2": "no neighbour"}},
        2: {"copy": {"S5": "no image"}, "flow": {"S5": "no neighbour"}},
        3: {"copy": {"S6": "no neighbour"}},
    }
    rows, lines = marked(ROWS, lacks, [COPY, FLOW])
    assert rows == {
        "copy [1] [2]": {"pearson": 1},
        "flow [1]": {"pearson": 2},
        "flow_sample [1]": {"pearson": 3},
    }
    assert [line.split(". Such")[0] for line in lines] == [
        "[1] no neighbour: copy in fold 0, 3; flow in fold 2",
        "[2] no image: copy in fold 2",
    ]


def test_a_method_that_was_scored_nowhere_has_an_empty_row():
    rows, lines = marked({"flow": {"pearson": 2}}, {1: {"copy": {"S1": "no stack"}}}, [COPY, FLOW])
    assert rows == {"flow": {"pearson": 2}, "copy [1]": {}} and len(lines) == 1
