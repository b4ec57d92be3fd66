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
    methods = report.summarize(FOLDS)["methods"]
    assert list(methods) == ["ridge", "stflow"]
    assert set(methods["ridge"]["pearson"]) == {"mean", "std", "folds"}
    assert methods["ridge"]["pearson"]["mean"] == pytest.approx(0.6)
    assert methods["ridge"]["pearson"]["std"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert methods["ridge"]["mse"]["folds"] == [1.0, 3.0]


def test_summary_leaves_nan_out_but_keeps_its_place():
    stflow = report.summarize(FOLDS)["methods"]["stflow"]
    assert stflow["pearson"]["mean"] == pytest.approx(0.6)
    assert np.isnan(stflow["pearson"]["std"])
    np.testing.assert_array_equal(stflow["pearson"]["folds"], [0.6, np.nan])
    np.testing.assert_array_equal(stflow["coverage80"]["folds"], [0.7, np.nan])
    nothing = report.summarize([{"mean": {"pearson": np.nan}}])["methods"]["mean"]["pearson"]
    assert np.isnan(nothing["mean"])
    assert report.summarize([]) == {"methods": {}}


def entry(mean, std=0.01):
    return {"mean": mean, "std": std, "folds": []}


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


def test_table_takes_all_metrics_and_null_from_json():
    table = report.text_table(json.loads(json.dumps({"a": {"crps": entry(None, None)}})))
    assert "crps" in table and "*" not in table
    assert report.text_table({}) is not None
