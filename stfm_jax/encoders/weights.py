"""Files of pretrained weights: read as named arrays, and given a short name of their own.

Files of `safetensors` and of `torch.save` (with suffixes .safetensors, .bin, .pth, .pt, .ckpt,
.torch; told apart by their content) are mapped, not loaded: an array is read from the disk when it
is used, and a file of some GiB is never held twice. Nothing that a file asks for is run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from stfm_jax.data.listing import visible
from stfm_jax.encoders import torch_file
from stfm_jax.errors import InputError

Tensors = Mapping[str, np.ndarray]  # weights by name
NAMES = ("model.safetensors", "pytorch_model.bin")  # preferred in a folder, in this order
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".torch")
PREFIXES = (
    *("state_dict.", "model.", "teacher."),  # dicts that checkpoints keep the weights in
    *("module.", "backbone.", "resnet.", "visual.trunk."),  # modules around the encoder
)

_SAFETENSORS = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": jnp.bfloat16,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
_OTHER_FILES = {  # how files begin that are found in the place of weights
    b"version https://git-lfs": "a pointer of Git LFS, not the file it stands for",
    b"<": "a web page",
    b"\x89HDF": "an HDF5 file",
    b"\x80": "a bare pickle, which can run code and was not opened",
}


class Stripped(NamedTuple):
    """Weights under their encoder's own names."""

    tensors: dict[str, np.ndarray]
    prefix: str  # what was taken off the names, such as "state_dict.module."; "" if nothing
    left_out: tuple[str, ...]  # names that did not begin so


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Named arrays of a file, or of the one file of weights in a folder.

    Returns:
      name -> array as stored (bfloat16, too, as jax's), in the file's order: read-only views of
      the mapped file. Nested dicts give dotted names ("state_dict.conv1.weight").

    Raises:
      InputError: no file, several in a folder, of another kind, damaged, or asking for more than
        tensors.
    """
    path = find(path)
    with open(path, "rb") as file:
        read_tensors = _reader(path, file.read(512))
    data = np.asarray(np.memmap(path, np.uint8, "r"))
    try:
        tensors = read_tensors(path, data)
    except InputError:
        raise
    except Exception as error:  # parsing damaged bytes can fail in any way
        raise InputError(
            f"{path}: expected weights, found a damaged or incomplete file of {data.size} bytes "
            f"({type(error).__name__}: {error}); fetch it again."
        ) from error
    if not tensors:
        raise InputError(f"{path}: expected weights, found no tensor; give the model's own file.")
    return tensors


def digest(path: str | Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the file that `read` would read.

    Raises:
      InputError: as `find`.
    """
    with open(find(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def find(path: str | Path) -> Path:
    """The file of weights: the path itself, or the one in the folder.

    Raises:
      InputError: there is none, or the folder has several and none of NAMES.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path}: expected a file or folder of weights there, found none.")
    named = [path / name for name in NAMES if (path / name).is_file()]
    found = named[:1] or [p for p in visible(path) if p.suffix in SUFFIXES and p.is_file()]
    if len(found) != 1:
        raise InputError(
            f"{path}: expected {' or '.join(NAMES)} or one file of weights ({', '.join(SUFFIXES)})"
            f" in the folder, found {', '.join(p.name for p in found) or 'none'}; give the file."
        )
    return found[0]


def strip(tensors: Tensors, prefixes: tuple[str, ...] = PREFIXES) -> Stripped:
    """Weights without the prefixes that checkpoints and wrappers put before their names.

    As long as any name begins with one of the prefixes, what begins so is kept, without it.
    """
    kept, off = {name: name for name in tensors}, ""
    while prefix := next((p for p in prefixes if any(n.startswith(p) for n in kept)), ""):
        kept = {n.removeprefix(prefix): full for n, full in kept.items() if n.startswith(prefix)}
        off += prefix
    full_names = set(kept.values())
    left_out = tuple(name for name in tensors if name not in full_names)
    return Stripped({name: tensors[full] for name, full in kept.items()}, off, left_out)


def _reader(path: Path, head: bytes) -> Callable[[Path, np.ndarray], dict[str, np.ndarray]]:
    """What reads a file that begins with `head` (512 bytes, or all)."""
    if head.startswith(torch_file.ZIP):
        return torch_file.read_zip
    if head.startswith(torch_file.LEGACY):
        return torch_file.read_legacy
    if head[8:9] == b"{":
        return _read_safetensors
    raise InputError(
        f"{path}: expected weights of safetensors or torch.save, found {_describe(head)}; fetch "
        "the weights again, as model.safetensors where there is a choice."
    )


def _describe(head: bytes) -> str:
    if not head:
        return "an empty file"
    if head[257:262] == b"ustar":
        return "a tar archive (torch before 0.1.10 wrote such)"
    known = (what for start, what in _OTHER_FILES.items() if head.startswith(start))
    return next(known, f"a file that begins with {head[:8]!r}")


def _read_safetensors(path: Path, data: np.ndarray) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file: a header's length (8 bytes), the header (JSON), the numbers.

    Arguments, result and errors as of `stfm_jax.encoders.torch_file.read_zip`.
    """
    begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
    if begin > data.size:
        raise ValueError(f"its header ends at byte {begin}")
    header = json.loads(data[8:begin].tobytes())
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, data[begin:]) for name, entry in header.items()}


def _tensor(path: Path, name: str, entry: Mapping[str, Any], numbers: np.ndarray) -> np.ndarray:
    if entry["dtype"] not in _SAFETENSORS:
        raise InputError(
            f"{path}: expected numbers of {', '.join(_SAFETENSORS)}, found {name} of "
            f"{entry['dtype']}; save it in one of these."
        )
    dtype, shape, (begin, end) = _SAFETENSORS[entry["dtype"]], entry["shape"], entry["data_offsets"]
    size = math.prod(shape) * dtype.itemsize
    if not 0 <= begin <= end <= numbers.size or end - begin != size:
        raise ValueError(f"{name}: bytes {begin} to {end} of {numbers.size}, {size} expected")
    return numbers[begin:end].view(dtype).reshape(shape)
