"""Methods of arrays that are called by their class, ``map(np.ndarray.tolist, rows)``: an array with labels
has its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from causaltrace.boundary.ndarray import FREE, LabelArray

#: What calls ufuncs, which ask; and what Python calls by slots.
_ASKING = (
    "all any max min sum prod mean std var cumsum cumprod clip round conj conjugate resize "
    "__bool__ __int__ __float__ __complex__ __index__ __str__ __repr__ __format__ __iter__ __contains__ "
    "__getitem__ __setitem__ __array_ufunc__ __array_function__"
)
ASKING = frozenset(_ASKING.split())


def methods() -> dict[str, Callable[..., Any]]:
    """By their names."""
    names = set(vars(np.ndarray)) & set(vars(LabelArray)) - ASKING - FREE | {"view"}
    return {name: _method(name) for name in sorted(names) if callable(vars(np.ndarray)[name])}


def _method(name: str) -> Callable[..., Any]:
    original, own = vars(np.ndarray)[name], vars(LabelArray)[name]

    @functools.wraps(original)
    def method(self: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        return (own if type(self) is LabelArray else original)(self, *args, **kwargs)

    return method
