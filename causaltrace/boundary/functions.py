"""numpy's functions as operations of the rule table: which of ``tables`` and ``rows`` follows a function."""

from __future__ import annotations

from typing import Any

import numpy as np

from causaltrace.boundary.arrays import Arrays, arrays_in
from causaltrace.boundary.call import Call, results
from causaltrace.boundary.moved import moved
from causaltrace.boundary.number import told
from causaltrace.boundary.rows import ROWS
from causaltrace.boundary.tables import CALLING, FREE, MOVED, PARTS, SEVERAL


def name_of(func: Any) -> str:
    """``sum``, ``linalg.norm``: without where it is defined."""
    name = f"{func.__module__}.{func.__name__}".removeprefix("numpy.")
    return name.removeprefix("lib.stride_tricks.").removeprefix("lib._stride_tricks_impl.")


def called(arrays: Arrays, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``func(*args, **kwargs)``, bare or labelled."""
    out = _called(arrays, func, args, kwargs)
    if out is not None:  # what it wrote to is followed
        arrays.tells([args, kwargs], *results(out))
    return out


def _called(arrays: Arrays, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = name_of(func)
    if name in SEVERAL and args and isinstance(args[0], np.ndarray) and args[0].dtype == object:
        args = (args[0].tolist(), *args[1:])  # arrays among its elements are those that are meant
    if name in CALLING:
        return func._implementation(*args, **kwargs)
    if arrays.unlabelled(list(arrays_in([args, kwargs]))):
        return arrays.plainly(func, args, kwargs)
    call = Call(arrays, func, name, args, kwargs)
    try:
        return _followed(call)
    except Exception:  # whoever catches it knows something about the values
        arrays.told(f"an error in {call.full}", [args, kwargs])
        raise


def _followed(call: Call) -> Any:
    name = call.name
    if name in FREE:
        call.arrays.told(call.full, call.get("shape"))
        return call.arrays.plainly(call.func, told(call.args), {k: told(v) for k, v in call.kwargs.items()})
    if name in PARTS:
        return parts(call)
    if name in MOVED and call.given:
        out = moved(call)
        return parts(call) if out is NotImplemented else out
    if name in ROWS and call.given:
        follow, names = ROWS[name]
        out = NotImplemented if call.others(names.split()) else follow(call)
        return call.opaque() if out is NotImplemented else out
    return call.opaque()


def parts(call: Call) -> Any:
    """Python code that calls what is followed. What numpy makes of it in any other way is no LabelArray."""
    out = call.func._implementation(*call.args, **call.kwargs)
    arrays = call.arrays
    stripped = [r for r in results(out) if type(r) is np.ndarray and not arrays.known(r)]
    if stripped:
        arrays.opaque(call.full, [call.args, call.kwargs], stripped)
    return out
