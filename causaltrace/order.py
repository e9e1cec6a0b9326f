"""Elements in an order that values decided.

A sort by expert puts tokens into slots. Which token a slot holds depends on everything that was sorted, and
so does every element of what is then read in that order. But what is computed alike in every slot still
belongs to the token in it, and once the inverse permutation has put every token back in its place, the order
has cancelled out. An ``Order`` stands beside the support of a tensor until then: ``own`` is what its elements
depend on *given which item is in their slot*. The claim that every operation must keep: in any run of the
same program path, the elements in the slot of item i have the same values whenever the labels in ``own`` of
the elements in the slot of item i have theirs.
"""

from __future__ import annotations

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


class Permutation:
    """One sort: as many items as slots. ``keys``: what each slot's key depends on, given its item."""

    __slots__ = ("keys", "size")

    def __init__(self, size: int, keys: Cells | None) -> None:
        self.size, self.keys = size, keys


class Order(NamedTuple):
    """``dim`` holds the slots of the permutation; ``own`` is what each element depends on besides the order.
    Of an inverse, counts and ends no dim holds slots."""

    permutation: Permutation
    role: str
    dim: int
    own: Cells | None


def seen_through(order: Order, base: Geometry, view: Geometry) -> int | None:
    """The dim of ``view`` that holds the slots of ``base``, all of them and nothing but them; else None."""
    if order.role not in (ITEMS, PERMUTATION, KEYS):
        return order.dim if _alike(base, view) else None
    if order.role != ITEMS and not _alike(base, view):
        return None
    if view.itemsize != base.itemsize or not nested(base):
        return None
    size, stride = base.sizes[order.dim], base.strides[order.dim]
    found = [d for d, n in enumerate(view.sizes) if n == size and view.strides[d] == stride]
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
