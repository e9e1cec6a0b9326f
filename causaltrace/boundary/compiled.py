"""Functions that numba compiled. They read and write arrays themselves, and ask nobody.

All that goes into one may come out of it, in what it returns and in the arrays that it could write to. Numba
knows numpy's functions by their identity: while it compiles they are what they were before the watch.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import numpy as np

from causaltrace.boundary.arrays import Arrays, arrays_in, bare, read_only
from causaltrace.boundary.hidden import hides, shown
from causaltrace.boundary.ndarray import labelled
from causaltrace.replaced import replaced

AsTheyWere = Callable[[], AbstractContextManager[None]]


def enter(arrays: Arrays, as_they_were: AsTheyWere) -> list[Callable[[], None]]:
    """``as_they_were``: numpy's functions, for a while. Returns what ends it."""
    if "numba" in sys.modules:
        return _replaced(arrays, as_they_were)
    undo: list[Callable[[], None]] = []
    importing = _Importing(as_they_were, lambda: undo.extend(_replaced(arrays, as_they_were)))
    sys.meta_path.insert(0, importing)

    def end() -> None:
        sys.meta_path.remove(importing)
        for restore in reversed(undo):
            restore()

    return [end]


class _Importing(MetaPathFinder):
    """Numba may be imported inside a watch, too."""

    def __init__(self, as_they_were: AsTheyWere, then: Callable[[], None]) -> None:
        self._as_they_were, self._then = as_they_were, then

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == "numba" else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with self._as_they_were():
                run(module)
            self._then()

        # of this loader alone: it loads numba, and nothing else
        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _replaced(arrays: Arrays, as_they_were: AsTheyWere) -> list[Callable[[], None]]:
    dispatcher = sys.modules["numba.core.dispatcher"]
    kind = dispatcher.Dispatcher
    compiling = [(kind, "compile"), (kind, "_compile_for_args")]
    if (ufuncs := sys.modules.get("numba.np.ufunc.dufunc")) is not None:
        compiling.append((ufuncs.DUFunc, "_compile_for_args"))

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def compile_it(*args: Any, **kwargs: Any) -> Any:
            with as_they_were():
                return original(*args, **kwargs)

        return compile_it

    undo = [replaced(owner, name, wrapped(getattr(owner, name))) for owner, name in compiling]
    return [*undo, replaced(kind, "__call__", _called(arrays, kind.__call__))]


def _called(arrays: Arrays, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if not hides(arrays, [args, kwargs]):
            return original(function, *bare(args), **bare(kwargs))
        given = shown(arrays, [args, kwargs])
        out = arrays.plainly(original, (function, *given[0]), given[1])
        results = list(out) if isinstance(out, (list, tuple)) else [] if out is None else [out]
        arrays.opaque(
            f"numba {function.__qualname__}",
            given,
            results,
            [a for a in arrays_in(given) if isinstance(a, np.ndarray) and not read_only(a)],
        )
        return labelled(out)

    return call
