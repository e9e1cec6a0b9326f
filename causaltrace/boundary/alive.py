"""What a program has in its hands: the tensors, arrays and plain values that live."""

from __future__ import annotations

import ctypes
import gc
import inspect
import os
import sys
import types
import weakref
from array import array
from collections import deque
from collections.abc import Container, Iterable, Iterator
from itertools import compress, filterfalse
from mmap import mmap
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import Parameter

from causaltrace._compat import data_ptr, is_wrapped, storage_of

TENSORS = frozenset((Tensor, Parameter))
BUFFERS = frozenset((array, bytearray, mmap))
FOREIGN = (ctypes.Array, ctypes.Structure, ctypes.Union)  #: and what is derived from them
FUNCTIONS = frozenset((types.FunctionType,))
MODULES = frozenset((types.ModuleType,))
SIZED = frozenset((list, tuple, dict, deque, bytes))
_base = np.ndarray.base.__get__
#: Most of what the collector tracks, and what holds no values of a program. Tuples are looked into where
#: something else holds them: the constants of code are tuples that nothing else does. Names of classes are
#: tracked by themselves.
HOLDS_NONE = frozenset(
    (
        tuple,
        types.BuiltinFunctionType,
        types.GetSetDescriptorType,
        types.MethodDescriptorType,
        types.WrapperDescriptorType,
        types.GenericAlias,
        types.UnionType,
        weakref.ReferenceType,
        OpOverload,
        type,
    )
)


def alive(
    stack: list[FrameType], lengths: Container[int] = ()
) -> tuple[list[Tensor], list[np.ndarray], list[Any]]:
    """Tensors that have memory; arrays; buffers, and lists and bytes of one of the ``lengths``. ``stack``:
    whose names are looked at."""
    named = [value for frame in stack for value in names_in(frame).values()]
    objects = tracked(named)
    kinds = list(map(type, objects))  # once: most of the time goes into fetching what objects are
    some = list(map((set(kinds) - HOLDS_NONE).__contains__, kinds))
    objects, kinds = list(compress(objects, some)), list(compress(kinds, some))
    tensors = [t for t in _chosen(objects, kinds, TENSORS) if _readable(t)]
    # of a function the defaults count: its cells, and the names of its module, are tracked by themselves. Of
    # modules their names: _asyncio of Python 3.12 also refers to what it has freed (python/cpython#122695)
    level = named + [f.__defaults__ for f in _chosen(objects, kinds, FUNCTIONS)]
    level += [m.__dict__ for m in _chosen(objects, kinds, MODULES)]
    level += gc.get_referents(*_chosen(objects, kinds, set(kinds) - FUNCTIONS - MODULES))
    del objects, named
    wanted = BUFFERS.union(*map(_with_subclasses, (np.ndarray, *FOREIGN)))
    values: dict[int, Any] = {}
    while level:
        level = _chosen(level, map(type, level), wanted | SIZED)
        kinds = list(map(type, level))
        sized = _chosen(level, kinds, SIZED)
        found = list(compress(sized, map(lengths.__contains__, map(len, sized))))
        found += _chosen(level, kinds, wanted)
        values.update(zip(map(id, found), found, strict=True))
        # the collector does not track what holds nothing that it tracks
        inner = list(filter(None, _chosen(level, kinds, (tuple,))))
        inner += filterfalse(gc.is_tracked, _chosen(level, kinds, (dict,)))
        level = gc.get_referents(*dict(zip(map(id, inner), inner, strict=True)).values())
    arrays = [v for v in values.values() if isinstance(v, np.ndarray)]
    below = list(map(_base, arrays))
    while below := [a for a in below if isinstance(a, np.ndarray)]:
        arrays += below
        below = list(map(_base, below))
    arrays = list({id(a): a for a in arrays}.values())
    return tensors, arrays, [v for v in values.values() if not isinstance(v, np.ndarray)]


def tracked(named: Iterable[Any] = ()) -> list[Any]:
    """All that Python's garbage collector tracks, also what the program hid from it (``gc.freeze``)."""
    objects = gc.get_objects()
    # Python 3.12 itself hides what it starts with, before the program can
    if gc.get_freeze_count() and id(vars(os)) not in map(id, objects):
        objects += hidden(objects, named)
    return objects


def hidden(objects: list[Any], named: Iterable[Any]) -> list[Any]:
    """What else the collector knows that can be reached from ``objects``, what is ``named``, and modules."""
    known = set(map(id, objects))
    out: list[Any] = []
    level = [*objects, *named, *sys.modules.values()]
    while level:
        inner = [m.__dict__ for m in level if type(m) in MODULES]
        inner += gc.get_referents(*[o for o in level if type(o) not in MODULES])
        found = dict(zip(map(id, inner), inner, strict=True))
        level = [o for key, o in found.items() if key not in known and gc.is_tracked(o)]
        known.update(map(id, level))
        out += level
    return out


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
        or not data_ptr(storage_of(t))
    )


def frames() -> Iterator[FrameType]:
    """All that run, but our own."""
    for last in sys._current_frames().values():
        frame: FrameType | None = last
        while frame is not None:
            if str(frame.f_globals.get("__name__")).partition(".")[0] != "causaltrace":
                yield frame
            frame = frame.f_back


def names_in(frame: FrameType) -> dict[str, Any]:
    """A copy: before Python 3.13 a frame keeps what it gave out, and all that is in there lives on."""
    given = frame.f_locals
    out = dict(given)
    if type(given) is dict and frame.f_code.co_flags & inspect.CO_OPTIMIZED and sys.getrefcount(given) <= 3:
        given.clear()
    return out
