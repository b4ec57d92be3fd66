"""report: what the files hold, and that none is ever left half-written."""

import csv
import errno
import json
import os
import stat

import numpy as np
import pytest

from stfm_jax.errors import InputError
from stfm_jax.eval import report

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


def test_table_takes_all_metrics_and_null_from_json():
    table = report.text_table(json.loads(json.dumps({"a": {"crps": entry(None, None)}})))
    assert "crps" in table and "*" not in table
    assert report.text_table({}) is not None


def test_json_is_strict_and_reads_back(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    value = {
        "methods": report.summarize(FOLDS)["methods"],
        "genes": {"left_out": np.int64(3), "names": np.array(["A", "B"])},
        "inf": [np.inf, np.float32(0.5), np.bool_(True), None],
        7: tmp_path,
    }
    report.write_json(path, value)
    read = json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"not JSON: {c}"))
    assert read["methods"]["stflow"]["pearson"] == {"mean": 0.6, "std": None, "folds": [0.6, None]}
    assert read["genes"] == {"left_out": 3, "names": ["A", "B"]}
    assert read["inf"] == [None, 0.5, True, None] and read["7"] == str(tmp_path)


def test_csv_reads_back_with_empty_fields_for_nan(tmp_path):
    rows = report.per_gene_rows(
        2, "ridge", ["A,1", "B"], np.array([0.5, np.nan]), np.array([0.25, np.nan]), np.ones(2)
    )
    assert tuple(rows[0]) == report.PER_GENE_COLUMNS
    report.write_csv(tmp_path / "per_gene.csv", rows)
    with open(tmp_path / "per_gene.csv", newline="") as f:
        read = list(csv.DictReader(f))
    assert read[0] == {
        "fold": "2",
        "gene": "A,1",
        "method": "ridge",
        "pearson": "0.5",
        "spearman": "0.25",
        "mse": "1.0",
        "constant": "False",
    }
    assert read[1]["pearson"] == "" and read[1]["constant"] == "True"


def test_csv_of_uneven_rows_and_of_none(tmp_path):
    report.write_csv(tmp_path / "a.csv", [{"epoch": 0}, {"epoch": 1, "val_pearson": 0.5}])
    assert (tmp_path / "a.csv").read_text() == "epoch,val_pearson\n0,\n1,0.5\n"
    report.write_csv(tmp_path / "b.csv", [])
    assert (tmp_path / "b.csv").read_text() == ""


def test_genes_and_scores_must_match():
    with pytest.raises(ValueError):
        report.per_gene_rows(0, "ridge", ["A"], np.zeros(2), np.zeros(2), np.zeros(2))


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    report.write_json(path, {"a": 1})
    before = path.read_text()
    monkeypatch.setattr(report.Path, "write_text", full_disk)
    with pytest.raises(InputError, match=r"metrics\.json.*disk is full"):
        report.write_json(path, {"a": 2})
    monkeypatch.setattr(report.csv.DictWriter, "writerows", full_disk)
    with pytest.raises(InputError, match="disk is full"):
        report.write_csv(tmp_path / "per_gene.csv", [{"a": 1}])
    monkeypatch.undo()
    assert path.read_text() == before and os.listdir(tmp_path) == ["metrics.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_really_full_device_is_recognised(tmp_path):
    with pytest.raises(InputError, match="disk is full"), report.atomic_path(tmp_path / "x.txt"):
        with open("/dev/full", "w") as f:
            f.write("x" * 100_000)
    assert os.listdir(tmp_path) == []


def test_other_failures_pass_through_and_leave_nothing(tmp_path):
    with pytest.raises(TypeError):
        report.write_json(tmp_path / "a.json", {"a": object()})
    with pytest.raises(KeyboardInterrupt), report.atomic_path(tmp_path / "b.png") as temporary:
        temporary.write_bytes(b"half")
        assert temporary.suffix == ".png" and temporary.parent == tmp_path
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_files_get_the_usual_permissions(tmp_path):
    report.write_json(tmp_path / "a.json", {})
    (tmp_path / "b").write_text("")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.json", "b")}
    assert len(modes) == 1
