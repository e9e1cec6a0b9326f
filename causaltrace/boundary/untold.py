"""numpy's iterators and random numbers: C code that asks nobody. The watch is told what they get."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from causaltrace.boundary import indexing, slots
from causaltrace.boundary.arrays import Arrays, arrays_in, bare
from causaltrace.boundary.call import results
from causaltrace.boundary.containers import PLAIN, listed, simple
from causaltrace.boundary.hidden import hides, shown
from causaltrace.boundary.ndarray import labelled
from causaltrace.boundary.number import number

_frombuffer = np.frombuffer  # before a watch patches it
Method = Callable[..., Any]
RANDOM = (np.random.Generator, np.random.RandomState)
#: ``np.float32(x)`` and the like.
SCALARS = sorted(
    {
        t
        for t in np.sctypeDict.values()
        if issubclass(t, (np.number, np.bool_, np.datetime64)) and "__new__" in vars(t)
    },
    key=lambda t: t.__name__,
)
#: Of these, those that hold what they are given as it is.
RAW = (np.void, np.object_)
#: Methods of ``array.flat`` and ``np.broadcast`` that give values.
FLAT = (
    "__next__",
    "__getitem__",
    "__array__",
    "copy",
    "__eq__",
    "__ne__",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
)


def functions(arrays: Arrays) -> dict[int, Method]:
    """What takes the place of functions of modules, by their ids."""
    own = {name: fn for name, fn in _public(np.random).items() if hasattr(fn, "__func__")}
    made = {id(fn): _drawing(arrays, name, fn) for name, fn in own.items()}
    return made | {
        id(np.nested_iters): _nested(arrays, np.nested_iters),
        id(np.fromiter): _fromiter(arrays, np.fromiter),
    }


def enter(arrays: Arrays) -> list[Callable[[], None]]:
    """Returns what ends it."""
    undo = [
        slots.patched(kind, {name: _drawing(arrays, name, own) for name, own in _public(kind).items()})
        for kind in RANDOM
    ]
    flat = {name: _reading(arrays, "flat", vars(np.flatiter)[name]) for name in FLAT}
    flat["__setitem__"] = _writing(arrays, vars(np.flatiter)["__setitem__"])
    undo += [slots.constructing(kind, _converting(arrays)) for kind in (*SCALARS, *RAW)]
    undo.append(slots.constructing(np.broadcast, _broadcasting(arrays)))
    items = vars(np.void)
    record = {
        "__getitem__": _record(arrays, items["__getitem__"]),
        "__setitem__": _storing(arrays, "void", items["__setitem__"]),
    }
    iterator = {
        "__init__": _iterating(arrays, vars(np.nditer)["__init__"]),
        "__setitem__": _storing(arrays, "nditer", vars(np.nditer)["__setitem__"]),
    }
    return [
        *undo,
        slots.patched(np.flatiter, flat),
        slots.patched(
            np.broadcast, {"__next__": _reading(arrays, "broadcast", vars(np.broadcast)["__next__"])}
        ),
        slots.patched(np.nditer, iterator),
        slots.patched(np.void, record),
    ]


def _public(owner: Any) -> dict[str, Method]:
    return {name: own for name, own in vars(owner).items() if not name.startswith("_") and callable(own)}


def _drawing(arrays: Arrays, name: str, original: Method) -> Method:
    """A method, or a function, that draws random numbers."""
    full = f"numpy.random.{name}"

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        if not arrays.memory.entries or arrays.busy():
            return original(*args, **kwargs)
        given = [args, kwargs] if simple(args, kwargs) else listed(arrays, [args, kwargs])
        if not hides(arrays, given):
            if not all(map(_simple, (*args, *kwargs.values()))):
                return original(*args, **kwargs)
            out = arrays.whole(original, args, kwargs)  # it makes arrays, and fills them in C
            return labelled(out) if arrays.memory.starts and "out" not in kwargs else out
        given = shown(arrays, given)
        found = list(arrays_in([given[0], {key: v for key, v in given[1].items() if key != "out"}]))
        arrays.told(full, found)
        if name == "shuffle" and not any(isinstance(a, np.ndarray) for a in args):
            return original(*args, **kwargs)  # elements of a list change places
        args, kwargs = given
        out = arrays.plainly(original, args, kwargs)
        written = [a for a in found if name == "shuffle" and isinstance(a, np.ndarray)]
        arrays.opaque(full, found, [*results(out), *written])
        if found and "out" in kwargs:
            arrays.unseen(full, kwargs["out"])
        return labelled(out)

    return method


def _simple(value: Any) -> bool:
    """No code of a program's runs when it is asked for what it holds."""
    if type(value) in (tuple, list):
        return all(map(_simple, value))
    return type(value) in PLAIN or isinstance(value, RANDOM)


def _converting(arrays: Arrays) -> Callable[[Method, Any, Any, Any], Any]:
    """Types of numbers make numbers of numbers, and arrays of arrays."""

    def made(original: Method, cls: Any, args: Any, kwargs: Any) -> Any:
        if simple(args, kwargs) or not arrays.memory.entries or arrays.busy(3):
            return original(cls, args, kwargs)
        args = listed(arrays, args)
        if not hides(arrays, args):
            return original(cls, args, kwargs)
        if cls in RAW:
            arrays.told(f"numpy.{cls.__name__}", args)
            return original(cls, args, kwargs)
        args = shown(arrays, args)
        out = original(cls, bare(args), kwargs)
        (given, *_) = args
        if isinstance(out, np.ndarray):
            full = f"numpy.{cls.__name__}"
            source = indexing.array(arrays, given)
            arrays.done(full, [out], arrays.follow(full, "_to_copy", {"self": source}, [out]))
            return labelled(out)
        if isinstance(out, (np.datetime64, np.timedelta64)):
            arrays.told(f"numpy.{cls.__name__}", given)
            return out
        shadow = getattr(given, "shadow", None)
        return number(arrays, out, arrays.read(given) if shadow is None else shadow)

    return made


def _broadcasting(arrays: Arrays) -> Callable[[Method, Any, Any, Any], Any]:
    """What numpy broadcasts has the size of what it was given."""

    def made(original: Method, cls: Any, args: Any, kwargs: Any) -> Any:
        arrays.tells(args)
        return original(cls, args, kwargs)

    return made


def _reading(arrays: Arrays, what: str, original: Method) -> Method:
    """A method of an iterator that gives values."""

    @functools.wraps(original)
    def method(it: Any, *args: Any) -> Any:
        if arrays.memory.starts and not arrays.busy():
            for a in [it.base] if what == "flat" else [i.base for i in it.iters]:
                if arrays.known(a):
                    arrays.told(f"numpy {what}", a)
            arrays.told(f"numpy {what}", args)
        return original(it, *args)

    return method


def _writing(arrays: Arrays, original: Method) -> Method:
    @functools.wraps(original)
    def method(it: Any, key: Any, value: Any) -> None:
        given = [key, value] if arrays.busy() else listed(arrays, [key, value])
        if arrays.busy() or not hides(arrays, given):
            return original(it, key, value)
        found = list(arrays_in(shown(arrays, given)))
        original(it, key, value)
        arrays.opaque("numpy.flat", found, [it.base])
        arrays.lent("numpy flat", it.base)

    return method


def _iterating(arrays: Arrays, original: Method) -> Method:
    @functools.wraps(original)
    def method(it: Any, *args: Any, **kwargs: Any) -> None:
        if arrays.memory.entries and not arrays.busy():
            _lent(arrays, "nditer", [args, kwargs])
        original(it, *args, **kwargs)

    return method


def _nested(arrays: Arrays, original: Method) -> Method:
    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        if arrays.memory.entries and not arrays.busy():
            _lent(arrays, "nested_iters", [args, kwargs])
        return original(*args, **kwargs)

    return function


def _lent(arrays: Arrays, name: str, given: Any) -> None:
    """Iterators read and write what they are given as long as they live."""
    given = listed(arrays, given)
    if hides(arrays, given):
        for a in arrays_in(shown(arrays, given)):
            tell = arrays.lent if isinstance(a, np.ndarray) else arrays.told
            tell(f"numpy {name}", a)


def _storing(arrays: Arrays, what: str, original: Method) -> Method:
    """An item method of what is no array, but lies in one."""

    @functools.wraps(original)
    def method(it: Any, key: Any, value: Any) -> None:
        if not arrays.busy():
            given = listed(arrays, [key, value])
            if hides(arrays, given):
                arrays.told(f"numpy {what}", shown(arrays, given))
        original(it, key, value)

    return method


def _record(arrays: Arrays, original: Method) -> Method:
    """A field of an element of an array, which may have been written to since it was read."""

    @functools.wraps(original)
    def method(record: np.void, key: Any) -> Any:
        if arrays.memory.starts and isinstance(record.base, np.ndarray) and arrays.known(bare(record.base)):
            arrays.told(
                "numpy void", record.base if record.dtype.hasobject else _frombuffer(record, record.dtype)
            )
        return original(record, key)

    return method


def _fromiter(arrays: Arrays, original: Method) -> Method:
    """Elements of a number's size are asked for it; larger ones are not."""

    @functools.wraps(original)
    def function(iter: Any, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        if not arrays.memory.entries or arrays.busy() or not np.dtype(dtype).subdtype:
            return original(iter, dtype, *args, **kwargs)
        return original(map(seen, iter), dtype, *args, **kwargs)

    def seen(value: Any) -> Any:
        given = listed(arrays, [value])
        if hides(arrays, given):
            arrays.told("numpy.fromiter", shown(arrays, given))
        return value

    return function
