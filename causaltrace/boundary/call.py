"""One call of a function of numpy's: its arguments by name, and what it is followed as."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import numpy as np

from causaltrace.boundary import indexing
from causaltrace.boundary.arrays import Arrays, arrays_in, bare
from causaltrace.boundary.tables import WRITING
from causaltrace.rules import Rule


def results(out: Any) -> list[Any]:
    """All that a function returned, lists and tuples flattened."""
    if isinstance(out, (list, tuple)):
        return [r for o in out for r in results(o)]
    return [] if out is None else [out]


class Call:
    """``func(*args, **kwargs)``; ``given`` are its arguments by name, as far as they were given."""

    def __init__(self, arrays: Arrays, func: Any, name: str, args: Any, kwargs: Any) -> None:
        self.arrays, self.func, self.name = arrays, func, name
        self.args, self.kwargs, self.full = args, kwargs, f"numpy.{name}"
        try:
            self.given = dict(inspect.signature(func).bind(*args, **kwargs).arguments)
        except (TypeError, ValueError):
            self.given = {}  # numpy says what is wrong

    def get(self, name: str, default: Any = None) -> Any:
        value = self.given.get(name, default)
        return default if value is np._NoValue else value

    def replace(self, name: str, value: Any) -> None:
        """Another value for an argument, the first one if it was given by place."""
        self.given[name] = value
        if name in self.kwargs:
            self.kwargs = self.kwargs | {name: value}
        else:
            self.args = (value, *self.args[1:])

    def array(self, name: str) -> Any:
        """An argument as an array with labels."""
        return self.as_array(self.given[name])

    def as_array(self, value: Any) -> Any:
        return self.arrays.labelled(indexing.array(self.arrays, value))

    def others(self, names: Collection[str]) -> list[Any]:
        """The labels in arguments that have other names."""
        found = arrays_in([value for name, value in self.given.items() if name not in names])
        return [a for a in found if self.arrays.read(a) is not None]

    def run(self) -> Any:
        """The call itself, on plain arrays."""
        return self.arrays.plainly(self.func, self.args, self.kwargs)

    def into(self, op: str, bound: dict[str, Any], rule: Rule | None = None) -> Any:
        """Run it, into ``out=`` if there is one, and follow it as ``op``."""
        arrays, target = self.arrays, self.get("out")
        if isinstance(target, np.ndarray):
            after = arrays.follow(self.full, op, bound, [target], rule, early=True)
            self.run()
            arrays.written(self.full, [target], [target], after)
            return target
        out = self.run()
        made = results(out)
        arrays.done(self.full, made, arrays.follow(self.full, op, bound, made, rule))
        return out

    def onto(self, target: np.ndarray, seen: Any) -> None:
        """Run it: it leaves in ``target`` what ``seen`` is a copy of."""
        arrays, place = self.arrays, bare(target)
        bound = {"self": place, "src": seen}
        after = arrays.follow(self.full, "copy", bound, [place], early=True)
        self.run()
        arrays.written(self.full, [target], [place], after)

    def opaque(self) -> Any:
        """Run it; no rule: all that went in may have come out. Shapes may come of it, or files, or what
        functions do that it calls."""
        arrays, given = self.arrays, [self.args, self.kwargs]
        arrays.told(self.full, given)
        out = self.run()
        arrays.opaque(self.full, given, results(out))
        target = self.get(WRITING.get(self.name, "out"))
        if isinstance(target, np.ndarray):
            arrays.opaque(self.full, given, [bare(target)])
            arrays.lent(f"{self.full} into an array", target)
        return target if out is bare(target) else out
