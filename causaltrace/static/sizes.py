"""The sizes at which a program with dynamic shapes is audited.

Dims of inputs are expressions in symbols (``s0``, ``2*s0 + 1``), and each symbol has a range. Expressions may
come from a file: they are parsed as sums and products, and nothing in them is ever run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor

from causaltrace.static.errors import AuditError

#: The least and the greatest value of a symbol; None: no bound.
Range = tuple[int | None, int | None]
#: Sizes that no window, head or block is a multiple of.
PRIMES = (13, 11, 7, 5, 3)
#: Sizes beside those of the export are no greater than this, all symbols multiplied.
LARGEST = 1024
#: Characters of an expression that is read.
READABLE = 400


@dataclass(frozen=True)
class Size:
    """A dim of an input, or a number among the inputs: what it was in the export, and its expression."""

    hint: int
    text: str = ""  #: "": always the hint
    tree: ast.expr | None = field(default=None, compare=False)  #: None: always the hint

    @classmethod
    def read(cls, hint: int, text: str) -> Size:
        try:
            tree = ast.parse(text if len(text) <= READABLE else "", mode="eval").body
            _worked_out(tree, dict.fromkeys(_symbols(tree), 1))
        except (SyntaxError, ValueError, KeyError, RecursionError, MemoryError):
            return cls(hint, text)
        return cls(hint, text, tree)

    def at(self, values: Mapping[str, int]) -> int:
        """The size for these values of the symbols."""
        return self.hint if self.tree is None else _worked_out(self.tree, values)

    def symbols(self) -> list[str]:
        return [] if self.tree is None else list(dict.fromkeys(_symbols(self.tree)))

    def solved(self, size: int) -> dict[str, int]:
        """The value of its symbol for which this is ``size``; empty: there is no such thing."""
        names = self.symbols()
        if len(names) != 1:
            return {}
        start = self.at({names[0]: 0})
        slope = self.at({names[0]: 1}) - start
        value = {names[0]: (size - start) // slope} if slope else {}
        return value if value and self.at(value) == size else {}


def _worked_out(tree: ast.expr, values: Mapping[str, int]) -> int:
    """Torch writes ``s0 + 1`` or ``Add(Symbol('s0', integer=True), Integer(1))``."""
    match tree:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name) | ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))]):
            return values[name]
        case ast.Call(func=ast.Name(id="Integer"), args=[number]):
            return _worked_out(number, values)
        case ast.Call(func=ast.Name(id="Add"), args=parts):
            return sum(_worked_out(p, values) for p in parts)
        case ast.Call(func=ast.Name(id="Mul"), args=parts):
            return prod(_worked_out(p, values) for p in parts)
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return -_worked_out(part, values)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() as op, right=right):
            a, b = _worked_out(left, values), _worked_out(right, values)
            return a + b if isinstance(op, ast.Add) else a - b if isinstance(op, ast.Sub) else a * b
    raise ValueError("no sum or product of symbols and numbers")


def _symbols(tree: ast.expr) -> Iterator[str]:
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))]):
                yield name
            case ast.Name(id=name) if id(node) not in functions:
                yield name


class Sizes:
    """What the inputs of a program may be. ``inputs``: of each tensor its dims, of each number itself."""

    def __init__(self, inputs: Mapping[str, Size | Sequence[Size]], ranges: Mapping[str, Range]) -> None:
        self._inputs = {n: [s] if isinstance(s, Size) else list(s) for n, s in inputs.items()}
        self.hints: dict[str, int] = {}
        for sizes in self._inputs.values():
            for size in sizes:
                self.hints = size.solved(size.hint) | self.hints
        #: What stays as it is, in words.
        self.held: list[str] = []
        #: For each symbol a dim that it alone decides.
        self._shown: dict[str, tuple[str, Size]] = {}
        for name, sizes in self._inputs.items():
            if isinstance(inputs[name], Size):
                continue  # a number is used as it is
            for i, size in enumerate(sizes):
                if len(size.symbols()) == 1 and self._followed(size):
                    self._shown.setdefault(size.symbols()[0], (f"{name}.shape[{i}]", size))
        for name, sizes in self._inputs.items():
            for i, size in enumerate(sizes):
                place = name if isinstance(inputs[name], Size) else f"{name}.shape[{i}]"
                if size.text and not (self._followed(size) and self._shown.keys() >= set(size.symbols())):
                    self._hold(place, size)
                    sizes[i] = Size(size.hint)
        self.ranges = {s: ranges.get(s, (None, None)) for s in self._shown}
        for symbol, (place, _) in self._shown.items():
            low, high = self._bounds(symbol, 0)
            if not low <= self.hints[symbol] <= high:
                what = f"{place} was exported with a size that its range does not allow"
                raise AuditError(what, remedy="export the program again, or give example inputs")

    def _hold(self, place: str, size: Size) -> None:
        """It stays as it is, and so do the symbols in it."""
        text = re.sub(r"Symbol\('(\w+)'[^()]*\)|Integer\((\d+)\)", r"\1\2", size.text)
        self.held.append(f"{place} stays {size.hint} ({text})")
        for symbol in re.findall(r"\w+", size.text):
            if symbol in self._shown:
                other, shown = self._shown.pop(symbol)
                self.held.append(f"{other} stays {shown.hint}")

    def _followed(self, size: Size) -> bool:
        known = all(s in self.hints for s in size.symbols())
        return size.tree is not None and known and size.at(self.hints) == size.hint

    def _bounds(self, symbol: str, least: int) -> tuple[int, float]:
        low, high = self.ranges[symbol]
        return max(low or 0, least), float("inf") if high is None else high

    def solved(self, name: str, value: Any) -> dict[str, int]:
        """The values of symbols for which this input has the shape, or is the number, that is given."""
        shape = value.shape if isinstance(value, Tensor) else [value] if isinstance(value, int) else []
        found: dict[str, int] = {}
        for size, n in zip(self._inputs[name], shape, strict=False):
            found |= size.solved(n)
        return found

    def of(self, name: str, values: Mapping[str, int]) -> list[int]:
        """The shape of an input for these values of the symbols; of a number, the number."""
        return [size.at({**self.hints, **values}) for size in self._inputs[name]]

    # -- in words -------------------------------------------------------------------------------------

    def names(self) -> str:
        return _listed([place for place, _ in self._shown.values()])

    def text(self, values: Mapping[str, int]) -> str:
        """The sizes for these values of the symbols."""
        return _listed([str(size.at({**self.hints, **values})) for _, size in self._shown.values()])

    def span(self) -> str:
        """Between which sizes the program was exported for."""
        texts = []
        for symbol, (_, size) in self._shown.items():
            low, high = self.ranges[symbol]
            first = size.at({symbol: low or 0})
            texts.append(f"{first} and more" if high is None else f"{first} … {size.at({symbol: high})}")
        return _listed(texts)

    # -- which sizes ----------------------------------------------------------------------------------

    def trials(self) -> list[list[dict[str, int]]]:
        """Values of the symbols, beside those of the export: of each list the first that can be run.

        The least sizes are the edge at which windows and tables are longer than what is given. A prime is a
        multiple of nothing; the end of the range, or more than twice the hint, goes beyond windows. One is
        no size to learn from: a single label has no other to depend on.
        """
        plans = [
            [self._chosen(self._least), self._chosen(lambda s: [self.hints[s] // 2])],
            [self._chosen(lambda s: PRIMES)],
            [
                self._chosen(lambda s: [self.ranges[s][1] or 0]),
                self._chosen(lambda s: [2 * self.hints[s] + 1, self.hints[s] + 1]),
                self._chosen(lambda s: [2 * self.hints[s]]),
            ],
        ]
        seen = [{s: self.hints[s] for s in self.ranges}]
        trials = []
        for plan in plans:
            new = [values for values in plan if values not in seen and prod(values.values()) <= LARGEST]
            seen += new
            trials += [new] if new else []
        return trials

    def _least(self, symbol: str) -> Sequence[int]:
        low = max(self.ranges[symbol][0] or 0, 2)
        return range(low, low + len(self.ranges))

    def _chosen(self, candidates: Callable[[str], Sequence[int]]) -> dict[str, int]:
        """One of its candidates for each symbol, not the same one for two: shapes that are the same by
        accident hide mistakes."""
        values: dict[str, int] = {}
        for symbol in self.ranges:
            low, high = self._bounds(symbol, 2)
            fit = [n for n in candidates(symbol) if low <= n <= high]
            free = [n for n in fit if n not in values.values() and n != self.hints[symbol]]
            values[symbol] = (free or fit or [self.hints[symbol]])[0]
        return values


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"
