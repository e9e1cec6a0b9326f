"""A label that was read out of an array as a number, ``labels[i]``.

It stays a label as long as it only chooses where arrays are read or written. Numpy's integers are no Python
ints: whatever else wants the value asks a method for it, and then the watch is told.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from causaltrace.boundary import slots
from causaltrace.boundary.arrays import Arrays
from causaltrace.shadow import Shadow

#: What is known without the value.
PLAIN = frozenset(
    ["dtype", "ndim", "shape", "size", "itemsize", "nbytes", "strides", "flags", "base", "device"]
)
#: What every object has, and is no way to the value.
OBJECT = frozenset(dir(object)) - {
    *("__hash__", "__str__", "__repr__", "__format__", "__reduce__", "__reduce_ex__", "__sizeof__"),
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
}


def number(arrays: Arrays, value: Any, shadow: Shadow | None) -> Any:
    """An element of an array, as Python gets it."""
    if not shadow:
        return value
    if shadow.label is None or not isinstance(value, np.integer):
        arrays.touch("a number read from an array", shadow, value)
        return value
    kind: Any = type(value)
    made = kind.__new__(_kind(kind), value)
    made.bare, made.shadow, made.arrays = value, shadow, arrays
    return made


@functools.cache
def _kind(base: Any) -> Any:
    """The labels among the numbers of one dtype."""

    def asked(name: str) -> Any:
        if not callable(getattr(base, name)):
            return property(lambda self: getattr(told(self), name))

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(told(self), name)(*map(told, args), **kwargs)

        return method

    def ufunc(self: Any, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(ufunc, method)(*map(told, inputs), **{k: told(v) for k, v in options.items()})

    def function(self: Any, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return func(*map(told, args), **{k: told(v) for k, v in kwargs.items()})

    def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return base(*args, **kwargs)  # with the labels that it is given

    methods = {name: asked(name) for name in dir(base) if name not in PLAIN | OBJECT}
    space = {"__new__": new, "__array_ufunc__": ufunc, "__array_function__": function, "__module__": "numpy"}
    kind = type(base.__name__, (base,), {**methods, **space})
    slots.no_sequence(kind)
    slots.buffered(kind, told)
    return kind


def told(x: Any) -> Any:
    """The value; the watch that it came from is told, as long as it is open."""
    if isinstance(x, (list, tuple)) and type(x) in (list, tuple):
        return type(x)(map(told, x))
    shadow = getattr(x, "shadow", None) if isinstance(x, np.generic) else None
    if shadow is None:
        return x
    if x.arrays.open:
        x.arrays.touch("a label read from an array", shadow)
    return x.bare
