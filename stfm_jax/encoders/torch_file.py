"""Files of torch.save read without torch, and without running anything that they ask for.

The pickle in such a file names code, and an ordinary unpickler imports and calls it. Here a name is
compared with the few that tensors need and is never imported; what it would make is a plain dict or
a record of a tensor, which is then looked up in the mapped file.

The two formats are those of torch 0.4 to 1.5 ("legacy": pickles, then raw storages) and since (a
zip archive of stored members).
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from stfm_jax.errors import InputError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of a legacy file
LEGACY = pickle.dumps(_MAGIC, 2)  # how a legacy file begins
ZIP = b"PK\x03\x04"

_STORAGES = {
    ("torch", f"{name}Storage"): np.dtype(dtype)
    for name, dtype in {
        "Float": np.float32,
        "Half": np.float16,
        "Double": np.float64,
        "BFloat16": jnp.bfloat16,
        "Long": np.int64,
        "Int": np.int32,
        "Short": np.int16,
        "Char": np.int8,
        "Byte": np.uint8,
        "Bool": np.bool_,
    }.items()
}


class _Storage(NamedTuple):
    """Numbers that tensors are views of."""

    dtype: np.dtype
    key: str  # its name in the file
    count: int  # elements


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Dict(dict):
    """A dict in the place of an OrderedDict; attributes given to it (`_metadata`) are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


def read_zip(path: Path, data: np.ndarray) -> dict[str, np.ndarray]:
    """Tensors of a file of torch >= 1.6, as views of it.

    Args:
      path: the file, for reading its directory and for messages.
      data: [bytes] uint8, the same file mapped.

    Returns:
      As `stfm_jax.encoders.weights.read`.

    Raises:
      InputError: it asks for more than tensors, is compressed, or is another kind of archive.
      Exception: any other, where the file is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        roots = [n.removesuffix("data.pkl") for n in members if f"/{n}".endswith("/data.pkl")]
        if len(roots) != 1:
            raise InputError(
                f"{path}: expected a file of torch.save with one data.pkl, found an archive of "
                f"{', '.join(list(members)[:3]) or 'nothing'}; give the file of the weights."
            )
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise InputError(
                f"{path}: expected an archive as torch.save writes it, found a compressed one; "
                "unpack it, or save the weights again by torch.save."
            )
        order = f"{roots[0]}byteorder"
        _require_little(path, order not in members or archive.read(order) == b"little")
        tree, _ = _unpickle(path, io.BytesIO(archive.read(f"{roots[0]}data.pkl")))
    return _arrays(path, tree, lambda key: _member(data, members[f"{roots[0]}data/{key}"]))


def read_legacy(path: Path, data: np.ndarray) -> dict[str, np.ndarray]:
    """Tensors of a file of torch < 1.6 (`_use_new_zipfile_serialization=False`); as `read_zip`."""
    with open(path, "rb") as file:
        (magic, _), (protocol, _), (system, _) = (_unpickle(path, file) for _ in range(3))
        if (magic, protocol) != (_MAGIC, _PROTOCOL):
            raise ValueError(f"protocol {protocol}")
        _require_little(path, system["little_endian"])
        tree, storages = _unpickle(path, file)
        keys, _ = _unpickle(path, file)
        position = file.tell()
    raw = {}
    for key in keys:
        begin = position + 8
        count = int.from_bytes(data[position:begin].tobytes(), "little")
        position = begin + count * storages[key].dtype.itemsize
        raw[key] = data[begin:position]
    return _arrays(path, tree, raw.__getitem__)


def _require_little(path: Path, little: bool) -> None:
    if not little:
        raise InputError(
            f"{path}: expected numbers in little-endian order, found big-endian; save the weights "
            "again on a little-endian machine."
        )


def _member(data: np.ndarray, member: zipfile.ZipInfo) -> np.ndarray:
    """Bytes of a stored member: behind its local header of 30 bytes, name and padding."""
    header = data[member.header_offset :][:30]
    name, extra = header[26:].view("<u2")
    return data[member.header_offset + 30 + int(name) + int(extra) :][: member.file_size]


# --- the pickle -----------------------------------------------------------------------------------


def _unpickle(path: Path, file: BinaryIO) -> tuple[Any, dict[str, _Storage]]:
    """The pickle that begins here, and the storages it refers to; leaves `file` behind it."""
    start = file.tell()
    for opcode, argument, position in pickletools.genops(file):
        # The unpickler makes room for as many objects as the index says, whatever the file holds.
        if opcode.name in ("PUT", "LONG_BINPUT") and argument > position:
            raise ValueError(f"memo {argument} at byte {position}")
    length = file.tell() - start
    file.seek(start)
    unpickler = _Unpickler(path, io.BytesIO(file.read(length)))
    return unpickler.load(), unpickler.storages


class _Unpickler(pickle.Unpickler):
    """Plain containers, numbers, strings, `_Storage` and `_Tensor`; nothing else."""

    def __init__(self, path: Path, file: BinaryIO):
        super().__init__(file, fix_imports=False)
        self.path = path
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> _Global:
        if (module, name) not in _CALLS and (module, name) not in _STORAGES:
            raise InputError(
                f"{self.path}: expected tensors alone, but the file asks for {module}.{name}, "
                "which no tensor needs and may run code; none was run. Take model.safetensors, or "
                "save the weights alone where you trust the file: torch.save(model.state_dict())."
            )
        return _Global(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _Global() as kind, str(key), _, int(count), *view) if not any(view):
                storage = _Storage(_STORAGES[kind], key, count)
                if self.storages.setdefault(key, storage) == storage:
                    return storage
        raise ValueError(f"storage {pid}")


class _Global(NamedTuple):
    """A name of code: imitated where the pickle calls it, never imported.

    A tuple, because a pickle can set attributes of what it was given, and a tuple has none.
    """

    module: str
    name: str

    def __call__(self, *arguments: Any) -> Any:
        return _CALLS[self](*arguments)


def _tensor(storage, offset, shape, strides, *_) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor, *_) -> _Tensor:
    return tensor


_CALLS = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


# --- from records to arrays -----------------------------------------------------------------------


def _arrays(path: Path, tree: Any, raw: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
    """Named arrays of nested dicts of tensors.

    Args:
      raw: key of a storage -> its bytes.
    """
    if not isinstance(tree, dict):
        raise InputError(
            f"{path}: expected named tensors (a state dict), found a "
            f"{type(tree).__name__.strip('_').lower()}; save model.state_dict()."
        )
    arrays = {}
    for name, tensor in _flatten(tree):
        if name in arrays:
            raise ValueError(f"two tensors are called {name}")
        arrays[name] = _view(tensor, raw(tensor.storage.key))
    return arrays


def _flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, _Tensor]]:
    """Tensors under dotted names; what else a checkpoint holds (epochs, settings) is left out."""
    for key, value in tree.items():
        if isinstance(value, _Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")


def _view(tensor: _Tensor, raw: np.ndarray) -> np.ndarray:
    """The tensor [shape] as a view of its storage's bytes; ValueError where it reaches outside."""
    (dtype, key, count), offset, shape, strides = tensor
    if not all(isinstance(n, int) and n >= 0 for n in (count, offset, *shape, *strides)):
        raise ValueError(f"storage {key} has a tensor {tensor[1:]}")
    if raw.size < count * dtype.itemsize:
        raise ValueError(f"storage {key} has {raw.size} bytes of {count * dtype.itemsize}")
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if last >= count:
        raise ValueError(f"storage {key} has {count} elements, a tensor asks for number {last}")
    numbers = raw[: count * dtype.itemsize].view(dtype)[offset:]
    step = [s * dtype.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(numbers, shape, step, writeable=False)
