"""HDF5 files of others: what they must hold, where it may lie, and what memory must hold."""

import h5py
import numpy as np
import pytest

from stfm_jax.data import hdf5
from stfm_jax.errors import InputError
from stfm_jax.runtime import memory


@pytest.fixture
def path(tmp_path):
    """60 numbers, 480 bytes."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(10.0)
        file["deep/y"] = np.arange(30.0).reshape(3, 10)
        file["deep/er/z"] = np.arange(20.0)
        file["empty"] = h5py.Empty("f8")
    return tmp_path / "a.h5"


def read(path, *names):
    with hdf5.open_hdf5(path, names, "Get it.", "Mend it.") as file:
        return {name: np.asarray(file[name]) for name in names}


def test_what_must_be_there(path, tmp_path):
    np.testing.assert_array_equal(read(path, "x", "deep/er/z")["deep/er/z"], np.arange(20.0))
    with pytest.raises(InputError, match=r"datasets x, w, but it holds deep, empty, x; Mend it\."):
        read(path, "x", "w")
    with pytest.raises(FileNotFoundError, match=r"no such file\. Get it\."):
        read(tmp_path / "b.h5", "x")
    with pytest.raises(InputError, match=r"expected a file, found a folder\. Get it\."):
        read(tmp_path, "x")
    h5py.File(tmp_path / "none.h5", "w").close()
    with pytest.raises(InputError, match="but it holds nothing"):
        read(tmp_path / "none.h5", "x")


@pytest.mark.parametrize("free", [479, 480])
def test_all_that_is_read_must_fit_into_memory(path, free, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: free)
    with h5py.File(path) as file:
        if free < 480:
            with pytest.raises(InputError, match=r"a\.h5: unpacks to"):
                hdf5.require_room_for(file)
        else:
            hdf5.require_room_for(file)
        hdf5.require_room_for(file, but=["x"])
        hdf5.require_room_for(file["deep"], but=["y"])


def test_one_array_and_what_is_left_out(path, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 200)
    with h5py.File(path) as file:
        hdf5.require_room_for(file["x"])
        hdf5.require_room_for(file["deep/er"])
        hdf5.require_room_for(file["deep"], but=["y"])
        hdf5.require_room_for(file, but=["deep/y", "x"])
        for element, but in ((file["deep/y"], ()), (file["deep"], ["er/z"]), (file, ["y", "x"])):
            with pytest.raises(InputError, match="unpacks to"):
                hdf5.require_room_for(element, but)


def test_an_array_by_two_names_counts_once(path, monkeypatch):
    with h5py.File(path, "r+") as file:
        file["again"] = file["deep"]
        file["soft"] = h5py.SoftLink("/deep")
    monkeypatch.setattr(memory, "available_memory", lambda: 480)
    with h5py.File(path) as file:
        hdf5.require_room_for(file)


def other(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["v"] = np.arange(4.0)


@pytest.mark.parametrize("kind", ["link", "values", "virtual"])
def test_what_lies_in_another_file_is_named(path, tmp_path, kind):
    other(tmp_path)
    with h5py.File(path, "r+") as file:
        if kind == "link":
            file["deep/er/v"] = h5py.ExternalLink("other.h5", "/v")
        elif kind == "values":
            file.create_dataset("deep/er/v", (4,), "f8", external=[("other.h5", 0, 32)])
        else:
            layout = h5py.VirtualLayout((8,), "f8")
            layout[:4] = h5py.VirtualSource(".", "x", (10,))[:4]
            layout[4:] = h5py.VirtualSource("other.h5", "v", (4,))
            file.create_virtual_dataset("deep/er/v", layout)
    with pytest.raises(InputError, match=r"a\.h5: /deep/er/v lies in another file \(other\.h5\)"):
        read(path, "x")


def test_an_array_made_of_others_in_the_same_file_is_read(path):
    with h5py.File(path, "r+") as file:
        layout = h5py.VirtualLayout((4,), "f8")
        layout[:] = h5py.VirtualSource(".", "x", (10,))[:4]
        file.create_virtual_dataset("part", layout)
    np.testing.assert_array_equal(read(path, "part")["part"], np.arange(4.0))


def test_what_was_never_written_is_refused_and_what_is_packed_well_is_not(path, monkeypatch):
    with h5py.File(path, "r+") as file:
        file.create_dataset("packed", data=np.zeros(10_000), compression="gzip", chunks=(10_000,))
        size = file["packed"].id.get_storage_size()
    monkeypatch.setattr(hdf5, "available_memory", lambda: 1000)
    assert 80_000 <= hdf5.PACKED * size and len(read(path, "packed")["packed"]) == 10_000
    with h5py.File(path, "r+") as file:
        file.create_dataset("claimed", (64, 16), "f8", chunks=(4, 4))
    with pytest.raises(InputError, match=r"0\.0 GiB \(/claimed, 64 x 16 of float64\)"):
        read(path, "x")
    monkeypatch.setattr(hdf5, "available_memory", lambda: 64 * 16 * 8)
    read(path, "x")


def test_strings_of_bytes_and_of_text():
    np.testing.assert_array_equal(hdf5.decode_strings(np.array([[b"a"], [b"b"]])), ["a", "b"])
    np.testing.assert_array_equal(
        hdf5.decode_strings(np.array(["a", b"b", 3], object)), list("ab3")
    )
