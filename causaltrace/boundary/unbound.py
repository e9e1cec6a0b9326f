"""Methods and attributes of arrays that are asked of their class, ``map(np.ndarray.tolist, rows)``: an array
with labels has its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from causaltrace.boundary.ndarray import FREE, LabelArray

#: What calls ufuncs, which ask; and what Python calls by slots.
_ASKING = (
    "all any max min sum prod mean std var cumsum cumprod clip conj conjugate resize __iter__ __contains__ "
    "__getitem__ __setitem__ __array_ufunc__ __array_function__"
)
ASKING = frozenset(_ASKING.split())
#: Attributes that give their memory.
MEMORY = ("base", "__array_interface__", "__array_struct__")


def methods() -> dict[str, Any]:
    """By their names."""
    names = set(vars(np.ndarray)) & set(vars(LabelArray)) - ASKING - FREE | {"view"}
    found = {name: _method(name) for name in sorted(names) if callable(vars(np.ndarray)[name])}
    return found | {name: _attribute(name) for name in MEMORY}


def _method(name: str) -> Callable[..., Any]:
    original, own = vars(np.ndarray)[name], vars(LabelArray)[name]

    @functools.wraps(original)
    def method(self: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        return (own if type(self) is LabelArray else original)(self, *args, **kwargs)

    return method


def _attribute(name: str) -> property:
    original, own = vars(np.ndarray)[name], vars(LabelArray)[name]
    return property(lambda a: (own if type(a) is LabelArray else original).__get__(a))
