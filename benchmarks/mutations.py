"""What can be made wrong in the text of a module, place by place; for mutants.py."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import NamedTuple

COMPARED = {
    ast.Lt: ("<", "<=", ">="), ast.LtE: ("<=", "<", ">"), ast.Gt: (">", ">=", "<="),
    ast.GtE: (">=", ">", "<"), ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}  # fmt: skip
COMPUTED = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"), ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}  # fmt: skip
JOINED = {ast.And: ("and", "or"), ast.Or: ("or", "and")}


_Change = tuple[int, int, str, int]  # the first four of a mutant


class Mutant(NamedTuple):
    """A place of a module that is made wrong."""

    start: int  # bytes of the source
    end: int
    instead: str
    line: int
    around: range  # lines of the statement
    called: bool  # in a function, so not run when the module is imported

    def of(self, source: bytes) -> bytes:
        return source[: self.start] + self.instead.encode() + source[self.end :]

    def told(self, source: bytes) -> str:
        """Stays the same where lines are added before it; numbered where a line has it again."""
        line = source.decode().splitlines()[self.line - 1].strip()
        text = source[self.start : self.end].decode()
        before = source[source.rfind(b"\n", 0, self.start) + 1 : self.start].decode().count(text)
        again = f" ({before + 1})" if text and before else ""
        return f"{text} -> {self.instead}{again} in `{line}`"


def mutants(source: bytes) -> list[Mutant]:
    """All mutants of a module, in the order of its text; annotations, messages and texts aside."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: ast.expr) -> tuple[int, int]:
        return (
            starts[node.lineno - 1] + node.col_offset,
            starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def between(left: ast.expr, right: ast.expr, known: Sequence[str]) -> Iterator[_Change]:
        low, high = span(left)[1], span(right)[0]
        at = source[low:high].find(known[0].encode())
        for instead in known[1:] if at >= 0 else ():
            yield low + at, low + at + len(known[0]), instead, right.lineno

    def negated(test: ast.expr) -> _Change:
        low, high = span(test)
        return low, high, f"not ({source[low:high].decode()})", test.lineno

    def visit(node: ast.AST) -> Iterator[_Change]:
        if isinstance(node, ast.JoinedStr | ast.Raise | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            for left, op, right in zip(operands, node.ops, operands[1:], strict=False):
                yield from between(left, right, COMPARED[type(op)])
        elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
            yield from between(node.left, node.right, COMPUTED[type(node.op)])
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield from between(left, right, JOINED[type(node.op)])
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
            low, inner = span(node)[0], span(node.operand)[0]
            yield low, inner, "", node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            yield *span(node), repr(_other(node.value)), node.lineno
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            yield negated(node.test)
        if isinstance(node, ast.comprehension):
            yield from map(negated, node.ifs)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child)

    tree = ast.parse(source)
    statements, called = _statements(tree)
    return [
        Mutant(*change, statements[change[-1]], change[-1] in called)
        for change in sorted(set(visit(tree)))
    ]


def _statements(tree: ast.Module) -> tuple[dict[int, range], set[int]]:
    """Lines of the innermost statement of each line, of a compound one its head; lines of bodies
    of functions."""
    around, called = {}, set()
    for node in ast.walk(tree):  # outer ones first
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body else node.end_lineno
            lines = range(node.lineno, max(end, node.lineno) + 1)
            around |= dict.fromkeys(lines, lines)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            called |= set(range(node.body[0].lineno, node.end_lineno + 1))
    return around, called


def _other(value: bool | int | float) -> bool | int | float:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return 2.0 * value or 1.0
