"""The report: means over folds, the table for people, rows of per_gene.csv."""

import json

import numpy as np
import pytest

from stfm_jax.report import tables as report

FOLDS = [
    {"ridge": {"pearson": 0.5, "mse": 1.0}, "stflow": {"pearson": 0.6, "coverage80": 0.7}},
    {"ridge": {"pearson": 0.7, "mse": 3.0}, "stflow": {"pearson": np.float32("nan")}},
]


def test_summary_has_the_shape_of_the_contract():
    methods = report.summarize([[fold] for fold in FOLDS])["methods"]
    assert list(methods) == ["ridge", "stflow"]
    assert set(methods["ridge"]["pearson"]) == {"mean", "std", "folds", "seeds", "seed_std"}
    assert methods["ridge"]["pearson"]["mean"] == pytest.approx(0.6)
    assert methods["ridge"]["pearson"]["std"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert methods["ridge"]["mse"]["folds"] == [1.0, 3.0]


def test_summary_leaves_nan_out_but_keeps_its_place():
    stflow = report.summarize([[fold] for fold in FOLDS])["methods"]["stflow"]
    assert stflow["pearson"]["mean"] == pytest.approx(0.6)
    assert np.isnan(stflow["pearson"]["std"])
    np.testing.assert_array_equal(stflow["pearson"]["folds"], [0.6, np.nan])
    np.testing.assert_array_equal(stflow["coverage80"]["folds"], [0.7, np.nan])
    nothing = report.summarize([[{"mean": {"pearson": np.nan}}]])["methods"]["mean"]["pearson"]
    assert np.isnan(nothing["mean"]) and np.isnan(nothing["seeds"]).all()
    assert report.summarize([]) == {"methods": {}}
    of_json = report.summarize([[{"mean": {"gene_structure": None}}]])  # NaN as it was read back
    assert np.isnan(of_json["methods"]["mean"]["gene_structure"]["mean"])


def cell(*folds) -> dict:
    """Of a metric whose values are given by fold, for each seed."""
    scores = [[{} if v is None else {"a": {"crps": v}} for v in fold] for fold in folds]
    return report.summarize(scores)["methods"]["a"]["crps"]


def test_folds_are_means_over_seeds_and_seeds_over_folds():
    found = cell((1.0, 2.0, 6.0), (3.0, 5.0, 1.0))
    assert found["folds"] == [3.0, 3.0] and found["seeds"] == [2.0, 3.5, 3.5]
    assert found["mean"] == 3.0 and found["std"] == 0.0
    assert found["seed_std"] == pytest.approx(np.std([2.0, 3.5, 3.5], ddof=1))
    one = cell((1.0,), (3.0,))
    assert one["seeds"] == [one["mean"]] == [2.0] and np.isnan(one["seed_std"])


def test_seeds_are_compared_on_the_folds_that_all_of_them_have():
    """A fold more would move the mean of a seed by the fold's own height."""
    found = cell((1.0, 2.0), (10.0, None))
    assert found["folds"] == [1.5, 10.0] and found["seeds"] == [1.0, 2.0]
    assert found["seed_std"] == pytest.approx(np.std([1.0, 2.0], ddof=1))
    never = cell((1.0, None), (3.0, None))
    assert never["folds"] == [1.0, 3.0] and never["mean"] == 2.0
    np.testing.assert_array_equal(never["seeds"], [2.0, np.nan])
    assert np.isnan(never["seed_std"])
    apart = cell((1.0, None), (None, 3.0))
    assert apart["folds"] == [1.0, 3.0]
    assert np.isnan(apart["seeds"]).all() and np.isnan(apart["seed_std"])


def entry(mean, std=0.01, seed_std=None):
    return {"mean": mean, "std": std, "folds": [], "seeds": [], "seed_std": seed_std}


def test_the_table_shows_the_spread_over_seeds_where_there_is_one():
    methods = {"ridge": {"mse": entry(0.5, 0.02, 0.003)}, "mean": {"mse": entry(1.0, None, 0.1)}}
    rows = report.text_table(methods).splitlines()[2:]
    assert "0.500 +- 0.020 / 0.003*" in rows[0] and rows[1].split() == [
        "mean",
        "1.000",
        "/",
        "0.100",
    ]
    assert report.legend(2, 5, 3) == "Mean +- spread over 2 of 5 folds / spread over 3 seeds"
    assert report.legend(2, 5, 1) == "Mean +- spread over 2 of 5 folds"


def test_table_is_aligned_and_marks_the_best():
    methods = {
        "ridge": {"pearson": entry(0.537), "mse": entry(1.25), "coverage80": entry(None, None)},
        "kernel_ridge": {"pearson": entry(0.569), "mse": entry(0.5), "coverage80": entry(0.99)},
        "stflow": {"pearson": entry(0.5691), "mse": entry(10.5), "coverage80": entry(0.78)},
        "mean": {"pearson": entry(0.0, float("nan"))},
    }
    lines = report.text_table(methods, ["pearson", "mse", "coverage80"]).splitlines()
    assert lines[0].split() == ["pearson", "mse", "coverage80"] and set(lines[1]) == {"-"}
    rows = {line.split()[0]: line for line in lines[2:]}
    assert list(rows) == list(methods)
    assert "0.569 +- 0.010*" in rows["kernel_ridge"] and "0.500 +- 0.010*" in rows["kernel_ridge"]
    # what prints alike is marked alike; coverage is best near 0.8, not at its highest
    assert "0.569 +- 0.010*" in rows["stflow"] and "0.780 +- 0.010*" in rows["stflow"]
    assert "*" not in rows["ridge"] and rows["mean"].split() == ["mean", "0.000", "-", "-"]
    dots = {line.index("+-") for name, line in rows.items() if name != "mean"}
    assert len(dots) == 1
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("metric", ["mse", "mae", "rmse", "crps", "mass_error"])
def test_the_least_error_is_marked(metric):
    table = report.text_table({"a": {metric: entry(1.0)}, "b": {metric: entry(2.0)}}, [metric])
    marked = [line.split()[0] for line in table.splitlines() if "*" in line]
    assert marked == ["a"]


@pytest.mark.parametrize(("nearest", "other"), [(0.75, 0.9), (0.9, 0.5), (0.8, 0.81)])
def test_the_coverage_nearest_to_what_was_promised_is_marked(nearest, other):
    """Above it and below it."""
    table = report.text_table(
        {"a": {"coverage80": entry(other)}, "b": {"coverage80": entry(nearest)}}
    )
    assert [line.split()[0] for line in table.splitlines() if "*" in line] == ["b"]


def test_table_takes_all_metrics_and_null_from_json():
    table = report.text_table(json.loads(json.dumps({"a": {"crps": entry(None, None)}})))
    assert "crps" in table and "*" not in table
    assert report.text_table({}) is not None
