"""What numpy's C code takes for a list or an array besides lists and arrays: every sequence, and all that has
``__array__``. It reads labels in there and asks nobody."""

from __future__ import annotations

from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causaltrace.boundary.arrays import Arrays, as_array

#: What most arguments are, and nothing that is looked into.
PLAIN = frozenset(
    (np.ndarray, int, float, bool, complex, str, bytes, type(None), type, np.dtype, slice, range)
) | {type(Ellipsis), np.float64, np.float32, np.int64, np.bool_, torch.dtype}
#: What tells by itself, or is no sequence to numpy.
_OWN = (np.ndarray, np.generic, Tensor, str, bytes, dict, type)


def simple(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Is nothing to be looked for in the arguments of a call?"""
    return PLAIN.issuperset(map(type, args)) and (not kwargs or PLAIN.issuperset(map(type, kwargs.values())))


def listed(arrays: Arrays, value: Any) -> Any:
    """Other containers in ``value`` as the lists or arrays that numpy would make of them; it is ``value``
    itself if there are none."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is list or kind is tuple:
        if PLAIN.issuperset(map(type, value)):
            return value
        inner = [listed(arrays, v) for v in value]
        return value if all(map(is_, inner, value)) else kind(inner)
    if kind is dict:
        inner = [listed(arrays, v) for v in value.values()]
        return value if all(map(is_, inner, value.values())) else dict(zip(value, inner, strict=True))
    if isinstance(value, _OWN) or not arrays.memory.entries:
        return value
    return _read(arrays, value)


def _read(arrays: Arrays, value: Any) -> Any:
    """As numpy reads it."""
    kind: Any = type(value)
    if hasattr(kind, "__array_ufunc__") or hasattr(kind, "__array_function__"):  # numpy asks it
        return value
    if hasattr(value, "__array__"):
        return _converted(arrays, value)
    if isinstance(value, tuple):
        return listed(arrays, tuple(tuple.__iter__(value)))
    if isinstance(value, list):
        return listed(arrays, list(list.__iter__(value)))
    if not hasattr(kind, "__getitem__") or not hasattr(kind, "__len__") or _buffer(value):
        return value
    try:
        return listed(arrays, list(value))
    except Exception:  # an object to numpy, too, or the same error from there
        return value


def _converted(arrays: Arrays, value: Any) -> Any:
    """Functions call methods of what is no array: without labels, it stays what it is."""
    try:
        a = as_array(value)
    except Exception:
        return value
    return arrays.labelled(a) if arrays.known(a) else value


def _buffer(value: Any) -> bool:
    try:
        memoryview(value)
    except (TypeError, ValueError, BufferError):
        return False
    return True
