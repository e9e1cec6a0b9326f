"""The sizes at which a program with dynamic shapes is audited.

Dims of inputs are expressions in symbols (``s0``, ``2*s0 + 1``), and each symbol has a range. Expressions may
come from a file: they are parsed as sums and products, and nothing in them is ever run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import Tensor

from causaltrace.static import expressions
from causaltrace.static.errors import AuditError

#: The least and the greatest value of a symbol; None: no bound.
Range = tuple[int | None, int | None]
#: Characters of a condition that are shown.
READ = 100
#: Sizes that no window, head or block is a multiple of.
PRIMES = (13, 11, 7, 5, 3)
#: Sizes beside those of the export are no greater than this, all symbols multiplied.
LARGEST = 1024


@dataclass(frozen=True)
class Size:
    """A dim of an input, or a number among the inputs: what it was in the export, and its expression."""

    hint: int
    text: str = ""  #: "": always the hint
    tree: ast.expr | None = field(default=None, compare=False)  #: None: always the hint

    @classmethod
    def read(cls, hint: int, text: str) -> Size:
        return cls(hint, text, expressions.parsed(text))

    def at(self, values: Mapping[str, int]) -> int:
        """The size for these values of the symbols."""
        found = self.hint if self.tree is None else expressions.value(self.tree, values)
        if found is None:
            raise ValueError(f"{expressions.short(self.text)} is no size")
        return found

    def symbols(self) -> list[str]:
        return [] if self.tree is None else list(dict.fromkeys(expressions.names(self.tree)))

    def solved(self, size: int) -> dict[str, int]:
        """The value of its symbol for which this is ``size``; empty: there is no such thing."""
        names = self.symbols()
        if len(names) != 1:
            return {}
        start, following = (expressions.value(self.tree, {names[0]: n}) for n in (0, 1))
        if start is None or following is None or start == following:
            return {}
        value = {names[0]: (size - start) // (following - start)}
        return value if expressions.value(self.tree, value) == size else {}


class Sizes:
    """What the inputs of a program may be. ``inputs``: of each tensor its dims, of each number itself;
    ``ranges``: of each symbol; ``guards``: conditions that the export found, as torch writes them."""

    def __init__(
        self,
        inputs: Mapping[str, Size | Sequence[Size]],
        ranges: Mapping[str, Range],
        guards: Sequence[str] = (),
    ) -> None:
        self._inputs = {n: [s] if isinstance(s, Size) else list(s) for n, s in inputs.items()}
        self._numbers = {n for n, s in inputs.items() if isinstance(s, Size)}
        self.hints: dict[str, int] = {}
        for sizes in self._inputs.values():
            for size in sizes:
                self.hints |= {s: n for s, n in size.solved(size.hint).items() if s not in self.hints}
        #: What stays as it is, in words.
        self.held: list[str] = []
        #: For each symbol a dim that it alone decides.
        self._shown: dict[str, tuple[str, Size]] = {}
        for name, sizes in self._inputs.items():
            for i, size in enumerate(sizes):
                number = name in self._numbers  # is used as it is
                if not number and len(size.symbols()) == 1 and self._followed(size):
                    self._shown.setdefault(size.symbols()[0], (self._place(name, i), size))
        for name, sizes in self._inputs.items():
            for i, size in enumerate(sizes):
                if size.text and not self._followed(size):
                    self._hold(self._place(name, i), size)
                    sizes[i] = Size(size.hint)
        self._guards: dict[str, ast.expr] = {}
        for text in map(expressions.of_guard, guards):
            if ".shape" in text and not self._guard(text):  # others are about what is the same at all sizes
                self.held.append(f"the sizes stay as they are ({text[:READ]})")
                self._shown = {}
                break
        self.ranges = {s: ranges.get(s, (None, None)) for s in self._shown}
        for symbol, (place, _) in self._shown.items():
            low, high = self._bounds(symbol, 0)
            if not low <= self.hints[symbol] <= high:
                what = f"{place} was exported with a size that its range does not allow"
                raise AuditError(what, remedy="export the program again, or give example inputs")

    def _place(self, name: str, i: int) -> str:
        return name if name in self._numbers else f"{name}.shape[{i}]"

    def _hold(self, place: str, size: Size) -> None:
        """It stays as it is, and so do the symbols in it."""
        self.held.append(f"{place} stays {size.hint} ({expressions.short(size.text)})")
        for symbol in {s for s in self._shown if s in re.findall(r"\w+", size.text)}:
            other, shown = self._shown.pop(symbol)
            self.held.append(f"{other} stays {shown.hint}")

    def _guard(self, text: str) -> bool:
        """Keep a condition that the export's sizes are seen to meet."""
        tree = expressions.parsed(text)
        if tree is None or self._denied(tree, {}):
            return False
        self._guards[ast.unparse(tree)] = tree
        return True

    def _denied(self, guard: ast.expr, values: Mapping[str, int]) -> bool:
        """Can a guard not be met, or not be followed, at these sizes?"""
        known: dict[str, int] = {}
        for name in self._inputs:
            shape = self.of(name, values)
            known |= {self._place(name, i): n for i, n in enumerate(shape)}
        return not expressions.value(guard, known)

    def denied(self, values: Mapping[str, int]) -> str:
        """The condition of the export that these sizes do not meet, if there is one."""
        return next((text[:READ] for text, guard in self._guards.items() if self._denied(guard, values)), "")

    def _followed(self, size: Size) -> bool:
        return expressions.value(size.tree, self.hints) == size.hint

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
                self._chosen(lambda s: [2 * self.hints[s] + 1]),
                self._chosen(lambda s: [2 * self.hints[s]]),
                self._chosen(lambda s: [self.hints[s] + 1]),
            ],
        ]
        seen = [{s: self.hints[s] for s in self.ranges}]
        trials = []
        for plan in plans:
            new: list[dict[str, int]] = []
            for values in plan:
                if values not in (*seen, *new) and self._possible(values):
                    new.append(values)
            seen += new
            trials.append(new)
        return [new for new in trials if new]

    def _possible(self, values: Mapping[str, int]) -> bool:
        """Are all dims sizes, and none too large?"""
        for size in (size for sizes in self._inputs.values() for size in sizes if size.tree is not None):
            found = expressions.value(size.tree, {**self.hints, **values})
            if found is None or not 0 <= found <= LARGEST * max(size.hint, 1):
                return False
        return prod(values.values()) <= LARGEST

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
