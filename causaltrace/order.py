"""Elements in an order that values decided.

A sort by expert puts tokens into slots. Which token a slot holds depends on everything that was sorted, and
so does every element of what is then read in that order. But what is computed alike in every slot still
belongs to the token in it, and once the inverse permutation has put every token back in its place, the order
has cancelled out. So it is where a mask's places are read and written back, but for which places those are.

An ``Order`` stands beside the support of a tensor until then: ``own`` is what its elements depend on *given
which item is in their slot*. The claim that every operation must keep: in any run of the same program path,
the elements in the slot of item i have the same values whenever the labels in ``own`` of the elements in the
slot of item i have theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from causaltrace.geometry import Geometry, nested
from causaltrace.lattice.cells import Cells

#: What a tensor is, beside elements of items in their slots.
ITEMS = "items"  #: nothing more
PERMUTATION = "permutation"  #: slot -> item, the result of a sort
INVERSE = "inverse"  #: item -> slot
KEYS = "keys"  #: the sorted integers, ascending
COUNTS = "counts"  #: how many keys are 0, 1, 2, ...
ENDS = "ends"  #: the slots before which the keys 0, 1, 2, ... end
PLACES = "places"  #: slot -> the coordinates of its item in the mask
COLUMN = "column"  #: slot -> one of them, or a constant more
MASK = "mask"  #: the mask itself: its true elements are the items, in order


class Arrangement:
    """How items got into slots. A sort: ``keys`` is what each slot's key depends on, given its item. The
    places of a mask: ``chosen`` is what the mask, of shape ``sizes``, depends on, on each plane."""

    __slots__ = ("chosen", "keys", "size", "sizes")

    def __init__(
        self,
        size: int,
        keys: Cells | None = None,
        chosen: Mapping[str, Cells | None] | None = None,
        sizes: tuple[int, ...] = (),
    ) -> None:
        self.size, self.keys, self.chosen, self.sizes = size, keys, chosen, sizes


class Order(NamedTuple):
    """``dim`` holds the slots of the arrangement; ``own`` is what each element depends on besides the order.
    Of an inverse, counts, ends and masks no dim holds slots. ``column``: which coordinate a column of places
    is; its elements are ``shift`` more. ``hedge``: ``own`` on the plane of what is possible (None: the same).
    """

    arrangement: Arrangement
    role: str
    dim: int
    own: Cells | None
    column: int = 0
    hedge: Cells | None = None
    shift: int = 0

    def planes(self, fn: Callable[[Cells], Cells | None]) -> Order:
        """``fn`` on both."""
        own, hedge = (None if c is None else fn(c) for c in (self.own, self.hedge))
        return self._replace(own=own, hedge=hedge)


def seen_through(order: Order, base: Geometry, view: Geometry) -> Order | None:
    """The order of a view of ``base`` (with ``own`` as it was), if all slots are on one of its dims."""
    alike = _alike(base, view)
    if order.role in (INVERSE, COUNTS, ENDS, MASK):
        return order if alike else None
    dim = _slots(order.dim, base, view)
    if dim is None:
        return None
    full = [d for d, n in enumerate(view.sizes) if n != 1 and view.strides[d]]
    if order.role == PLACES and full in ([], [dim]):
        column = (view.offset - base.offset) // max(1, base.strides[1])
        return order._replace(role=COLUMN, dim=dim, column=column)
    return order._replace(dim=dim) if alike else order._replace(role=ITEMS, dim=dim)


def _slots(along: int, base: Geometry, view: Geometry) -> int | None:
    """The dim of ``view`` that is the dim ``along`` of ``base``, all of it and nothing but it; else None."""
    if view.itemsize != base.itemsize or not nested(base):
        return None
    size, stride = base.sizes[along], base.strides[along]
    found = [d for d, n in enumerate(view.sizes) if n == size and (view.strides[d] == stride or n < 2)]
    if size < 2:  # a single slot, or none, which may be on any dim
        return found[0] if found else 0 if view.sizes else None
    if len(found) != 1:
        return None
    first = view.offset - base.offset
    inside = first % stride if stride else 0
    for d, (n, step) in enumerate(zip(view.sizes, view.strides, strict=True)):
        if d == found[0] or n == 1:
            continue
        if step < stride:
            inside += (n - 1) * step
        elif step % (stride * size):
            return None
    if first < 0 or inside >= stride or first // stride % size:  # it does not start in the first slot
        return None
    return found[0]


def _alike(base: Geometry, view: Geometry) -> bool:
    """The same elements, but for dims of size 1 and broadcast ones."""
    if (base.offset, base.itemsize) != (view.offset, view.itemsize):
        return False
    own, seen = (
        [(n, s) for n, s in zip(g.sizes, g.strides, strict=True) if n != 1 and s] for g in (base, view)
    )
    return own == seen
