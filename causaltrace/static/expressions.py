"""Arithmetic on sizes that is written as text, worked out without running any of it.

The text may come from a file. It is parsed, and only what is known here is worked out: numbers, names,
``ids.shape[1]``, sums and the like, comparisons. Torch writes ``s0 + 1`` or
``Add(Symbol('s0', integer=True), Integer(1))``.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from math import prod

#: Characters of a text that is read.
READABLE = 2000
BINARY: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
CALLS: dict[str, Callable[[list[int]], int]] = {
    "Integer": lambda parts: parts[0],
    "Add": sum,
    "Mul": prod,
    "FloorDiv": lambda parts: parts[0] // parts[1],
    "Mod": lambda parts: parts[0] % parts[1],
    "min": min,
    "max": max,
    "Min": min,
    "Max": max,
}


def parsed(text: str) -> ast.expr | None:
    """The expression; None: it is none, or a longer one than torch writes."""
    try:
        return ast.parse(text if len(text) <= READABLE else "", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def value(tree: ast.expr | None, values: Mapping[str, int]) -> int | None:
    """The number, or the truth, that it stands for; None: there is none, or none that is known here."""
    try:
        return None if tree is None else _value(tree, values)
    except (ValueError, KeyError, IndexError, ZeroDivisionError, RecursionError):
        return None


def _value(tree: ast.expr, values: Mapping[str, int]) -> int:
    if (name := _name(tree)) is not None:
        return values[name]
    match tree:
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return -_value(part, values)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return not _value(part, values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            return BINARY[type(op)](_value(left, values), _value(right, values))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in BINARY:
            return BINARY[type(op)](_value(left, values), _value(right, values))
        case ast.BoolOp(op=op, values=parts):
            found = [bool(_value(p, values)) for p in parts]
            return all(found) if isinstance(op, ast.And) else any(found)
        case ast.Call(func=ast.Name(id=function), args=parts, keywords=[]) if function in CALLS:
            return CALLS[function]([_value(p, values) for p in parts])
    raise ValueError("no arithmetic on sizes")


def names(tree: ast.expr) -> Iterator[str]:
    """The symbols, dims and numbers in it."""
    if (name := _name(tree)) is not None:
        yield name
        return
    for part in ast.iter_child_nodes(tree):
        if isinstance(part, ast.expr) and not (isinstance(tree, ast.Call) and part is tree.func):
            yield from names(part)


def _name(tree: ast.expr) -> str | None:
    match tree:
        case ast.Name(id=name) | ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))]):
            return name
        case ast.Subscript(
            value=ast.Attribute(value=ast.Name(id=name), attr="shape"), slice=ast.Constant(value=int(i))
        ):
            return f"{name}.shape[{i}]"
    return None


def short(text: str) -> str:
    """As a reader would write it."""
    return re.sub(r"Symbol\('(\w+)'[^()]*\)|Integer\((\d+)\)", r"\1\2", text)


def of_guard(text: str) -> str:
    """A condition of an export, in which ``L['x'][0].size()[1]`` is a dim of the input that is named x_0."""

    def named(match: re.Match[str]) -> str:
        keys = re.findall(r"\w+", match[1])
        return "_".join(keys).lower() + (".shape" if match[2] else "")

    return re.sub(r"\bL((?:\['\w+'\]|\[\d+\])+)(\.size\(\))?", named, text)
