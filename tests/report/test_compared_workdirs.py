"""What a comparison makes of a part's workdir: rows, ranks, costs, controls and its tables."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest

from stfm_jax import layout
from stfm_jax.report import comparison
from stfm_jax.report.compared import Part, notes_of, tables_of
from stfm_jax.runtime.files import save_arrays, write_csv, write_json

PEARSON = {"mean": (0.0, 0.0), "ridge": (0.5, 0.7), "anchor": (0.5, 0.8), "stflow": (0.6, 0.6)}
CONTROLS = {
    "truth_smooth": {"pearson": 0.7, "mse": 0.4, "gene_structure": 0.9, "moran": None},
    "neighbours_true": {"pearson": 0.5, "mse": 0.5, "gene_structure": 0.92, "moran": 0.1},
    "shuffle_spots": {"pearson": 0.0, "mse": 1.6, "gene_structure": 1.0, "moran": 0.0},
    "shuffle_genes": {"pearson": 0.1, "mse": 1.5, "gene_structure": 0.0, "moran": 0.0},
}


def method(name, owner=""):
    made = types.SimpleNamespace(name=name, owner=owner or name, draws_as=f"{name}_draw")
    made.needs = frozenset()
    return made


METHODS = [method("mean"), method("ridge"), method("anchor", "stflow"), method("stflow")]


@pytest.fixture
def part(tmp_path):
    """Two folds of four methods, of which one draws; the second fold tests two slides."""
    for fold in range(2):
        place = layout.fold_folder(tmp_path, fold)
        tests = [f"s{fold}"] if fold == 0 else ["s1", "s2"]
        write_json(place / "fold.json", {"fold": fold, "test": tests, "genes": ["A"]})
        save_arrays(place / "truth.npz", {"expr": np.zeros((3, 1))})
        write_json(place / layout.CONTROLS, {"seed": 0, "scores": CONTROLS})
        for each in METHODS:
            folder = layout.method_folder(place, each.name, 0)
            score = PEARSON[each.name][fold]
            scores = {each.name: {"pearson": score, "pearson_slide": score, "mse": 1.0 - score}}
            if each.name == "stflow":
                scores[each.draws_as] = {"pearson": 0.2, "crps": 0.4, "coverage80": 0.79}
            write_json(folder / "scores.json", {"scores": scores, "per_gene": []})
            write_json(folder / layout.PREDICT_COST, {"predict_seconds": 1.0 + 2.0 * fold})
            if each.owner == each.name:
                cost = {"fit_seconds": 4.0, "fit_peak_gib": 0.5, "numbers": 1234.0}
                write_json(folder / layout.FIT_COST, cost)
    trained = layout.method_folder(layout.fold_folder(tmp_path, 0), "stflow", 0)
    for stage, seconds in (("select", (3.0, 4.0)), ("refit", (5.0,))):
        write_csv(trained / stage / "history.csv", [{"seconds": each} for each in seconds])
    config = types.SimpleNamespace(
        seeds=(), seed=0, compare=types.SimpleNamespace(controls=True)
    )  # fmt: skip
    dataset = types.SimpleNamespace(folds=[0, 1], folds_from="by hand")
    return Part("log1p", tmp_path, config, None, dataset, METHODS)


def test_rows_are_means_over_folds_the_best_first(part):
    assert part.means == ["anchor", "ridge", "stflow", "mean"] and part.drawn == ["stflow_draw"]
    assert part.value("anchor", "pearson") == pytest.approx(0.65)
    assert np.isnan(part.value("ridge", "crps")) and np.isnan(part.value("srast", "pearson"))


def test_equal_scores_share_their_rank(part):
    assert part.ranks() == {
        "anchor": [2.5, 1.0], "ridge": [2.5, 2.0], "stflow": [1.0, 3.0], "mean": [4.0, 4.0],
    }  # fmt: skip
    other = dataclasses.replace(part, methods=METHODS[:3])
    found = comparison._mean_ranks([part, other])
    assert list(found) == ["anchor", "ridge", "mean"]  # stflow is not of all parts
    assert found["anchor"] == pytest.approx((2.5 + 1.0 + 1.5 + 1.0) / 4)


def test_costs_are_means_over_folds_and_count_what_was_before_a_stop(part):
    assert part.costs["ridge"] == {
        "fit_seconds": 4.0, "fit_peak_gib": 0.5, "numbers": 1234.0, "predict_seconds": 2.0,
    }  # fmt: skip
    assert part.costs["stflow"]["fit_seconds"] == (12.0 + 4.0) / 2  # its stages took 3 + 4 + 5
    assert part.costs["anchor"] == part.costs["stflow"]  # whose state it reads


def test_scores_that_do_not_order_controls_are_marked(part):
    assert part.unordered == {"gene_structure": ("truth_smooth", "shuffle_spots")}
    (means, _), (draws, _), (shown, rows) = tables_of(part, {}, "ridge")
    assert means[:4] == ["method", "pearson", "pearson_slide", "mse"]
    assert draws[0] == "draws of" and shown[0] == "controls: they know the truth"
    assert [row[0] for row in rows] == list(CONTROLS)
    assert rows[0][1:3] == ["0.700 +- 0.000", "-"]
    (legend, note) = notes_of(part)
    assert legend.startswith("Mean +- spread over 2 of 2 folds") and legend.endswith("by hand.")
    assert note.startswith(
        "[1] gene_structure does not order its controls (truth_smooth 0.900, shuffle_spots 1.000)"
    )
    part.config.compare.controls = False
    again = dataclasses.replace(part)
    assert again.controls == again.unordered == {}
    assert len(tables_of(again, {}, "ridge")) == 2 and len(notes_of(again)) == 1


def test_a_worse_mse_of_a_positive_control_is_marked(part):
    for fold in range(2):
        scores = {name: dict(row) for name, row in CONTROLS.items()}
        scores["neighbours_true"]["mse"] = 1.5 + fold  # no better than shuffle_genes
        path = layout.fold_folder(part.workdir, fold) / layout.CONTROLS
        write_json(path, {"seed": 0, "scores": scores})
    assert part.unordered["mse"] == ("neighbours_true", "shuffle_genes")
    assert tables_of(part, {}, "ridge")[0][0][3] == "mse [1]"


def test_a_positive_control_that_is_as_good_as_a_negative_one_is_marked(part):
    for fold in range(2):
        scores = {name: dict(row) | {"pearson": 0.5} for name, row in CONTROLS.items()}
        path = layout.fold_folder(part.workdir, fold) / layout.CONTROLS
        write_json(path, {"seed": 0, "scores": scores})
    assert "pearson" in part.unordered


def test_cells_of_the_table(part):
    against = {"anchor": {"difference": 0.05, "low": -0.01, "high": 0.11}}
    columns, rows = tables_of(part, against, "ridge")[0]
    assert columns[4:] == ["pearson less ridge's", "fit", "predict", "memory", "size"]
    assert rows[0] == [
        "anchor", "0.650 +- 0.212", "0.650 +- 0.212", "0.350 +- 0.212", "+0.050 [-0.010, +0.110]",
        "8.0 s", "2.0 s", "0.5 GiB", "1.23k",
    ]  # fmt: skip
    assert rows[1][4] == ""
    for fold in part.folds:
        fold.fold["test"] = fold.fold["test"][:1]  # one slide each: it is the same as pearson
    assert "pearson_slide" not in tables_of(part, against, "ridge")[0][0]


def test_lines_of_the_csv_say_which_are_controls(part):
    rows = comparison._csv_rows(part)
    kinds = {row["row"]: row["kind"] for row in rows}
    assert kinds == dict.fromkeys((*PEARSON, "stflow_draw"), "method") | dict.fromkeys(
        CONTROLS, "control"
    )
    (cell,) = (r for r in rows if (r["row"], r["metric"]) == ("shuffle_spots", "mse"))
    assert (cell["part"], cell["mean"], cell["std"]) == ("log1p", pytest.approx(1.6), 0.0)
