"""What numpy's functions are handed that says nothing: labels in lists, conditions, tensors.

numpy asks the arrays among its arguments who handles a call. It asks no list, no ``where=`` and no tensor.
All of its functions are of two types: for the duration of a watch, both look for labels there first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causaltrace.boundary import functions, slots, ufuncs
from causaltrace.boundary.arrays import Arrays
from causaltrace.boundary.containers import PLAIN, listed, simple
from causaltrace.boundary.ndarray import LabelArray, labelled

Method = Callable[..., Any]
NUMBERS = PLAIN - {np.ndarray}
ASKED = PLAIN | {LabelArray}
METHODS = ("reduce", "accumulate", "reduceat", "outer", "at")


def enter(arrays: Arrays) -> list[Callable[[], None]]:
    """Returns what ends it."""
    methods = {name: _method(arrays, name, vars(np.ufunc)[name]) for name in METHODS}
    called = _method(arrays, "__call__", vars(np.ufunc)["__call__"])
    function = _function(arrays, vars(type(np.sum))["__call__"])
    return [
        slots.patched(np.ufunc, {"__call__": called, **methods}),
        slots.patched(type(np.sum), {"__call__": function}),
    ]


def hides(arrays: Arrays, value: Any) -> bool:
    """Is there an array, a number or a tensor with labels in it?"""
    if type(value) in PLAIN:
        return type(value) is np.ndarray and value.dtype.hasobject and hides(arrays, value.tolist())
    if isinstance(value, (list, tuple)):
        return not NUMBERS.issuperset(map(type, value)) and any(hides(arrays, v) for v in value)
    if isinstance(value, dict):
        return any(hides(arrays, v) for v in value.values())
    if isinstance(value, Tensor):
        return _followed(arrays, value)
    return isinstance(value, LabelArray) or hasattr(value, "shadow")


def shown(arrays: Arrays, value: Any) -> Any:
    """Tensors as arrays over their memory."""
    if type(value) in (list, tuple):
        return type(value)(shown(arrays, v) for v in value)
    if type(value) is dict:
        return {key: shown(arrays, v) for key, v in value.items()}
    if isinstance(value, Tensor):
        return labelled(arrays.plainly(Tensor.__array__, (value,), {}))
    return value


def _followed(arrays: Arrays, t: Tensor) -> bool:
    return t.layout is torch.strided and not t.is_meta and arrays.memory.entry(t) is not None


def _asks(value: Any) -> bool:
    """Does numpy hand it the call, other than to a LabelArray?"""
    own = getattr(type(value), "__array_ufunc__", np.ndarray.__array_ufunc__)
    return own not in (np.ndarray.__array_ufunc__, LabelArray.__array_ufunc__)


def _method(arrays: Arrays, name: str, original: Method) -> Method:
    def method(ufunc: np.ufunc, *args: Any, **kwargs: Any) -> Any:
        if not kwargs and all(type(a) in ASKED for a in args):
            return original(ufunc, *args, **kwargs)
        if simple(args, kwargs) and "where" not in kwargs or arrays.busy():
            return original(ufunc, *args, **kwargs)
        args, kwargs = listed(arrays, args), listed(arrays, kwargs)
        if not (hides(arrays, args) or kwargs and hides(arrays, kwargs)):
            out = original(ufunc, *args, **kwargs)
            if name == "__call__" and "where" in kwargs:
                _, options = ufuncs.split(ufunc, name, args, kwargs)
                return labelled(out) if ufuncs.left_out(arrays, out, options) else out
            return out
        inputs, options = ufuncs.split(ufunc, name, args, kwargs)
        if any(map(_asks, (*inputs, *ufuncs.targets(options)))):
            return original(ufunc, *args, **kwargs)
        wraps = (
            [t for t in inputs if isinstance(t, Tensor)] if name != "outer" and "out" not in options else []
        )
        out = labelled(ufuncs.called(arrays, ufunc, name, *shown(arrays, [inputs, options])))
        if not wraps or out is None:
            return out
        return (
            tuple(map(wraps[0].__array_wrap__, out))
            if isinstance(out, tuple)
            else wraps[0].__array_wrap__(out)
        )

    return method


def _function(arrays: Arrays, original: Method) -> Method:
    def method(func: Any, *args: Any, **kwargs: Any) -> Any:
        if simple(args, kwargs) or arrays.busy():
            return original(func, *args, **kwargs)
        args, kwargs = listed(arrays, args), listed(arrays, kwargs)
        if not (hides(arrays, args) or kwargs and hides(arrays, kwargs)):
            return original(func, *args, **kwargs)
        if args and isinstance(args[0], Tensor) and hasattr(func._implementation, "__code__"):
            return original(func, *args, **kwargs)  # it asks the tensor
        args, kwargs = shown(arrays, [args, kwargs])
        return labelled(functions.called(arrays, func, args, kwargs))

    return method
