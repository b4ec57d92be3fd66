"""Features in a file against the same in memory: blocks, subsets, damage."""

import h5py
import numpy as np
import pytest

from stfm_jax.data import feature_store
from stfm_jax.errors import InputError

VALUES = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
ORDERS = {
    "as stored": np.arange(50),
    "some dropped": np.flatnonzero(np.arange(50) % 7 > 1),
    "another order": np.random.default_rng(1).permutation(50)[:33],
    "the last few": np.arange(47, 50),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(feature_store, "BLOCK", 8)


def stored(folder, values=VALUES, **options):
    with h5py.File(folder / "rows.h5", "w") as file:
        file.create_dataset("group/x", data=values, **options)
        return feature_store.stored_features(file["group/x"], "rows.h5")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "options", [{}, {"chunks": (5, 2), "compression": "gzip"}, {"chunks": (1, 3)}]
)
def test_a_file_gives_what_memory_does(tmp_path, order, options):
    index = ORDERS[order]
    features = stored(tmp_path, **options).take(index)
    assert features.shape == (len(index), 3) and len(features) == len(index)
    np.testing.assert_array_equal(np.asarray(features), VALUES[index])
    parts = list(features.blocks())
    assert max(len(spots) for spots, _ in parts) <= 8
    np.testing.assert_array_equal(np.sort(np.concatenate([i for i, _ in parts])), range(len(index)))
    for spots, values in parts:
        np.testing.assert_array_equal(values, VALUES[index][spots])


def test_subsets_of_subsets(tmp_path):
    first, second = ORDERS["another order"], np.array([5, 1, 30])
    both = stored(tmp_path).take(first).take(second)
    np.testing.assert_array_equal(np.asarray(both), VALUES[first][second])
    np.testing.assert_array_equal(feature_store.take(VALUES[first], second), np.asarray(both))


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int32, np.uint8])
def test_other_kinds_of_numbers_become_float32(tmp_path, kind):
    values = (10 * np.abs(VALUES)).astype(kind)
    for _, block in stored(tmp_path, values).blocks():
        assert block.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(stored(tmp_path, values)), values.astype(np.float32))


def test_each_row_is_read_once_and_the_file_is_closed(tmp_path):
    features = stored(tmp_path)
    for _ in features.blocks():
        break  # in the middle of the file
    with h5py.File(tmp_path / "rows.h5", "r+") as file:  # refused while it is open for reading
        file["group/x"][0] = 7.0
    assert np.asarray(features)[0, 0] == 7.0


def test_blocks_of_memory():
    parts = list(feature_store.blocks(VALUES))
    assert [len(spots) for spots, _ in parts] == [8] * 6 + [2]
    np.testing.assert_array_equal(np.concatenate([values for _, values in parts]), VALUES)
    assert [len(span) for span in feature_store.spans(50, 20)] == [20, 20, 10]


def test_bad_rows(tmp_path):
    values = VALUES.copy()
    values[40, 1], values[41, 0] = np.nan, np.inf
    with pytest.raises(InputError, match=r"rows.h5: group/x: features of 2 spots hold NaN"):
        np.asarray(stored(tmp_path, values))
    np.asarray(stored(tmp_path, values).take(np.arange(40)))  # not looked at, not refused
    with pytest.raises(InputError, match="'slide': features of 2 spots hold NaN"):
        feature_store.check_finite(values, "slide 'slide'")
    with pytest.raises(InputError, match=r"group/x to be a matrix of numbers, found .*\(50,\)"):
        stored(tmp_path, VALUES[:, 0])
    with pytest.raises(InputError, match="matrix of numbers, found object"):
        stored(tmp_path, np.array([["a", "b"]], dtype=object))
    features = stored(tmp_path)
    content = (tmp_path / "rows.h5").read_bytes()
    (tmp_path / "rows.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"rows.h5: expected a readable HDF5 file"):
        np.asarray(features)
    (tmp_path / "rows.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"rows.h5: no such file"):
        np.asarray(features)
