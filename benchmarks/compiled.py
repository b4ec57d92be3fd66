"""What a compiled program launches and moves, read from the text XLA gives of it.

XLA's own `cost_analysis` takes the body of a loop once, however often it runs, and names no arrays.
Here every instruction that runs counts as a kernel, as often as the loops around it run, and moves
its operands and its result; of an operand that it only gathers from, or slices, the part it takes,
and never more than all of it, as if a cache served rows that are gathered again.
What a card's cache keeps from one kernel to the next is not known here, nor is it to XLA.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# Instructions that name, group or hold values: nothing runs.
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id opt-barrier".split()
)
TAKES_A_PART = ("gather", "dynamic-slice", "slice")  # of operand 0
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_WORKSPACE = re.compile(r"\bs8\[\d+\]\{0\}")  # of a library's product, behind its result
_FROM = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation."""

    name: str
    shape: str  # as XLA writes it
    opcode: str
    operands: tuple[str, ...]
    rest: str  # attributes
    index: int = 0  # of a parameter


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An instruction that runs."""

    opcode: str
    shape: str  # of its result, without layout
    source: str  # what of the Python it comes from
    times: int
    read: float  # bytes, each time
    written: float

    @property
    def bytes(self) -> float:
        """Moved by all its runs."""
        return self.times * (self.read + self.written)


Computations = dict[str, dict[str, Instruction]]


def cost(compiled: Any) -> dict[str, float]:
    """XLA's own count of a program: `flops`, `bytes` and `transcendentals`."""
    said = compiled.cost_analysis()
    said = said[0] if isinstance(said, Sequence) else said
    names = {"flops": "flops", "bytes": "bytes accessed", "transcendentals": "transcendentals"}
    return {ours: float(said.get(theirs, 0.0)) for ours, theirs in names.items()}


def kernels(text: str) -> list[Kernel]:
    """All that a program's text (`compiled.as_text()`) runs."""
    entry, computations = parse(text)
    return list(_run(computations, entry, 1))


def moved(found: Iterable[Kernel]) -> float:
    """Bytes that kernels read and write."""
    return sum(kernel.bytes for kernel in found)


def launched(found: Iterable[Kernel]) -> int:
    """Kernels run, loops counted."""
    return sum(kernel.times for kernel in found)


def largest(found: Iterable[Kernel], count: int) -> list[tuple[str, int, float]]:
    """The arrays that most is moved for: (source and shape, kernels, bytes), descending."""
    totals: dict[str, tuple[int, float]] = {}
    for kernel in found:
        label = f"{_place(kernel.source)} {kernel.shape}"
        times, size = totals.get(label, (0, 0.0))
        totals[label] = times + kernel.times, size + kernel.bytes
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])
    return [(label, *total) for label, total in ordered[:count]]


def parse(text: str) -> tuple[str, Computations]:
    """Name of the entry, and {computation: {instruction's name: instruction}}."""
    entry, made, inside = "", {}, None
    for line in text.splitlines():
        if not line.startswith((" ", "}")) and line.rstrip().endswith("{") and "->" in line:
            name = _NAME.search(line).group(1)
            entry = name if line.startswith("ENTRY") else entry
            inside = made[name] = {}
        elif inside is not None and line.startswith(" ") and " = " in line:
            instruction = _instruction(line)
            inside[instruction.name] = instruction
    return entry, made


def size_of(shape: str) -> float:
    """Bytes of a shape, of a tuple's parts together."""
    return sum(
        _width(kind) * math.prod(int(n) for n in sides.split(",") if n)
        for kind, sides in _SHAPE.findall(shape)
    )


def _width(kind: str) -> float:
    return 1.0 if kind == "pred" else int(re.search(r"\d+", kind).group()) / 8


def _instruction(line: str) -> Instruction:
    left, right = line.strip().split(" = ", 1)
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, tail = right[:end], right[end:].lstrip()
    opening = tail.index("(")
    closing = _closing(tail, opening)
    inside = tail[opening + 1 : closing]
    return Instruction(
        name=_NAME.search(left).group(1),
        shape=shape,
        opcode=tail[:opening],
        operands=tuple(_NAME.findall(inside)),
        rest=tail[closing + 1 :],
        index=int(inside) if tail[:opening] == "parameter" else 0,
    )


def _closing(text: str, opening: int) -> int:
    """The place of the parenthesis that closes the one at `opening`."""
    depth = 0
    for i in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f"no closing parenthesis: {text[:80]!r}")


def _run(computations: Computations, name: str, times: int) -> Iterator[Kernel]:
    here = computations[name]
    for instruction in here.values():
        called = [n for n in _CALLED.findall(instruction.rest) if n in computations]
        if found := _BRANCHES.search(instruction.rest):
            called += _NAME.findall(found.group(1))
        if instruction.opcode in FREE:
            continue
        if instruction.opcode == "while":
            trips = _TRIPS.search(instruction.rest)
            yield from _run(computations, called[0], times * (int(trips.group(1)) if trips else 1))
        elif instruction.opcode == "conditional":  # of a tile: occupied, but for the padding's
            yield from max((list(_run(computations, n, times)) for n in called), key=moved)
        elif instruction.opcode == "call":
            yield from _run(computations, called[0], times)
        else:
            fused = computations[called[0]] if instruction.opcode == "fusion" else None
            yield _kernel(instruction, here, fused, times)


def _kernel(instruction: Instruction, here: dict, fused: dict | None, times: int) -> Kernel:
    shapes = [here[name].shape for name in instruction.operands if name in here]
    source, result = _FROM.search(instruction.rest), instruction.shape
    if source is None and fused:
        source = next(filter(None, (_FROM.search(i.rest) for i in reversed(fused.values()))), None)
    if instruction.opcode == "custom-call":
        result = _WORKSPACE.sub("", result)
    if fused is None:
        read, written = _alone(instruction.opcode, shapes, result)
    else:
        parameters = sorted(
            (i for i in fused.values() if i.opcode == "parameter"), key=lambda i: i.index
        )
        read = sum(
            _taken(parameter, fused, size_of(shape))
            for parameter, shape in zip(parameters, shapes, strict=False)
        )
        written = _written(fused, size_of(result))
    return Kernel(
        opcode=instruction.opcode,
        shape=re.sub(r"\{[^}]*\}", "", result),
        source=source.group(1) if source else "",
        times=times,
        read=read,
        written=written,
    )


def _alone(opcode: str, operands: Sequence[str], result: str) -> tuple[float, float]:
    """Bytes read and written by an instruction that is not fused."""
    sizes = [size_of(shape) for shape in operands]
    if opcode in TAKES_A_PART:
        return size_of(result) + sum(sizes[1:]), size_of(result)
    if opcode == "dynamic-update-slice":
        return sizes[1], sizes[1]
    return sum(sizes), size_of(result)


def _taken(parameter: Instruction, fused: dict, whole: float) -> float:
    """Bytes that a fusion reads of a parameter: what its users take of it, at most all of it."""
    users = [i for i in fused.values() if parameter.name in i.operands]
    if all(i.opcode in TAKES_A_PART and i.operands[0] == parameter.name for i in users):
        return min(whole, sum(size_of(i.shape) for i in users))
    if all(i.opcode == "dynamic-update-slice" and i.operands[0] == parameter.name for i in users):
        return 0.0  # done in place
    return whole


def _written(fused: dict, whole: float) -> float:
    updates = [i for i in fused.values() if i.opcode == "dynamic-update-slice"]
    last = list(fused.values())[-1]
    if updates and (last in updates or last.opcode == "bitcast"):
        return sum(size_of(fused[i.operands[1]].shape) for i in updates)
    return whole


def _place(source: str) -> str:
    """`jit(f)/Block/norm/mul` -> `Block/norm/mul`."""
    return "/".join(part for part in source.split("/") if "(" not in part) or "-"
