"""Copies of the labels that were made before the watch opened.

Nobody told the watch of them, so it looks once, at what lives then. Tensors and arrays that repeat the
tokens, or a piece of them, get their labels; so do those that are a function of the tokens, one by one.
Lists and bytes tell nobody who reads them: the report names those that repeat all tokens.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from functools import cached_property
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causaltrace._compat import as_numpy, storage_of
from causaltrace.boundary.adopt import KINDS
from causaltrace.boundary.alive import alive, frames, names_in
from causaltrace.boundary.arrays import memory_of, over
from causaltrace.boundary.ndarray import LabelArray
from causaltrace.boundary.plain import together
from causaltrace.lattice.cells import LABELS, Cells
from causaltrace.report.model import Notice
from causaltrace.shadow import Shadow
from causaltrace.stream import Stream, starts
from causaltrace.tracer import Tracer

#: Fewer equal labels are no evidence: short lists of small numbers are often equal. With as many, chance is
#: out but for the smallest alphabets, since the *whole* stream has to be equal.
EVIDENCE = 8
#: A piece may lie anywhere. Labels drawn one by one, each as often as the stream has it, would be equal to it
#: somewhere with a chance of 1 to 2 to the power of so many bits.
BITS = 32
#: Rows of windows that overlap may hold so many times the labels of the stream.
TIMES = 64
#: Rows, times labels to compare them with, that are looked at.
LIMIT = 2**30
#: Named one by one in the report.
NAMED = 3

LISTS = frozenset((list, tuple, dict, deque, array))
NUMBERS = frozenset((int, float, *(kind for kind in np.sctypeDict.values() if issubclass(kind, np.number))))
INTEGERS = frozenset(
    (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
)
#: Types of bytes.
WIDTHS = (np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64)


def look(tracer: Tracer, given: list[tuple[Stream, Tensor]], tell: Callable[[Notice], None]) -> list[Any]:
    """Look for copies of the tokens of the ``given`` streams. Returns the plain arrays that have labels."""
    if not given:
        return []
    streams = [Original(stream, tokens) for stream, tokens in given if _evident(tokens)]
    stack = list(frames())
    tensors, arrays, values = alive(stack, {n for s in streams for n in s.lengths})
    memory = tracer.memory
    together(memory, [tokens for _, tokens in given], tensors, arrays)
    for t in tensors:
        _known(tracer, streams, t, storage_of(t))
    for a in arrays:
        follows = a.size and (type(a) in KINDS or isinstance(a, LabelArray))
        if follows and (over_it := over(a)) is not None:
            _known(tracer, streams, over_it, a)
    plain = [a for a in arrays if not isinstance(a, LabelArray)]
    labelled = [a for a in plain if type(a) in KINDS and _labelled(tracer, a)]
    known = set(map(id, labelled))
    found = {id(v): v for v in values if any(s.equals(v) for s in streams)}
    for a in plain:
        if id(a) not in known and (_labelled(tracer, a) or any(s.repeated_by(a) for s in streams)):
            found[id(a)] = a
    if found:
        tell(_notice(found, stack))
    return labelled


def _labelled(tracer: Tracer, a: np.ndarray) -> bool:
    """Are there labels in the memory that an array begins in?"""
    lies = tracer.memory.at(a.__array_interface__["data"][0]) if a.size else None
    return lies is not None and bool(lies[0].shadow)


def _known(tracer: Tracer, streams: list[Original], t: Tensor, owner: Any) -> None:
    """Give ``t`` its labels, if it has any. ``owner``: what holds its memory, a storage or an array."""
    memory = tracer.memory
    entry = memory.entry(t)
    if entry is not None and entry.shadow:
        return
    for s in streams:
        if (labels := s.labels(t)) is not None:
            if isinstance(owner, np.ndarray):
                memory.share(*memory_of(owner))
            memory.write(t, labels if s.exact(t) else tracer.ledger.value(labels))
            return


class Original:
    """The tokens of a stream, to compare with."""

    def __init__(self, stream: Stream, tokens: Tensor) -> None:
        self.tokens = tokens
        self.offset = stream.offset
        self.lengths = {tokens.numel() * np.dtype(width).itemsize for width in WIDTHS} | {len(tokens)}

    @cached_property
    def ids(self) -> Tensor:
        return self.tokens.detach().flatten().long()

    @cached_property
    def array(self) -> np.ndarray:
        return as_numpy(self.ids.cpu())

    @cached_property
    def numbers(self) -> list[int]:
        return self.array.tolist()

    @cached_property
    def bytes(self) -> list[bytes]:
        return [self.array.astype(width).tobytes() for width in WIDTHS]

    @cached_property
    def bits(self) -> np.ndarray:
        """Of evidence, in the labels before each position."""
        _, which, counts = np.unique(self.array, return_inverse=True, return_counts=True)
        return np.concatenate([[0.0], np.cumsum(-np.log2(counts / self.array.size)[which])])

    @cached_property
    def range(self) -> tuple[int, int]:
        return int(self.array.min()), int(self.array.max())

    @cached_property
    def groups(self) -> tuple[Tensor, Tensor]:
        """Positions by label, and which of them have the label of the one before."""
        return _grouped(self.ids)

    @cached_property
    def some(self) -> tuple[Tensor, Tensor]:
        """The same of the first positions: enough to tell most of what is not made of labels."""
        return _grouped(self.ids[:1024])

    # -- tensors --------------------------------------------------------------------------------------

    def labels(self, t: Tensor) -> Shadow | None:
        """The labels that the elements of ``t`` are made of."""
        whole = t.numel() == self.ids.numel() and not t.dtype.is_complex
        if not (whole or t.dtype in INTEGERS and EVIDENCE <= t.numel() <= TIMES * self.ids.numel()):
            return None  # weights may be large: nothing is done with them
        flat = t.detach().flatten()
        if whole:
            flat = (flat.double() if t.is_floating_point() else flat.long()).to(self.ids.device)
            positions = torch.arange(t.numel()) if self.function(flat) else None
        else:
            positions = self.pieces(flat, t.shape)
        if positions is None:
            return None
        none = torch.from_numpy(self.array[as_numpy(positions)] < 0)
        where = torch.where(none, -1, positions + self.offset).to(t.device)
        return Shadow(label=Cells(where.view(t.shape).unsqueeze(-1), node=LABELS))

    def exact(self, t: Tensor) -> bool:
        """Are its elements labels, and not just made of them?"""
        same = t.numel() != self.ids.numel() or self.repeated(t.detach().flatten().to(self.ids.device))
        return t.dtype in INTEGERS and same

    def repeated(self, flat: Tensor) -> bool:
        return torch.equal(flat.long(), self.ids) and torch.equal(flat, self.ids.to(flat.dtype))

    def linear(self, flat: Tensor) -> bool:
        """Are elements a multiple of the labels, plus a constant?"""
        ids, values = self.ids.double(), flat.double()
        low, high = int(ids.argmin()), int(ids.argmax())
        slope = (values[high] - values[low]) / (ids[high] - ids[low])
        between = bool(((ids != ids[low]) & (ids != ids[high])).any())  # two classes may be any two values
        return between and bool(slope) and torch.allclose(values, values[low] + slope * (ids - ids[low]))

    def function(self, flat: Tensor) -> bool:
        """Are elements equal wherever labels are, and not by chance, or because most of them are equal?"""
        for order, same in (self.some, self.groups):
            values = flat[order]
            if bool((same & (values[1:] != values[:-1])).any()):
                return False
        often = (same & (values[1:] != values.mode().values)).sum()
        return int(often) >= EVIDENCE or self.repeated(flat) or self.linear(flat)

    def pieces(self, flat: Tensor, shape: torch.Size) -> Tensor | None:
        """The positions of a piece of the stream, or of rows that are."""
        low, high = self.range
        some = flat[:1024].long()
        if int(some.min()) < low or int(some.max()) > high:
            return None
        values = as_numpy(flat.long().cpu())
        places = [self._place(values)]
        if places[0] is None and len(shape) > 1:
            rows, places = values.reshape(-1, shape[-1]), []
            if len(rows) * self.array.size > LIMIT:
                return None
            for row in rows:
                places.append(self._place(row))
                if places[-1] is None:
                    return None
        starts = torch.tensor([p for p in places if p is not None])
        if not len(starts):
            return None
        return (starts[:, None] + torch.arange(flat.numel() // len(starts))).flatten()

    def _place(self, piece: np.ndarray) -> int | None:
        """Where it is, if that is one place and no chance."""
        size = piece.size
        if not EVIDENCE <= size <= self.array.size or not (np.diff(piece) != piece[1] - piece[0]).any():
            return None
        places = starts(piece, self.array)
        if len(places) != 1:
            return None
        bits = self.bits[places[0] + size] - self.bits[places[0]]
        return int(places[0]) if bits >= BITS + math.log2(self.array.size) else None

    # -- plain values ---------------------------------------------------------------------------------

    def repeated_by(self, a: np.ndarray) -> bool:
        """Does an array that is not followed repeat the labels?"""
        same = a.size == self.ids.numel() and a.dtype.kind in "iuf"
        return same and np.array_equal(np.ndarray.view(a, np.ndarray).ravel(), self.array)

    def equals(self, value: Any) -> bool:
        """Can the labels be read from ``value``?"""
        if type(value) in LISTS:
            return len(value) in self.lengths and _flat(value) == self.numbers
        return any(value == raw for raw in self.bytes)


def _grouped(ids: Tensor) -> tuple[Tensor, Tensor]:
    labels, order = ids.sort(stable=True)
    return order, labels[1:] == labels[:-1]


def _evident(tokens: Tensor) -> bool:
    """Would a copy be known from something else? Numbers that count up are an index as often as labels."""
    if tokens.numel() < EVIDENCE or tokens.layout is not torch.strided or tokens.is_meta:
        return False
    steps = tokens.flatten().long().diff()
    return bool((steps != steps[0]).any())


def _flat(value: Any) -> list[Any]:
    """The numbers in a list, or in a list of rows; of anything else nothing."""
    items = list(value.values() if isinstance(value, dict) else value)
    if items and all(type(row) in (list, tuple) for row in items):
        items = [item for row in items for item in row]
    return items if all(type(item) in NUMBERS for item in items) else []


def _notice(found: dict[int, Any], stack: Iterable[FrameType]) -> Notice:
    names: dict[int, str] = {}
    for frame in stack:
        inside = [(names_in(frame), frame.f_code.co_name), (frame.f_globals, frame.f_globals.get("__name__"))]
        for held, where in inside:
            for name, value in list(held.items()):
                if id(value) in found:
                    names.setdefault(id(value), f" {name!r} in {where}")
    listed = [type(value).__name__ + names.get(key, "") for key, value in found.items()]
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return Notice(
        "CT102",
        f"copies of the labels were made before the watch opened, and who reads them is not seen: "
        f"{', '.join(listed[:NAMED])}{more}",
        remedy="make them inside the watch, from the watched tokens, or delete them before it opens",
        count=len(listed),
        blocking=True,
    )
