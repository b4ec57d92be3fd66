"""Files of weights: right values, one message for wrong ones, and no code is run."""

from __future__ import annotations

import hashlib
import mmap
import pickle
import tarfile
import zipfile

import jax.numpy as jnp
import numpy as np
import optional
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_files import (
    EVIL,
    ORDERED,
    Call,
    Name,
    Storage,
    parameter,
    pickled,
    tensor,
    write_legacy,
    write_safetensors,
    write_zip,
)

from stfm_jax.encoders import weights
from stfm_jax.errors import InputError

NUMBERS = {
    "0": np.arange(12, dtype=np.float32),
    "1": np.array([1, 2.5, -3], jnp.bfloat16),
    "2": np.array([True, False]),
}
FLOATS, HALVES, FLAGS = (
    Storage("Float", "0", 12),
    Storage("BFloat16", "1", 3),
    Storage("Bool", "2", 2),
)
TREE = {
    "state_dict": Call(ORDERED.function, (), {"_metadata": ORDERED}),
    "model": {
        "whole": tensor(FLOATS, 0, (3, 4), (4, 1)),
        "turned": tensor(FLOATS, 1, (4, 2), (1, 4)),
        "repeated": tensor(FLOATS, 2, (2, 3), (0, 1)),
        "scalar": tensor(FLOATS, 11, (), ()),
        "none": tensor(FLOATS, 0, (0, 5), (5, 1)),
        "parameter": parameter(tensor(FLOATS, 4, (2,), (1,))),
        "halves": tensor(HALVES, 0, (3,), (1,)),
        "flags": tensor(FLAGS, 0, (2,), (1,)),
    },
    "epoch": 7,
    "settings": ["a", 1.5, None, (True,)],
}
A = NUMBERS["0"].reshape(3, 4)
EXPECTED = {
    "model.whole": A,
    "model.turned": A[:2, :].T + 1,
    "model.repeated": np.array([[2, 3, 4]] * 2, np.float32),
    "model.scalar": np.float32(11),
    "model.none": np.zeros((0, 5), np.float32),
    "model.parameter": np.array([4, 5], np.float32),
    "model.halves": NUMBERS["1"],
    "model.flags": NUMBERS["2"],
}
WRITERS = {"zip": write_zip, "legacy": write_legacy}
each_format = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array)


def assert_refused(path, *words):
    with pytest.raises(InputError) as error:
        weights.read(path)
    assert str(error.value).startswith(f"{path}: expected")
    for word in words:
        assert word in str(error.value)


# --- right files ----------------------------------------------------------------------------------


@each_format
def test_tensors_of_torch(write, tmp_path):
    """Views, transposed, repeated, without dimensions, empty, bfloat16, parameters, nested."""
    write(tmp_path / "a.pth", TREE, NUMBERS)
    assert_same(weights.read(tmp_path / "a.pth"), EXPECTED)


def test_tensors_of_safetensors(tmp_path):
    tensors = {"b": A, "a": NUMBERS["1"], "flags": NUMBERS["2"], "none": A[:0], "one": np.array(3)}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    assert_same(weights.read(tmp_path), tensors)


@pytest.mark.parametrize("write", [write_zip, write_legacy, None], ids=["zip", "legacy", "safe"])
def test_arrays_are_read_only_views_of_the_mapped_file(write, tmp_path):
    path = tmp_path / "a.bin"
    if write:
        write(path, {"a": TREE["model"]["whole"]}, {"0": NUMBERS["0"]})
    else:
        write_safetensors(path, {"a": A})
    array = base = weights.read(path)["a"]
    while not isinstance(base, mmap.mmap):
        base = base.base
    assert not array.flags.writeable


def test_the_file_of_a_folder(tmp_path):
    for name in ("other.pt", "pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).touch()
        assert weights.find(tmp_path) == tmp_path / name
        (tmp_path / "config.json").touch()


def test_the_digest_is_of_the_content(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"abc")
    digest = weights.digest(tmp_path)
    assert digest == hashlib.sha256(b"abc").hexdigest()[:16] == weights.digest(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("names", "prefix", "kept"),
    [
        (["a.weight", "b"], "", ["a.weight", "b"]),
        (["state_dict.module.a", "state_dict.module.b", "epoch"], "state_dict.module.", ["a", "b"]),
        (["teacher.backbone.a", "teacher.dino_head.b", "student.a"], "teacher.backbone.", ["a"]),
        (["state_dict.model.resnet.conv1.weight"], "state_dict.model.resnet.", ["conv1.weight"]),
        (["visual.trunk.norm.bias", "text.a"], "visual.trunk.", ["norm.bias"]),
        (["modules.a", "xmodule.b"], "", ["modules.a", "xmodule.b"]),
    ],
)
def test_prefixes_are_stripped(names, prefix, kept):
    stripped = weights.strip({name: np.array(i) for i, name in enumerate(names)})
    assert stripped.prefix == prefix and list(stripped.tensors) == kept
    assert len(stripped.left_out) == len(names) - len(kept)
    for name, array in stripped.tensors.items():
        assert names[int(array)] == prefix + name


# --- evil files -----------------------------------------------------------------------------------

NEAR = [  # names that are nearly the allowed ones
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch", "FloatStorage.__init__"),
    ("torch.serialization", "load"),
    ("collections", "namedtuple"),
    ("builtins", "print"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("pytorch_lightning.callbacks", "ModelCheckpoint"),
]


@each_format
@pytest.mark.parametrize("place", ["value", "key", "argument", "state", "whole"])
def test_code_is_named_and_not_run(write, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = {
        "value": {"a": EVIL},
        "key": {EVIL: 1},
        "argument": {"a": Call(ORDERED.function, (EVIL,))},
        "state": {"a": Call(ORDERED.function, (), EVIL)},
        "whole": EVIL,
    }[place]
    write(tmp_path / "a.bin", tree, {})
    assert_refused(tmp_path / "a.bin", "posix.system")
    assert not (tmp_path / "pwned").exists()


@each_format
@pytest.mark.parametrize("name", NEAR, ids=".".join)
def test_other_names_are_refused(write, name, tmp_path):
    write(tmp_path / "a.bin", {"a": Name(*name)}, {})
    assert_refused(tmp_path / "a.bin", ".".join(name))


def test_a_bare_pickle_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.bin").write_bytes(pickled(EVIL))
    assert_refused(tmp_path / "a.bin", "pickle")
    assert not (tmp_path / "pwned").exists()


REBUILD = Name("torch._utils", "_rebuild_tensor_v2")


@pytest.mark.parametrize(
    "value",
    [
        (ORDERED.function, (None, {"__call__": 1})),
        (REBUILD, (None, {"__defaults__": (1,)})),
        (REBUILD, {"a": 1}),
        (TREE["model"]["whole"], {"shape": 1}),
        (TREE["model"]["whole"], (None, {"shape": 1})),
    ],
    ids=str,
)
def test_nothing_of_ours_can_be_changed(value, tmp_path):
    """A pickle may set attributes of what it was given: there are none to be set."""
    made, state = (pickled(part)[2:-1] for part in value)
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + made + state + b"b.")
    assert_refused(tmp_path / "a.bin", "damaged")
    write_zip(tmp_path / "a.bin", TREE, NUMBERS)
    assert_same(weights.read(tmp_path / "a.bin"), EXPECTED)


@each_format
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (13,), (1,)),
        (12, (1,), (1,)),
        (1, (3, 4), (4, 1)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (2, 2), (1,)),
        (0, (2**31 - 1, 2**31 - 1), (2**31 - 1, 2**31 - 1)),
        (0, ("2",), (1,)),
        (0.0, (2,), (1,)),
    ],
)
def test_a_tensor_stays_within_its_storage(write, offset, shape, strides, tmp_path):
    write(tmp_path / "a.pt", {"a": tensor(FLOATS, offset, shape, strides)}, NUMBERS)
    assert_refused(tmp_path / "a.pt", "damaged")


@each_format
@pytest.mark.parametrize(
    "storage",
    [Storage("Float", "0", 13), Storage("Double", "0", 12), Storage("Float", "0", -1)],
)
def test_a_storage_stays_within_the_file(write, storage, tmp_path):
    write(tmp_path / "a.pt", {"a": tensor(storage, 0, (2,), (1,))}, {"0": NUMBERS["0"]})
    assert_refused(tmp_path / "a.pt", "damaged")


def test_a_large_memo_is_refused_before_there_is_room_for_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}r\xff\xff\xff\x7f.")
    assert_refused(tmp_path / "a.pt", "memo")


# --- wrong and damaged files ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"GGUF", "b'GGUF'"),
        (b"\xff" * 8 + b"{}", "damaged"),
        (b"\x02" + b"\0" * 7 + b"{}", "no tensor"),
        (b"\x02" + b"\0" * 7 + b"{]", "damaged"),
        (b"PK\x03\x04" + b"\0" * 40, "damaged"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2), "damaged"),
    ],
)
def test_other_files_are_told(content, word, tmp_path):
    (tmp_path / "a.pt").write_bytes(content)
    assert_refused(tmp_path / "a.pt", word)


def test_a_tar_is_told(tmp_path):
    (tmp_path / "tensors").write_bytes(b"a")
    with tarfile.open(tmp_path / "a.pt", "w") as archive:
        archive.add(tmp_path / "tensors")
    assert_refused(tmp_path / "a.pt", "tar archive")


@pytest.mark.parametrize("tree", [[TREE["model"]["whole"]], TREE["model"]["whole"], 3], ids=type)
def test_named_tensors_are_needed(tree, tmp_path):
    write_zip(tmp_path / "a.pt", tree, NUMBERS)
    assert_refused(tmp_path / "a.pt", "state dict")


def test_two_tensors_of_one_name_are_refused(tmp_path):
    scalar = TREE["model"]["scalar"]
    write_zip(tmp_path / "a.pt", {"a.b": scalar, "a": {"b": scalar}}, NUMBERS)
    assert_refused(tmp_path / "a.pt", "a.b")


def test_other_archives_are_refused(tmp_path):
    np.savez(tmp_path / "a.pt.npz", x=A)
    assert_refused(tmp_path / "a.pt.npz", "x.npy")
    write_zip(tmp_path / "b.pt", TREE, NUMBERS, compression=zipfile.ZIP_DEFLATED)
    assert_refused(tmp_path / "b.pt", "compressed")


def test_big_endian_is_refused(tmp_path):
    write_zip(tmp_path / "a.pt", TREE, NUMBERS, order="big")
    write_legacy(tmp_path / "b.pt", TREE, NUMBERS, little_endian=False)
    for name in ("a.pt", "b.pt"):
        assert_refused(tmp_path / name, "big-endian")


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"dtype": "F8_E4M3"}, "F8_E4M3"),
        ({"data_offsets": [0, 52]}, "damaged"),
        ({"data_offsets": [-4, 44]}, "damaged"),
        ({"shape": [3, 5]}, "damaged"),
        ({"shape": [-3, -4]}, "damaged"),
        ({"shape": None}, "damaged"),
    ],
)
def test_wrong_headers_of_safetensors_are_refused(changed, word, tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"a": A}, **changed)
    assert_refused(tmp_path / "a.safetensors", word)


def test_a_folder_without_one_file_is_refused(tmp_path):
    assert_refused(tmp_path / "absent", "none")
    assert_refused(tmp_path, "none", "model.safetensors")
    for name in ("a.pt", "b.ckpt"):
        (tmp_path / name).touch()
    assert_refused(tmp_path, "a.pt, b.ckpt")
    with pytest.raises(InputError):
        weights.digest(tmp_path)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_zip(folder / "zip", TREE, NUMBERS)
    write_legacy(folder / "legacy", TREE, NUMBERS)
    write_safetensors(folder / "safe", {"a": A, "b": NUMBERS["1"]})
    return [(folder / name).read_bytes() for name in ("zip", "legacy", "safe")], folder / "damaged"


@settings(max_examples=150, deadline=None, database=None)
@given(which=st.integers(0, 2), data=st.data())
def test_damage_is_told_or_harmless(whole_files, which, data):
    """Cut off and with bytes changed: one message or named arrays, never another error."""
    contents, path = whole_files
    content = bytearray(contents[which])
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.none())])
    try:
        tensors = weights.read(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: expected")
    else:
        assert all(isinstance(array, np.ndarray) for array in tensors.values())


@pytest.mark.parametrize("which", ["zip", "legacy", "safe"])
def test_an_incomplete_file_is_told_wherever_it_ends(which, whole_files):
    contents, path = whole_files
    content = contents[["zip", "legacy", "safe"].index(which)]
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        assert_refused(path)


# --- files that torch wrote -----------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_files_of_torch_itself(new, tmp_path):
    torch = optional.torch()
    base = torch.randn(4, 6)
    kinds = ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    tensors = {kind: base.to(getattr(torch, kind)) for kind in kinds} | {
        "view": base[1:, 2:5],
        "turned": base.T[:, 1],
        "repeated": base[:1].expand(3, 6),
        "scalar": torch.tensor(3.5),
        "none": torch.zeros(0, 2),
        "parameter": torch.nn.Parameter(base.clone()),
        **torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict(),
    }
    path = tmp_path / "a.ckpt"
    torch.save({"model": tensors, "epoch": 3}, path, _use_new_zipfile_serialization=new)
    found = weights.strip(weights.read(path)).tensors
    assert list(found) == list(tensors)
    for name, wanted in tensors.items():
        array = found[name]
        assert str(wanted.dtype) == f"torch.{array.dtype.name}" and array.shape == wanted.shape
        np.testing.assert_array_equal(array.astype(float), wanted.detach().double().numpy())


@pytest.mark.parity
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_more_than_tensors_of_torch_is_refused(new, tmp_path):
    torch = optional.torch()
    path = tmp_path / "a.pt"
    for value, word in (
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"a": np.ones(3)}, "multiarray._reconstruct"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, "_rebuild_tensor_v3"),
        (torch.ones(2), "state dict"),
    ):
        torch.save(value, path, _use_new_zipfile_serialization=new)
        assert_refused(path, word)
