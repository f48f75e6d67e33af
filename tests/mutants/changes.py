"""Mutants as changes: one small change of the text of a function.

Not changed are code that runs on import, since no test runs it, annotations, docstrings, and the
words of messages.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATIONS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
}  # fmt: skip
PAIRS = (
    ("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("minimum", "maximum"), ("any", "all"),
    ("zeros_like", "ones_like"), ("new_zeros", "new_ones"), ("log", "log1p"), ("exp", "expm1"),
    ("floor", "ceil"), ("sum", "mean"),
)  # fmt: skip
NAMES = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
# Methods of tensors whose result could pass for the tensor itself.
TRANSPARENT = {
    "abs", "clamp", "clone", "contiguous", "detach", "double", "expand", "float", "log", "neg",
    "nan_to_num", "masked_fill", "sqrt", "square", "to",
}  # fmt: skip
REMOVED = (ast.AugAssign, ast.Raise, ast.Delete, ast.Break, ast.Continue)


@dataclass(frozen=True)
class Change:
    """The replacement of the text between two offsets.

    Attributes:
        start: offset of the first byte that goes.
        end: offset behind the last one.
        old: what goes.
        new: what comes instead.
        lines: the lines of the statement; a test that notices has to run one of them.
        statement: the statement as it was and as it becomes, each on one line.
    """

    start: int
    end: int
    old: str
    new: str
    lines: range
    statement: tuple[str, str]

    def applied(self, source: bytes) -> bytes:
        """Return the source with the change."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    def __str__(self) -> str:
        return f"{' '.join(self.old.split())}  ->  {self.new}"


def changes(file: Path) -> list[Change]:
    """Return all changes of a module, in the order of its text."""
    source, starts = file.read_bytes(), [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return [
        _change(source, starts, *alternative)
        for function in _outermost(ast.parse(source))
        for statement in function.body
        for alternative in _alternatives_within(statement, range(0))
    ]


def _change(source: bytes, starts: list[int], node: Any, new: str, lines: range) -> Change:
    start = starts[node.lineno - 1] + node.col_offset
    end = starts[node.end_lineno - 1] + node.end_col_offset
    old = source[start:end].decode()
    first, last = starts[lines.start - 1], starts[lines.stop - 1]
    around = source[first:start].decode(), source[end:last].decode()
    before, after = (" ".join(text.join(around).split()) for text in (old, new))
    return Change(start, end, old, new, lines, (before, after))


def _outermost(node: ast.AST) -> Iterator[ast.FunctionDef]:
    """Return the functions and methods that are not inside another."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield child
        else:
            yield from _outermost(child)


def _alternatives_within(node: ast.AST, lines: range) -> Iterator[tuple[Any, str, range]]:
    """Yield replacements of each node from here on down."""
    if isinstance(node, ast.stmt):
        lines = _header(node)
    for place, new in _alternatives(node):
        yield place, new, lines
    for child in _children(node):
        yield from _alternatives_within(child, lines)


def _header(statement: ast.stmt) -> range:
    """Return the lines of a statement without those of the statements inside it."""
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno
    return range(statement.lineno, max(last, statement.lineno) + 1)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.JoinedStr | ast.Raise) or _is_docstring(node):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _alternatives(node: ast.AST) -> Iterator[tuple[Any, str]]:
    """Yield replacements of a node, or of its condition."""
    if isinstance(node, ast.stmt):
        yield from _statements(node)
    elif isinstance(node, ast.expr):
        yield from ((node, f"({ast.unparse(new)})") for new in _expressions(node))
    tests = [node.test] if isinstance(node, ast.If | ast.While | ast.IfExp) else []
    tests += node.ifs if isinstance(node, ast.comprehension) else []
    # The opposite of an equality, or of a negation, is found below.
    yield from ((test, f"(not ({ast.unparse(test)}))") for test in tests if not _two_sided(test))


def _two_sided(test: ast.expr) -> bool:
    if isinstance(test, ast.Compare):
        return len(test.ops) == 1 and not isinstance(
            test.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE
        )
    return isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)


def _statements(node: ast.stmt) -> Iterator[tuple[ast.stmt, str]]:
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    if called or isinstance(node, REMOVED) or (isinstance(node, ast.Assign) and _renews(node)):
        yield node, "pass"
    if isinstance(node, ast.Return) and ast.unparse(node) not in ("return", "return None"):
        yield node, "return None"


def _renews(node: ast.Assign) -> bool:
    """Whether what is assigned to is there already: by its name, or as part of something."""
    read = {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)}
    return any(
        isinstance(target, ast.Attribute | ast.Subscript)
        or (isinstance(target, ast.Name) and target.id in read)
        for target in node.targets
    )


def _expressions(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.Compare):
        for k, op in enumerate(node.ops):
            ops = [*node.ops[:k], COMPARISONS[type(op)](), *node.ops[k + 1 :]]
            yield ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.BinOp):
        if type(node.op) in OPERATIONS and not (_is_text(node.left) or _is_text(node.right)):
            yield ast.BinOp(node.left, OPERATIONS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        for k in range(len(node.values)):
            rest = [*node.values[:k], *node.values[k + 1 :]]
            yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from _constants(node.value)
    elif isinstance(node, ast.Name) and node.id in NAMES:
        yield ast.Name(NAMES[node.id])
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield ast.Attribute(node.value, NAMES[node.attr])
    elif isinstance(node, ast.Call):
        yield from _calls(node)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _constants(value: object) -> Iterator[ast.expr]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int | float):
        yield from (ast.Constant(value + step) for step in (1, -1) if value + step != value)


def _calls(node: ast.Call) -> Iterator[ast.expr]:
    for k in range(len(node.keywords)):
        if node.keywords[k].arg is not None:
            yield ast.Call(node.func, node.args, [*node.keywords[:k], *node.keywords[k + 1 :]])
    if not isinstance(node.func, ast.Attribute):
        return
    if node.func.attr == "where" and len(node.args) == 3:
        test, a, b = node.args
        yield ast.Call(node.func, [test, b, a], node.keywords)
    if node.func.attr in TRANSPARENT and not _is_module(node.func.value):
        yield node.func.value


def _is_module(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("torch", "math", "F")
