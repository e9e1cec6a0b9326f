"""Plain arrays over memory that labels come to: from then on they tell, all that there are.

Whoever reads a plain array asks nobody. So before labels are first written to memory that numpy has, too, the
arrays that lie there are looked for among all that lives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causaltrace._compat import data_ptr, extent, storage_of
from causaltrace.boundary.adopt import KINDS, adopt
from causaltrace.boundary.alive import alive, frames
from causaltrace.boundary.arrays import borrowed, bounds, memory_of
from causaltrace.boundary.ndarray import LabelArray
from causaltrace.shadow import Memory

#: How often a watch looks at all that lives; what comes later counts as told.
LOOKS = 16

Range = tuple[int, int]
#: What holds memory, where it begins, and its bytes.
Place = tuple[Any, int, int]
_frombuffer = np.frombuffer  # before a watch patches it


def together(
    memory: Memory, labels: list[Tensor], tensors: Iterable[Tensor], arrays: Iterable[np.ndarray]
) -> None:
    """Follow memory that several storages, or storages and arrays, lie in, by its addresses. ``labels``: the
    tensors that have labels."""
    shadows = [memory.read(t) for t in labels]
    storages = {id(s): s for s in map(storage_of, (*labels, *tensors)) if s.device.type == "cpu"}
    places = [(*bounds(a), True, memory_of(a)) for a in arrays if a.size]
    places += [(at, at + size, False, (s, at, size)) for s, at, size in map(extent, storages.values())]
    places.sort(key=lambda place: place[:3])
    for _, cluster in groupby(places, key=_Clusters()):
        _, _, of_arrays, owners = zip(*cluster, strict=True)
        if len(owners) > 1 and not all(of_arrays):
            for owner, _, _ in owners:
                memory.entries.pop(id(owner), None)
            memory.share(*max(owners, key=lambda owner: owner[2])).plain = any(of_arrays)
    for t, shadow in zip(labels, shadows, strict=True):
        if memory.read(t) is None:
            memory.write(t, shadow)


class _Clusters:
    """Numbers ranges, in ascending order, by the stretch of memory that they and their neighbours cover."""

    def __init__(self) -> None:
        self._number, self._stop = 0, 0

    def __call__(self, place: tuple[Any, ...]) -> int:
        start, stop = place[:2]
        self._number += start >= self._stop
        self._stop = max(self._stop, stop)
        return self._number


class Plain:
    """Finds the plain arrays of one watch."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._looks = LOOKS
        self._older = False  #: have those over storages from before the watch been looked for?
        self.undo: list[Callable[[], None]] = []

    def labels(self, storage: torch.UntypedStorage) -> None:
        """Labels are about to be written to a storage that others may read, for the first time."""
        if storage.device.type == "cpu" and storage.is_shared():  # processes that are older than the watch
            self._memory.open(*extent(storage))
        found = self._memory.at(data_ptr(storage))
        if found is not None:
            entry, start = found
            owner = entry.ref()  # C alone may hold it
            held = [owner] if isinstance(owner, np.ndarray) else []
            if entry.plain and not self._follow(lambda _: [(storage, start, entry.nbytes)], *held):
                self._memory.open(*extent(storage))
            entry.plain = False
        elif not self._older:
            self._older = True
            self._follow(lambda tensors: [extent(storage_of(t)) for t in tensors if _lent(t)])

    def adopted(self, a: np.ndarray) -> bool:
        """Labels were written to an array that was plain: are all arrays that lie there known now?"""
        return type(a) in KINDS and self._follow(lambda _: [memory_of(a)], a)

    def others(self, ranges: list[Range]) -> None:
        """Other processes have the memory at these addresses, too."""
        tensors, arrays, _ = alive(list(frames()))
        places = [place for t in tensors if t.device.type == "cpu" for place in [extent(storage_of(t))]]
        places = [place for place in places if _meets(_range(place), ranges)]
        common = [a for a in arrays if _meets(bounds(a), ranges)]
        self.undo.append(adopt([a for a in common if type(a) in KINDS]))
        for place in (*places, *map(memory_of, common)):
            self._memory.open(*place)

    def _follow(self, there: Callable[[list[Tensor]], list[Place]], *more: np.ndarray) -> bool:
        """Whatever lies ``there`` (the places, by the tensors that live) tells from now on: does it all?"""
        if self._looks == 0:
            return False
        self._looks -= 1
        tensors, arrays, values = alive(list(frames()))
        places = there(tensors)
        meeting = [a for a in {id(a): a for a in (*arrays, *more)}.values() if _meeting(bounds(a), places)]
        for a in meeting:
            self._memory.share(*memory_of(a))
        self.undo.append(adopt([a for a in meeting if type(a) in KINDS]))
        silent = [memory_of(a) for a in meeting if borrowed(a) or not isinstance(a, LabelArray)]
        for buffer in values:
            silent += _meeting(buffered(buffer), places)
        for place in silent:
            self._memory.open(*place)
        return not silent


def _lent(t: Tensor) -> bool:
    """Has torch given its memory to others, or got it from others? It never changes the size of it then."""
    return t.device.type == "cpu" and not storage_of(t).resizable()


def buffered(value: Any) -> Range:
    """The addresses of what others than numpy read and write, (0, 0) if there are none."""
    try:
        return bounds(_frombuffer(value, np.uint8))
    except (TypeError, ValueError, BufferError):  # closed, or empty
        return 0, 0


def _range(place: Place) -> Range:
    return place[1], place[1] + place[2]


def _meets(one: Range, ranges: list[Range]) -> bool:
    return any(one[0] < stop and start < one[1] for start, stop in ranges)


def _meeting(one: Range, places: list[Place]) -> list[Place]:
    return [place for place in places if _meets(one, [_range(place)])]
