"""A label that was read out of an array as a number.

It stays a label as long as it only chooses where arrays are read or written. Numpy's integers are no Python
ints: whatever wants the value, also in C, asks a method for it, and then the watch is told.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from causaltrace.boundary.arrays import Arrays
from causaltrace.shadow import Shadow

#: What is known without the value.
PLAIN = "dtype ndim shape size itemsize nbytes strides flags base"
#: Ways to the value that are no attributes but syntax, functions or protocols.
ASKED = [
    "__index__",
    "__int__",
    "__float__",
    "__complex__",
    "__bool__",
    "__hash__",
    "__str__",
    "__repr__",
    "__format__",
    "__reduce__",
    "__reduce_ex__",
    "__copy__",
    "__deepcopy__",
    "__array__",
    "__array_interface__",
    "__array_struct__",
    "__getitem__",
    "__eq__",
    "__ne__",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
    "__neg__",
    "__pos__",
    "__abs__",
    "__invert__",
    "__round__",
    "__divmod__",
    "__rdivmod__",
    "__add__",
    "__radd__",
    "__sub__",
    "__rsub__",
    "__mul__",
    "__rmul__",
    "__truediv__",
    "__rtruediv__",
    "__floordiv__",
    "__rfloordiv__",
    "__mod__",
    "__rmod__",
    "__pow__",
    "__rpow__",
    "__lshift__",
    "__rlshift__",
    "__rshift__",
    "__rrshift__",
    "__and__",
    "__rand__",
    "__or__",
    "__ror__",
    "__xor__",
    "__rxor__",
]


def number(arrays: Arrays, value: Any, shadow: Shadow | None) -> Any:
    """An element of an array, as Python gets it."""
    if not shadow:
        return value
    if shadow.label is None or not isinstance(value, np.integer):
        arrays.touch("a number read from an array", shadow)
        return value
    kind: Any = type(value)
    made = _kind(kind)(value)
    made.bare, made.shadow, made.arrays = value, shadow, arrays
    return made


@functools.cache
def _kind(base: type) -> Any:
    """The labels among the numbers of one dtype."""

    def asked(name: str) -> Any:
        original = getattr(base, name)
        if not callable(original):
            return property(lambda self: getattr(_told(self), name))

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(_told(self), name)(*args, **kwargs)

        return method

    def ufunc(self: Any, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(ufunc, method)(*[_told(x) for x in inputs], **options)

    names = [name for name in dir(base) if not name.startswith("_") and name not in PLAIN.split()]
    methods = {name: asked(name) for name in (*names, *ASKED) if hasattr(base, name)}
    return type(base.__name__, (base,), {**methods, "__array_ufunc__": ufunc, "__module__": "numpy"})


def _told(x: Any) -> Any:
    """The value; the watch that it came from is told, as long as it is open."""
    shadow = getattr(x, "shadow", None) if isinstance(x, np.generic) else None
    if shadow is None:
        return x
    if x.arrays.open:
        x.arrays.touch("a label read from an array", shadow)
    return x.bare
