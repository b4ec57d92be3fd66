"""Tables of a comparison, of scores that only some rows have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from stfm_jax.report import compared


def cell(mean: float) -> dict:
    return {"mean": mean, "std": 0.01, "folds": [mean], "seeds": [mean], "seed_std": None}


class Part(compared.Part):
    """With rows of its own."""

    def __init__(self, rows, tested=("A",)):
        methods = [SimpleNamespace(name=n, draws_as=d) for n, d in (("a", None), ("b", "b_draw"))]
        for method in methods:
            method.needs = frozenset()
        dataset = SimpleNamespace(folds=[0, 1], folds_from="by patient")
        super().__init__("part", None, {"seeds": (0,), "seed": 0}, None, dataset, methods)
        self.__dict__.update(rows=rows, costs={}, controls={}, seeds=(0,))
        self.__dict__["folds"] = [SimpleNamespace(fold={"test": tested})]

    seeds = None


ROWS = {
    "a": {"pearson": cell(0.2), "svg": cell(0.3), "pearson:X": cell(0.4), "programmes": cell(0.5),
          "programmes:T cells": cell(0.5), "ari": cell(0.1), "ari_measured": cell(0.123)},
    "b": {"pearson": cell(0.6), "svg": cell(0.7), "pearson:X": cell(0.8)},
    "b_draw": {"pearson": cell(0.1), "svg": cell(0.9), "pearson:X": cell(0.0)},
}  # fmt: skip


def test_columns_are_those_that_some_row_has():
    main, draws, genes, lists = compared.tables_of(Part(ROWS), {}, "b")
    assert main[0][:5] == ["method", "pearson", "svg", "programmes", "ari"]
    assert [row[:5] for row in main[1]] == [
        ["b", "0.600 +- 0.010", "0.700 +- 0.010", "-", "-"],
        ["a", "0.200 +- 0.010", "0.300 +- 0.010", "0.500 +- 0.010", "0.100 +- 0.010"],
    ]
    assert draws == (
        ["draws of", "pearson", "svg"],
        [["b_draw", "0.100 +- 0.010", "0.900 +- 0.010"]],
    )
    assert genes == (["pearson of", "X"], [["b", "0.800 +- 0.010"], ["a", "0.400 +- 0.010"]])
    assert lists == (["programmes of", "T cells"], [["b", "-"], ["a", "0.500 +- 0.010"]])


def test_there_is_no_table_of_what_no_row_has():
    plain = {name: {"pearson": row["pearson"]} for name, row in ROWS.items()}
    (columns, _), (of_draws, _) = compared.tables_of(Part(plain), {}, "b")
    assert columns[1] == "pearson" and "svg" not in columns
    assert of_draws == ["draws of", "pearson"]


@pytest.mark.parametrize("name", ["svg", "programmes", "ari"])
def test_the_legend_says_what_is_shown_and_what_measured_expression_has(name):
    assert f". {name}: " in compared.legend_of(Part(ROWS))
    plain = {name: {"pearson": row["pearson"]} for name, row in ROWS.items()}
    assert f"{name}: " not in compared.legend_of(Part(plain))
    assert "labels; measured expression has 0.123" in compared.legend_of(Part(ROWS))
    assert compared.legend_of(Part(ROWS)).endswith(
        ". X: added to the panel, with no part in its means"
    )
