"""Copies of this process (``os.fork`` and the like), which go on with all that the watch knows.

A copy follows what it does. What it gives away it says first, in memory that it shares with the process that
opened the watch. That one looks there whenever it asks what has left torch. Labels that a copy writes to
other memory that processes have in common count as given away.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import astuple
from itertools import chain
from mmap import mmap
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace.boundary.plain import Range, buffered
from causaltrace.lattice.cells import LABELS, Cells
from causaltrace.reach import Reach
from causaltrace.shadow import Shadow
from causaltrace.site import Site
from causaltrace.tracer import Tracer

#: Ways to copy this process.
FORKING = ("fork", "forkpty")
#: Bytes for the line at which a copy first gave something away.
LINE = 512
#: Copies of copies that tell for themselves: of so many generations, and so many of each copy.
GENERATIONS, COPIES = 2, 32
#: Files of these names are glibc's semaphores.
SEMAPHORES = "/dev/shm/sem."
_tensor = torch.tensor  # before a watch patches it


class Copy:
    """What one copy, made at ``site``, has given away so far, as one value of the lattice, and its copies
    after it. It stands in ``memory`` that all processes have, and only this one writes. ``generations``: of
    copies that there is room for."""

    def __init__(self, what: str, site: Site, lanes: int, memory: memoryview, generations: int) -> None:
        self.what, self.site = what, site
        self.seen: tuple[list[int], int] | None = None  #: lanes, and how many labels there were
        self._width, self._generations = lanes, generations
        own = self.size(lanes, 0)
        self._numbers = memory[: own - LINE].cast("i")  #: bytes of the line; copies of it; each lane plus 1
        self._line, self._room = memory[own - LINE : own], memory[own:]
        self._copies: list[Copy] = []

    @staticmethod
    def size(lanes: int, generations: int) -> int:
        """Bytes of memory that it needs."""
        own = 4 * (lanes + 2) + LINE
        return own + (COPIES * Copy.size(lanes, generations - 1) if generations else 0)

    def tell(self, lanes: list[int], site: Site) -> None:
        """In the copy, before anybody can have the value."""
        line = json.dumps(astuple(site)[:-1]).encode()
        if not self._numbers[0] and len(line) <= LINE:
            self._line[: len(line)] = line
            self._numbers[0] = len(line)
        for place, lane in enumerate(lanes, 2):
            self._numbers[place] = lane + 1

    def told(self) -> tuple[list[int], Site]:
        lanes = [number - 1 for number in self._numbers[2:]]
        size = self._numbers[0]
        return lanes, Site(*json.loads(bytes(self._line[:size]))) if size else self.site

    def copied(self, what: str, site: Site) -> Copy | None:
        """In the copy: it is about to be copied. None: there is no room."""
        if not self._generations or self._numbers[1] == COPIES:
            return None
        copy = self._copy(self._numbers[1], what, site)
        self._numbers[1] += 1
        return copy

    def all(self) -> Iterator[Copy]:
        """It, and all copies of it."""
        for number in range(len(self._copies), self._numbers[1]):
            self._copies.append(self._copy(number, self.what, self.site))
        yield self
        for copy in self._copies:
            yield from copy.all()

    def _copy(self, number: int, what: str, site: Site) -> Copy:
        size = self.size(self._width, self._generations - 1)
        memory = self._room[number * size : (number + 1) * size]
        return Copy(what, site, self._width, memory, self._generations - 1)


class Processes:
    """Copies of the process that opened the watch. ``share``: told of addresses at which others may read and
    write from now on."""

    def __init__(self, tracer: Tracer, share: Callable[[list[Range]], None]) -> None:
        self._tracer, self._share = tracer, share
        self._mine: Copy | None = None  #: where a copy tells what it gives away
        self._copies: list[Copy] = []
        self._own: set[int] = set()  #: addresses of what they tell
        self._known: set[str] = set()  #: other mappings that processes have in common

    def close(self) -> None:
        """The watch ends: what copies have told by now is in its report."""
        if self._tracer.ledger.asked is not None:
            self._ask()
            self._tracer.ledger.asked = None

    def forking(self, original: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(original)
        def wrapper() -> Any:
            begin = self._prepared(f"os.{original.__name__}")
            result = original()
            if 0 in (result if isinstance(result, tuple) else (result,)):
                begin()
            return result

        return wrapper

    def executing(self, original: Callable[..., int]) -> Callable[..., int]:
        """Of ``subprocess``: what it runs in a copy of the process, before another program takes over."""

        @functools.wraps(original)
        def wrapper(*args: Any) -> int:
            first = next(filter(callable, args), None)
            if first is None:
                return original(*args)
            begin = self._prepared("subprocess, preexec_fn")

            def preexec_fn() -> object:
                begin()
                return first()

            return original(*[preexec_fn if a is first else a for a in args])

        return wrapper

    def _prepared(self, what: str) -> Callable[[], None]:
        """A copy is about to be made, and begins with what this returns."""
        copy = self._copied(what)
        with _disable_current_modes():
            on_host = self._tracer.ledger.on_host()

        def begin() -> None:
            on_host()
            self._begin(copy)

        return begin

    def _copied(self, what: str) -> Copy | None:
        """A copy is about to be made. None: it counts as having given everything away."""
        tracer, copy = self._tracer, None
        tracer.release()
        with tracer._lock, torch.inference_mode(False), _disable_current_modes():
            tracer._op_name = what
            if tracer.finder is None or not tracer.finder.searching:
                copy = self._made(f"a copy of the process ({what})", tracer.site("host"))
            if copy is None:
                if tracer.finder is not None:
                    tracer.finder.lost(what)
                self._give_all_away(what)
                return None
            self._open()
            if tracer.alone:
                self._copies.append(copy)
                tracer.ledger.asked = self._ask
            return copy

    def _made(self, what: str, site: Site) -> Copy | None:
        if not self._tracer.alone:
            return None if self._mine is None else self._mine.copied(what, site)
        width = self._tracer.algebra.lattice.width
        memory = mmap(-1, Copy.size(width, GENERATIONS))
        self._own.add(buffered(memory)[0])
        return Copy(what, site, width, memoryview(memory), GENERATIONS)

    def _open(self) -> None:
        """What lies in memory of several processes is open to others."""
        maps = common()
        ranges = [at for name, at in maps.items() if name not in self._known and at[0] not in self._own]
        if ranges:
            self._share(ranges)
        self._known.update(filter(None, maps))  # what has no description is looked through each time

    def _give_all_away(self, what: str) -> None:
        size = self._tracer.ledger.is_scored.numel()
        labels = Cells(torch.arange(size)[:, None], node=LABELS)
        self._tracer.vanished(what, Shadow(label=labels) if size else None)

    # -- in the copy ----------------------------------------------------------------------------------

    def _begin(self, copy: Copy | None) -> None:
        tracer, algebra, ledger = self._tracer, self._tracer.algebra, self._tracer.ledger
        torch.set_num_threads(1)  # those of the process that it was made of are gone, and would be waited for
        whole = tracer._lock.acquire(blocking=False)  # else another thread was in the middle of an operation
        tracer._lock = threading.RLock()
        tracer.recorder = reach = Reach()
        reach.ledger = ledger
        tracer.alone, ledger.asked, self._mine, told = False, None, copy, None

        def rose(mark: Cells) -> None:
            nonlocal told
            before, told = told, algebra.join(told, mark)
            if copy is not None and told is not None and told is not before:
                copy.tell(told.data.flatten().tolist(), tracer.site("host"))

        ledger.rose = rose
        if not whole:
            with _disable_current_modes():
                self._give_all_away("a thread in the middle of an operation")

    # -- in the process that opened the watch ---------------------------------------------------------

    def _ask(self) -> None:
        """Whatever the copies have given away by now has left here."""
        tracer, size = self._tracer, self._tracer.ledger.is_scored.numel()
        for copy in chain.from_iterable(made.all() for made in self._copies):
            lanes, site = copy.told()
            if lanes[0] < 0 or not size or (lanes, size) == copy.seen:
                continue
            copy.seen = lanes, size
            with tracer._lock, torch.inference_mode(False), _disable_current_modes():
                told = self._labels(_tensor(self._here(lanes, size), dtype=torch.int32), site)
                tracer.recorder.escaped(copy.what, Shadow(possible=told), site)

    def _labels(self, data: Tensor, site: Site) -> Cells:
        """One value of the lattice, read from labels at ``site``."""
        label = Cells(data[:1] >> 1, node=LABELS)
        return self._tracer.algebra.make(lambda _: data, label, share=False, data=data, site=site)

    def _here(self, lanes: list[int], size: int) -> list[int]:
        """Labels that a copy has given away, as they are known here: some may have been scored since, and
        those that it found by itself may be any."""
        ledger = self._tracer.ledger
        latest, unscored, *members = (min(lane, 2 * size - 1) for lane in lanes)
        if unscored >= 0:
            upto = (unscored >> 1) + 1
            ledger.was_read[:upto] = True  # nobody saw which of them it read
            left = torch.nonzero(~ledger.is_scored[:upto])
            unscored = 2 * int(left[-1]) + (unscored & 1) if len(left) else -1
        return [latest, unscored, *members]


def common() -> dict[str, Range]:
    """The addresses of memory that processes have in common, semaphores aside, by its description: of all
    memory, where the system does not say."""
    found: dict[str, Range] = {}
    try:
        with open("/proc/self/maps") as file:
            for line in file:
                addresses, rights = line.split(maxsplit=2)[:2]
                if rights[3] == "s" and SEMAPHORES not in line:
                    start, stop = addresses.split("-")
                    found[line] = int(start, 16), int(stop, 16)
    except OSError:
        return {"": (0, 1 << 64)}
    return found
