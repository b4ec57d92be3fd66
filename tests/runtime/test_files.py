"""Files are written whole or not at all, and read back as they were."""

import csv
import errno
import json
import os
import stat
from typing import NamedTuple

import numpy as np
import pytest

from stfm_jax.errors import InputError
from stfm_jax.runtime import files


def test_json_is_strict_and_reads_back(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    value = {
        "scores": {"mean": 0.6, "std": np.nan, "folds": [0.6, np.float32("nan")]},
        "genes": {"left_out": np.int64(3), "names": np.array(["A", "B"])},
        "inf": [np.inf, np.float32(0.5), np.bool_(True), None],
        7: tmp_path,
    }
    files.write_json(path, value)
    read = json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"not JSON: {c}"))
    assert read["scores"] == {"mean": 0.6, "std": None, "folds": [0.6, None]}
    assert read["genes"] == {"left_out": 3, "names": ["A", "B"]}
    assert read["inf"] == [None, 0.5, True, None] and read["7"] == str(tmp_path)


def test_csv_of_uneven_rows_and_of_none(tmp_path):
    files.write_csv(tmp_path / "a.csv", [{"epoch": 0}, {"epoch": 1, "validation": 0.5}])
    assert (tmp_path / "a.csv").read_text() == "epoch,validation\n0,\n1,0.5\n"
    files.write_csv(tmp_path / "b.csv", [])
    assert (tmp_path / "b.csv").read_text() == ""


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    files.write_json(path, {"a": 1})
    before = path.read_text()
    monkeypatch.setattr(files.Path, "write_text", full_disk)
    with pytest.raises(InputError, match=r"metrics\.json.*disk is full"):
        files.write_json(path, {"a": 2})
    monkeypatch.setattr(files.csv.DictWriter, "writerows", full_disk)
    with pytest.raises(InputError, match="disk is full"):
        files.write_csv(tmp_path / "per_gene.csv", [{"a": 1}])
    monkeypatch.undo()
    assert path.read_text() == before and os.listdir(tmp_path) == ["metrics.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_really_full_device_is_recognised(tmp_path):
    with pytest.raises(InputError, match="disk is full"), files.atomic_path(tmp_path / "x.txt"):
        with open("/dev/full", "w") as f:
            f.write("x" * 100_000)
    assert os.listdir(tmp_path) == []


def test_other_failures_pass_through_and_leave_nothing(tmp_path):
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"a": object()})
    with pytest.raises(KeyboardInterrupt), files.atomic_path(tmp_path / "b.png") as temporary:
        temporary.write_bytes(b"half")
        assert temporary.suffix == ".png" and temporary.parent == tmp_path
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_files_get_the_usual_permissions(tmp_path):
    files.write_json(tmp_path / "a.json", {})
    (tmp_path / "b").write_text("")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.json", "b")}
    assert len(modes) == 1


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    with files.atomic_folder(tmp_path / "new" / "folder") as folder:
        (folder / "a.txt").write_text("a")
        assert not (tmp_path / "new" / "folder").exists()
    assert [p.name for p in (tmp_path / "new").rglob("*")] == ["folder", "a.txt"]
    (tmp_path / "usual").mkdir()
    usual = (tmp_path / "usual").stat().st_mode
    assert (tmp_path / "new" / "folder").stat().st_mode == usual
    with pytest.raises(ZeroDivisionError), files.atomic_folder(tmp_path / "usual") as folder:
        (folder / "a.txt").write_text(str(1 / 0))
    for there in (tmp_path / "new", tmp_path / "new" / "folder" / "a.txt"):
        with pytest.raises(InputError, match="expected no folder"), files.atomic_folder(there):
            pass
    assert {p.name for p in tmp_path.iterdir()} == {"new", "usual"}


def test_csv_keeps_commas_and_empties_nan(tmp_path):
    rows = [{"gene": "A,1", "pearson": np.float32(0.5)}, {"gene": "B", "pearson": np.nan}]
    files.write_csv(tmp_path / "a.csv", rows)
    with open(tmp_path / "a.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert read == [{"gene": "A,1", "pearson": "0.5"}, {"gene": "B", "pearson": ""}]
    assert files.read_csv(tmp_path / "a.csv") == read
    assert files.read_csv(tmp_path / "none.csv") == []


def test_json_of_an_earlier_run(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": [1, None]})
    assert files.read_json(tmp_path / "a.json") == {"a": [1, None]}
    (tmp_path / "cut.json").write_text('{"a": [1')
    for name in ("cut.json", "none.json"):
        with pytest.raises(InputError, match=rf"{name}: expected a JSON file.*--workdir"):
            files.read_json(tmp_path / name)


class Pair(NamedTuple):
    left: np.ndarray
    right: np.ndarray


def test_arrays_come_back_nested(tmp_path):
    pair = Pair(np.arange(3), np.float32(0.5))
    files.save_arrays(tmp_path / "a.npz", {"pair": pair, "deep": {"er": {"x": np.ones((2, 2))}}})
    read = files.load_arrays(tmp_path / "a.npz")
    np.testing.assert_array_equal(read["pair"]["left"], [0, 1, 2])
    assert read["pair"]["right"] == 0.5 and read["pair"]["right"].dtype == np.float32
    np.testing.assert_array_equal(read["deep"]["er"]["x"], np.ones((2, 2)))
    assert os.listdir(tmp_path) == ["a.npz"]


def pickled(path):
    np.savez(path, x=np.array([{}], dtype=object))


def not_there(path):
    path.unlink()


def emptied(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("damage", [pickled, not_there, emptied, cut])
def test_arrays_that_cannot_be_read(tmp_path, damage):
    files.save_arrays(tmp_path / "a.npz", {"x": np.arange(100)})
    damage(tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"a\.npz: not a readable .npz file"):
        files.load_arrays(tmp_path / "a.npz")
