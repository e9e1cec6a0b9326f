"""Copies of the labels that were made before the watch opened.

Nobody told the watch of them, so it looks once, at what lives then. Tensors that repeat the tokens get their
labels. Lists, arrays and bytes tell nobody who reads them: the report names those that repeat the tokens.
"""

from __future__ import annotations

import gc
import inspect
import sys
import types
from array import array
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from functools import cached_property
from itertools import compress, filterfalse
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import Parameter

from causaltrace._compat import as_numpy, data_ptr, is_wrapped, storage_of
from causaltrace.boundary.ndarray import LabelArray
from causaltrace.report.model import Notice
from causaltrace.stream import Stream
from causaltrace.tracer import Tracer

#: Fewer equal labels are no evidence: short lists of small numbers are often equal. With as many, chance is
#: out but for the smallest alphabets, since the *whole* stream has to be equal.
EVIDENCE = 8
#: Named one by one in the report.
NAMED = 3

TENSORS = frozenset((Tensor, Parameter))
LISTS = frozenset((list, tuple, dict, deque, array))
SIZED = LISTS | {bytes, bytearray}
NUMBERS = frozenset((int, float, *(kind for kind in np.sctypeDict.values() if issubclass(kind, np.number))))
#: Types of bytes.
WIDTHS = (np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64)
#: Most of what the collector tracks, and what holds no values of a program. Tuples are looked into where
#: something else holds them: the constants of code are tuples that nothing else does. Of functions the
#: defaults count; their cells, and the names of their modules and of classes, are tracked by themselves.
HOLDS_NONE = frozenset(
    (
        tuple,
        types.BuiltinFunctionType,
        types.GetSetDescriptorType,
        types.MethodDescriptorType,
        types.WrapperDescriptorType,
        types.GenericAlias,
        types.UnionType,
        types.FunctionType,
        OpOverload,
        type,
    )
)


def look(
    tracer: Tracer,
    given: list[tuple[Stream, Tensor]],
    place: Callable[[Tensor, Tensor], None],
    tell: Callable[[Notice], None],
) -> None:
    """Look for copies of the tokens of the ``given`` streams. ``place``: the elements of a tensor are the
    labels at these positions."""
    streams = [Original(stream, tokens) for stream, tokens in given if _evident(tokens)]
    if not streams:
        return
    frames = list(_frames())
    tensors, values = _alive(frames, {n for s in streams for n in s.lengths})
    memory = tracer.memory
    for t in tensors:
        if id(storage_of(t)) in memory.entries:
            continue
        for s in streams:
            if s.under(t):
                memory.share(storage_of(s.tokens), *s.memory)
            elif s.repeated(t):
                place(t, s.positions.to(t.device).view(t.shape))
                shadow = memory.read(t)
                if t.is_floating_point() and shadow is not None:  # values, as of any label that was cast
                    memory.write(t, tracer.ledger.value(shadow))
            else:
                continue
            break
    found: dict[int, Any] = {}
    for value in values:
        for s in streams:
            if isinstance(value, LabelArray) and s.lent(value):
                memory.share(storage_of(s.tokens), *s.memory)
            elif s.equals(value):
                found[id(value)] = value
    if found:
        tell(_notice(found, frames))


class Original:
    """The tokens of a stream, to compare with."""

    def __init__(self, stream: Stream, tokens: Tensor) -> None:
        self.tokens = tokens
        self.positions = torch.arange(stream.size) + stream.offset
        self.memory = data_ptr(storage_of(tokens)), storage_of(tokens).nbytes()
        self.lengths = {tokens.numel() * np.dtype(width).itemsize for width in WIDTHS} | {len(tokens)}

    @cached_property
    def ids(self) -> Tensor:
        return self.tokens.detach().flatten().long()

    @cached_property
    def array(self) -> np.ndarray:
        return as_numpy(self.ids.cpu())

    @cached_property
    def own(self) -> np.ndarray | None:
        """The tokens' memory."""
        return as_numpy(self.tokens.detach()) if self.tokens.device.type == "cpu" else None

    @cached_property
    def numbers(self) -> list[int]:
        return self.array.tolist()

    @cached_property
    def bytes(self) -> list[bytes]:
        return [self.array.astype(width).tobytes() for width in WIDTHS]

    def under(self, t: Tensor) -> bool:
        """Is ``t``, which has another storage, over the tokens' memory?"""
        start, size = self.memory
        return t.device == self.tokens.device and start <= data_ptr(storage_of(t)) < start + size

    def repeated(self, t: Tensor) -> bool:
        if t.numel() != self.ids.numel() or t.dtype.is_complex or t.dtype == torch.bool:
            return False
        flat = t.detach().flatten().to(self.ids.device)
        if t.is_floating_point():
            return torch.equal(flat.double(), self.ids.double())
        return torch.equal(flat.long(), self.ids)

    def lent(self, a: np.ndarray) -> bool:
        """Does ``a`` lie where the tokens do? Columns of one table count as well."""
        return self.own is not None and np.may_share_memory(a, self.own)

    def equals(self, value: Any) -> bool:
        """Can the labels be read from ``value``?"""
        if isinstance(value, np.ndarray):
            same = value.size == self.ids.numel() and value.dtype.kind in "iuf"
            return (
                self.lent(value)
                or same
                and np.array_equal(np.ndarray.view(value, np.ndarray).ravel(), self.array)
            )
        if type(value) in LISTS:
            return _flat(value) == self.numbers
        return any(value == raw for raw in self.bytes)


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


def _alive(frames: list[FrameType], lengths: Container[int]) -> tuple[list[Tensor], list[Any]]:
    """Tensors that have memory; arrays; and lists and bytes of one of the ``lengths``."""
    objects = gc.get_objects()
    kinds = list(map(type, objects))
    tensors = [t for t in _chosen(objects, kinds, TENSORS) if _readable(t)]
    level = gc.get_referents(*_chosen(objects, kinds, set(kinds) - HOLDS_NONE))
    level += [f.__defaults__ for f in _chosen(objects, kinds, (types.FunctionType,))]
    del objects
    for frame in frames:
        level += _locals(frame).values()
    of_arrays = frozenset(_with_subclasses(np.ndarray))
    values: dict[int, Any] = {}
    while level:
        level = _chosen(level, map(type, level), of_arrays | SIZED)
        kinds = list(map(type, level))
        some = _chosen(level, kinds, SIZED)
        some = list(compress(some, map(lengths.__contains__, map(len, some))))
        some += _chosen(level, kinds, of_arrays)
        values.update(zip(map(id, some), some, strict=True))
        # the collector does not track what holds nothing that it tracks
        inner = list(filter(None, _chosen(level, kinds, (tuple,))))
        inner += filterfalse(gc.is_tracked, _chosen(level, kinds, (dict,)))
        level = gc.get_referents(*dict(zip(map(id, inner), inner, strict=True)).values())
    return tensors, list(values.values())


def _with_subclasses(kind: type) -> Iterator[type]:
    yield kind
    sub: type
    for sub in kind.__subclasses__():
        yield from _with_subclasses(sub)


def _chosen(objects: list[Any], kinds: Iterable[type], wanted: Container[type]) -> list[Any]:
    return list(compress(objects, map(wanted.__contains__, kinds)))


def _readable(t: Tensor) -> bool:
    return not (
        is_wrapped(t)
        or t.layout is not torch.strided
        or t.is_meta
        or t.is_nested
        or t.is_quantized
        or not t.numel()
        or not storage_of(t).nbytes()  # freed by its owner
    )


def _frames() -> Iterator[FrameType]:
    """All that run, but our own."""
    for last in sys._current_frames().values():
        frame: FrameType | None = last
        while frame is not None:
            if str(frame.f_globals.get("__name__")).partition(".")[0] != "causaltrace":
                yield frame
            frame = frame.f_back


def _locals(frame: FrameType) -> dict[str, Any]:
    """A copy: before Python 3.13 a frame keeps what it gave out, and all that is in there lives on."""
    given = frame.f_locals
    out = dict(given)
    if type(given) is dict and frame.f_code.co_flags & inspect.CO_OPTIMIZED and sys.getrefcount(given) <= 3:
        given.clear()
    return out


def _notice(found: dict[int, Any], frames: Iterable[FrameType]) -> Notice:
    names: dict[int, str] = {}
    for frame in frames:
        inside = [(_locals(frame), frame.f_code.co_name), (frame.f_globals, frame.f_globals.get("__name__"))]
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
