"""numpy's iterators and random numbers: C code that asks nobody. The watch is told what they get."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from causaltrace.boundary import indexing, slots
from causaltrace.boundary.arrays import Arrays, arrays_in, bare
from causaltrace.boundary.call import results
from causaltrace.boundary.hidden import PLAIN, hides, shown
from causaltrace.boundary.ndarray import labelled
from causaltrace.boundary.number import number

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
    return {id(fn): _drawing(arrays, name, fn) for name, fn in own.items()}


def enter(arrays: Arrays) -> list[Callable[[], None]]:
    """Returns what ends it."""
    undo = [
        slots.patched(kind, {name: _drawing(arrays, name, own) for name, own in _public(kind).items()})
        for kind in RANDOM
    ]
    flat = {name: _reading(arrays, "flat", vars(np.flatiter)[name]) for name in FLAT}
    flat["__setitem__"] = _writing(arrays, vars(np.flatiter)["__setitem__"])
    undo += [slots.constructing(kind, _converting(arrays)) for kind in SCALARS]
    return [
        *undo,
        slots.patched(np.flatiter, flat),
        slots.patched(
            np.broadcast, {"__next__": _reading(arrays, "broadcast", vars(np.broadcast)["__next__"])}
        ),
        slots.patched(np.nditer, {"__init__": _iterating(arrays, vars(np.nditer)["__init__"])}),
    ]


def _public(owner: Any) -> dict[str, Method]:
    return {name: own for name, own in vars(owner).items() if not name.startswith("_") and callable(own)}


def _drawing(arrays: Arrays, name: str, original: Method) -> Method:
    """A method, or a function, that draws random numbers."""
    full = f"numpy.random.{name}"

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        if arrays.inside or not arrays.memory.entries:
            return original(*args, **kwargs)
        if not hides(arrays, [args, kwargs]):
            if not all(map(_simple, (*args, *kwargs.values()))):
                return original(*args, **kwargs)
            arrays.inside += 1  # it makes arrays, and fills them in C
            try:
                out = original(*args, **kwargs)
            finally:
                arrays.inside -= 1
            return labelled(out) if arrays.memory.starts and "out" not in kwargs else out
        args, kwargs = shown(arrays, [args, kwargs])
        found = list(arrays_in([args, {key: value for key, value in kwargs.items() if key != "out"}]))
        arrays.told(full, found)
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
        if arrays.inside or not arrays.memory.entries or not hides(arrays, args):
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


def _reading(arrays: Arrays, what: str, original: Method) -> Method:
    """A method of an iterator that gives values."""

    @functools.wraps(original)
    def method(it: Any, *args: Any) -> Any:
        if not arrays.inside and arrays.memory.starts:
            for a in [it.base] if what == "flat" else [i.base for i in it.iters]:
                if arrays.known(a):
                    arrays.told(f"numpy {what}", a)
            arrays.told(f"numpy {what}", args)
        return original(it, *args)

    return method


def _writing(arrays: Arrays, original: Method) -> Method:
    @functools.wraps(original)
    def method(it: Any, key: Any, value: Any) -> None:
        if arrays.inside or not hides(arrays, [key, value]):
            return original(it, key, value)
        found = list(arrays_in(shown(arrays, [key, value])))
        original(it, key, value)
        arrays.opaque("numpy.flat", found, [it.base])
        arrays.lent("numpy flat", it.base)

    return method


def _iterating(arrays: Arrays, original: Method) -> Method:
    @functools.wraps(original)
    def method(it: Any, *args: Any, **kwargs: Any) -> None:
        if not arrays.inside and arrays.memory.entries and hides(arrays, [args, kwargs]):
            for a in arrays_in(shown(arrays, [args, kwargs])):
                tell = arrays.lent if isinstance(a, np.ndarray) else arrays.told
                tell("numpy nditer", a)
        original(it, *args, **kwargs)

    return method
