"""How many elements a mask chose, as long as nobody has asked.

``x[mask]`` has as many elements as the mask has true ones. That number is made of labels, and Python has it
as soon as it asks for a size. Back-off under a mask never does: ``rows[hit] = counts[hit] / totals[hit]``. So
what has such a size is remembered by who owns its memory, for as long as that lives. The number counts as
told when anything has to do with it but an operation that keeps the size, or one that puts all elements back
where the mask says.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from causaltrace._compat import storage_of
from causaltrace.schema import Op, tensors
from causaltrace.shadow import Shadow
from causaltrace.site import Site

#: What tells, the shadow of the mask, and where it chose.
Held = tuple[str, Shadow, Site]


class Counts:
    """True while something has a size that nobody has asked for. ``told`` hears of it when somebody does."""

    def __init__(self, told: Callable[[Iterable[Held]], None]) -> None:
        self._told = told
        self._owners: dict[int, tuple[weakref.ref[Any], tuple[Held, ...]]] = {}
        self._none: dict[int, Shadow] = {}  #: of what has no elements, and so none in memory
        self._now = threading.local()  #: of the operation that runs
        #: Makes all who ask for sizes tell; None: nothing can.
        self.begin: Callable[[], None] | None = None

    def __bool__(self) -> bool:
        return bool(self._owners)

    def met(self, owners: Iterable[object]) -> tuple[Held, ...]:
        """What the sizes of what lies in this memory tell of."""
        found = (self._owners.get(id(owner)) for owner in owners)
        return tuple(held for entry in found if entry is not None for held in entry[1])

    def hold(self, owners: Iterable[Any], held: Iterable[Held] = ()) -> None:
        """What lies in the memory of ``owners`` has a size that tells of ``held``, and of what the operation
        that runs was given."""
        held = tuple({id(h[1]): h for h in (*held, *getattr(self._now, "given", ()))}.values())
        if not held:
            return
        if self.begin is None:
            return self._told(held)
        self.begin()
        for owner in owners:
            if owner is not None:
                self._owners[id(owner)] = weakref.ref(owner, self._gone(id(owner))), held

    def _gone(self, key: int) -> Callable[[weakref.ref[Any]], None]:
        def gone(ref: weakref.ref[Any]) -> None:
            if key in self._owners and self._owners[key][0] is ref:
                del self._owners[key]
                self._none.pop(key, None)

        return gone

    def none(self, owner: object, shadow: Shadow) -> None:
        """What lies there has no elements, and an order."""
        if id(owner) in self._owners:
            self._none[id(owner)] = shadow

    def shadow(self, owner: object) -> Shadow | None:
        return self._none.get(id(owner))

    def tell(self) -> None:
        """Somebody may know all of them."""
        held = {id(h[1]): h for _, all_of_it in list(self._owners.values()) for h in all_of_it}
        self._owners.clear()
        self._none.clear()
        self._told(held.values())

    def asked(self, owner: object) -> None:
        """Something that is no operation gets what lies there. None: nobody knows where that is."""
        if self._owners and (owner is None or id(owner) in self._owners):
            self.tell()

    def cancelled(self) -> None:
        """The operation that runs puts elements back where their mask says."""
        self._now.cancelled = True

    def follow(
        self,
        given: tuple[Held, ...],
        run: Callable[[], Any],
        made: Callable[[Any], list[tuple[Any, int]] | None],
    ) -> Any:
        """``run`` what was given such sizes. ``made``: the owners of its results, and how many elements they
        have; None: others learn of the size."""
        before = getattr(self._now, "given", ())
        self._now.given, self._now.cancelled = given, False
        try:
            out = run()
            outs = made(out)
            kept = self._now.cancelled or bool(outs)
            for owner, size in outs or ():
                if not size and id(owner) not in self._owners:
                    self.hold([owner])
                kept = kept and (self._now.cancelled or id(owner) in self._owners)
            if not kept:
                self.tell()
            return out
        except Exception:
            self.tell()
            raise
        finally:
            self._now.given = before

    def through(self, op: Op, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``run`` an operation of torch's."""
        owners = [storage(t) for t in tensors((*args, *kwargs.values()))]
        given = self.met(owners)
        if given:
            return self.follow(given, run, lambda out: _sizes(op, out))
        # a composite may have taken the size of one for another: ``expand_as``
        if not owners or op.sized or None in owners:
            self.tell()
        return run()


def storage(t: Tensor) -> object:
    """What owns the memory of ``t``; None if nobody does."""
    try:
        return storage_of(t)
    except (NotImplementedError, RuntimeError):
        return None


def _sizes(op: Op, out: Any) -> list[tuple[Any, int]] | None:
    """The memory of the results, with how many elements; None: there are as many of them as elements, or as
    many dims as it takes."""
    outs = tensors(out)
    if op.view and (not isinstance(out, Tensor) or op.name == "squeeze"):
        return None
    return [(storage(t), t.numel()) for t in outs]
