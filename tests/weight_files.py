"""Files of weights made by hand, without torch or safetensors: right ones and evil ones."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True}


class Name(NamedTuple):
    """Code that a pickle names."""

    module: str
    name: str


class Call(NamedTuple):
    """A call that a pickle asks for, and a state set on what comes of it."""

    function: Any
    arguments: tuple
    state: Any = None


class Storage(NamedTuple):
    """A reference to the numbers of a file."""

    kind: str
    key: str
    count: int

    @property
    def pid(self) -> tuple:
        return ("storage", Name("torch", f"{self.kind}Storage"), self.key, "cpu", self.count)


ORDERED = Call(Name("collections", "OrderedDict"), ())
EVIL = Call(Name("posix", "system"), ("touch pwned",))


def tensor(storage: Storage, offset: int, shape: tuple, strides: tuple) -> Call:
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, (storage, offset, shape, strides, False, ORDERED))


def parameter(of: Call) -> Call:
    return Call(Name("torch._utils", "_rebuild_parameter"), (of, True, ORDERED))


def pickled(value: Any, legacy: bool = False) -> bytes:
    """The pickle of a value, protocol 2; the pickle's opcodes are in `pickletools`."""
    return b"\x80\x02" + _opcodes(value, legacy) + b"."


def _opcodes(value: Any, legacy: bool) -> bytes:
    def many(values) -> bytes:
        return b"(" + b"".join(_opcodes(v, legacy) for v in values)

    match value:
        case Name(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments, state):
            made = _opcodes(function, legacy) + _opcodes(arguments, legacy) + b"R"
            return made if state is None else made + _opcodes(state, legacy) + b"b"
        case Storage():
            return _opcodes(value.pid + (None,) * legacy, legacy) + b"Q"
        case bool() | None:
            return {True: b"\x88", False: b"\x89", None: b"N"}[value]
        case int():
            return b"J" + struct.pack("<i", value)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return many(value) + b"t"
        case list():
            return b"]" + many(value) + b"e"
        case dict():
            return b"}" + many(x for item in value.items() for x in item) + b"u"
    raise TypeError(value)


def write_zip(path: Path, tree: Any, storages: Mapping[str, np.ndarray], order="little", **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", pickled(tree))
        archive.writestr("archive/byteorder", order)
        for key, numbers in storages.items():
            archive.writestr(f"archive/data/{key}", numbers.tobytes())
        archive.writestr("archive/version", "3")


def write_legacy(path: Path, tree: Any, storages: Mapping[str, np.ndarray], **system: Any):
    with open(path, "wb") as file:
        for value in (MAGIC, 1001, SYSTEM | system):
            pickle.dump(value, file, 2)
        file.write(pickled(tree, legacy=True))
        pickle.dump(list(storages), file, 2)
        for numbers in storages.values():
            file.write(struct.pack("<q", numbers.size) + numbers.tobytes())


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], **changed: Any):
    """`changed`: fields of every entry of the header that are to be others."""
    header, begin = {"__metadata__": {"format": "pt"}}, 0
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "bool": "BOOL"}
    for name, array in tensors.items():
        header[name] = {
            "dtype": kinds[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [begin, begin + array.nbytes],
        } | changed
        begin += array.nbytes
    text = json.dumps(header).encode()
    numbers = b"".join(array.tobytes() for array in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)
