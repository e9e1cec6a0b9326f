"""Arrays that turn out to hold labels become arrays that tell, where they lie: for everybody who has them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from causaltrace.boundary import slots
from causaltrace.boundary.ndarray import LabelArray, lent


class LabelMemmap(LabelArray, np.memmap):
    """A memory map whose elements are followed; its slices are LabelArrays."""

    @property
    def base(self) -> Any:
        lent(self, "numpy base")
        return _below(self)

    @property
    def _mmap(self) -> Any:
        lent(self, "numpy memmap")
        return _map(self)

    @_mmap.setter
    def _mmap(self, value: Any) -> None:
        """Numpy hands every new array what the array below it has."""

    def flush(self) -> None:
        if (pages := _map(self)) is not None:
            pages.flush()


def _below(a: LabelMemmap) -> Any:
    return np.ndarray.base.__get__(a)


def _map(a: LabelMemmap) -> Any:
    """What Python has of the file: a plain map below has it, or what this one was before it was adopted."""
    below = _below(a)
    return vars(below if isinstance(below, np.memmap) else a).get("_mmap")


#: What arrays with labels become.
KINDS: dict[type, type] = {np.ndarray: LabelArray, np.memmap: LabelMemmap}


def adopt(arrays: list[Any]) -> Callable[[], None]:
    """Plain arrays are those of ``KINDS`` until the function that is returned is called."""
    changed = [(weakref.ref(a), type(a)) for a in arrays]
    for a in arrays:
        slots.become(a, KINDS[type(a)])

    def undo() -> None:
        for ref, kind in changed:
            if (a := ref()) is not None:
                slots.become(a, kind)

    return undo
