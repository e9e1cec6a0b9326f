"""The places where numpy's C code reads an array and asks nobody.

``plain[labels]`` and ``plain[...] = labels`` never reach the methods of ``labels``: for the duration of a
watch the item methods of ``ndarray`` itself look at the key and the value first. Before Python 3.12 no class
can say what happens when its buffer is asked for (``memoryview``, ``hashlib``, files): that slot is filled
in C.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

#: CPython's flags of types whose attributes cannot be set, and of those that are called past ``__call__``;
#: and where a type keeps its flags and its slots.
IMMUTABLE, VECTORCALL = 1 << 8, 1 << 11
#: The flag of types whose instances the garbage collector tracks.
TRACKED = 1 << 14
#: The flag of types that their instances count as references to.
HEAP = 1 << 9
WORD = ctypes.sizeof(ctypes.c_void_p)
_FLAGS = next(
    place
    for place in range(WORD * 10, WORD * 40, WORD)
    if ctypes.c_ulong.from_address(id(np.ndarray) + place).value == np.ndarray.__flags__
)
_NEW, _FREE = _FLAGS + 18 * WORD, _FLAGS + 19 * WORD
_WORDS = {size: ctypes.c_void_p * size for size in (0, 1, 3, 8)}
_TYPE = object.__basicsize__ - WORD  #: where an instance keeps its type
_BUFFER, _MAPPING, _SEQUENCE = _FLAGS - WORD, _FLAGS - 7 * WORD, _FLAGS - 8 * WORD


def _table(kind: type, place: int, size: int) -> Any:
    """A type's table of C functions; an empty one if it has none."""
    address = ctypes.c_void_p.from_address(id(kind) + place).value
    return _WORDS[size if address else 0].from_address(address or id(kind))


def patched(kind: type, methods: dict[str, Callable[..., Any]]) -> Callable[[], None]:
    """Methods of a type that is written in C are replaced until the function that is returned is called."""
    tables = [_table(kind, _MAPPING, 3), _table(kind, _SEQUENCE, 8)]
    slots = [list(table) for table in tables]
    old = {name: vars(kind)[name] for name in methods}
    flags = ctypes.c_ulong.from_address(id(kind) + _FLAGS)
    fixed = flags.value & (IMMUTABLE | VECTORCALL)

    def put(new: dict[str, Any]) -> None:
        flags.value &= ~IMMUTABLE
        if "__call__" in new:
            flags.value &= ~VECTORCALL
        try:
            for name, method in new.items():
                setattr(kind, name, method)
        finally:
            flags.value |= fixed if new is old else fixed & IMMUTABLE

    def undo() -> None:
        put(old)
        for table, values in zip(tables, slots, strict=True):
            table[:] = values  # Python would leave slower ones

    put(methods)
    return undo


def constructing(kind: type, made: Callable[[Callable[..., Any], Any, Any, Any], Any]) -> Callable[[], None]:
    """``made(original, cls, args, kwargs)`` makes the instances of a type that is written in C, until the
    function that is returned is called. ``original(cls, args, kwargs)`` is how they were made."""
    slot = ctypes.c_void_p.from_address(id(kind) + _NEW)
    old = slot.value
    assert old is not None
    anything = ctypes.py_object
    original = ctypes.PYFUNCTYPE(anything, anything, anything, anything)(old)

    def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return made(original, cls, args, kwargs)

    restore = patched(kind, {"__new__": new})

    def undo() -> None:
        restore()
        slot.value = old  # Python would leave its own

    return undo


def no_sequence(kind: type) -> None:
    """Item methods in Python make a class a sequence for C; ``torch.tensor([x])`` of a number ``x`` asks."""
    table = _table(kind, _SEQUENCE, 8)
    table[3] = table[5] = None
    children: list[type] = type.__subclasses__(kind)
    for child in children:
        if "__getitem__" not in vars(child):
            no_sequence(child)


def untracked(kind: type) -> None:
    """Instances of a subclass lie in memory as those of its base: the garbage collector, which puts a header
    before what it tracks, does not track them either."""
    base = kind.__base__
    assert base is not None and kind.__basicsize__ == base.__basicsize__
    if base.__flags__ & TRACKED:
        return
    ctypes.c_ulong.from_address(id(kind) + _FLAGS).value &= ~TRACKED
    free = ctypes.c_void_p.from_address(id(base) + _FREE).value
    ctypes.c_void_p.from_address(id(kind) + _FREE).value = free


def become(x: object, kind: type) -> None:
    """``x`` is a ``kind`` from now on, for everybody who holds it: ``x.__class__ = kind``, which Python
    refuses where a class is written in C. Instances of both must lie in memory alike."""
    old = type(x)
    for cls, count in ((kind, ctypes.pythonapi.Py_IncRef), (old, ctypes.pythonapi.Py_DecRef)):
        if cls.__flags__ & HEAP:
            count(ctypes.py_object(cls))
    ctypes.c_void_p.from_address(id(x) + _TYPE).value = id(kind)


def buffered(kind: type, told: Callable[[Any], None]) -> None:
    """``told`` hears of it when the memory of an instance is asked for."""
    if sys.version_info >= (3, 12):
        base: Any = kind.__mro__[1]

        def buffer(self: Any, flags: int) -> memoryview:
            told(self)
            out: memoryview = base.__buffer__(self, flags)
            return out

        kind.__buffer__ = buffer  # type: ignore[attr-defined]
        return
    slot = _table(kind, _BUFFER, 1)
    function = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p, ctypes.c_int)
    original = function(slot[0])

    def get(self: Any, view: int, flags: int) -> int:
        try:
            told(self)
            return int(original(self, view, flags))
        except (BufferError, ValueError):
            return -1

    kept = function(get)
    _kept.append(kept)
    slot[0] = ctypes.cast(kept, ctypes.c_void_p).value


_kept: list[Any] = []  #: C calls them
