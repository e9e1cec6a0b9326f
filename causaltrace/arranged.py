"""Sorted orders, and those that masks make, through one operation (see ``order``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from causaltrace import rules
from causaltrace.lattice.cells import Cells
from causaltrace.order import Order
from causaltrace.rules.call import OpCall
from causaltrace.rules.ordered import Followed, masks, of_mask, through
from causaltrace.shadow import UNHEDGED, Shadow

if TYPE_CHECKING:
    from causaltrace.after import After
    from causaltrace.step import Step


def by_masks(step: Step) -> None:
    """A mask has an order of what it chooses, the same for as long as nobody writes to it."""
    if step.backward:
        return
    for mask in masks(step.op.name, step.bound):
        shadow = step.shadows.get(id(mask))
        if shadow is not None and shadow.order is None and _bare(shadow):
            chosen = {"support": shadow.support, "possible": shadow.possible or shadow.support}
            order = of_mask(mask, chosen)
            step.tracer.memory.arrange(mask, order)
            step.shadows[id(mask)] = shadow._replace(order=order)


def follow(step: Step, after: After, hedged: bool) -> None:
    """An order through the op; where it cancels out, supports without it. ``hedged``: on both planes."""
    orders = {i: s.order for i, s in step.shadows.items() if s.order is not None}
    if not all(map(_bare, step.shadows.values())):
        return  # labels and readouts move on planes of their own
    if hedged and (not orders or any(o.arrangement.chosen is None for o in orders.values())):
        return  # of sorts only one plane is kept
    bound, originals = step.tracer.represented(step.bound, orders)
    orders |= {t: orders[original] for t, original in originals.items()}
    found, settled = _followed(step, "support", bound, orders)
    hedges, possible = _followed(step, "possible", bound, orders) if hedged else (found, settled)
    for i, cells in enumerate(settled or []):
        after.shadows[i] = after.shadows[i]._replace(support=cells)
        if hedged and possible is not None:
            after.shadows[i] = after.shadows[i]._replace(possible=possible[i])
    for i, (order, hedge) in enumerate(zip(found, hedges, strict=True)):
        if order is not None and hedge is not None and after.shadows[i][:2] != (None, None):
            order = order._replace(hedge=hedge.own if hedged else None)
            after.shadows[i] = after.shadows[i]._replace(order=order)


def _bare(shadow: Shadow) -> bool:
    """Is there nothing but supports, and an order?"""
    return shadow._replace(order=None)[2:] == UNHEDGED[1:]


def _followed(step: Step, plane: str, bound: dict[str, Any], orders: dict[int, Order]) -> Followed:
    bare, tracer = step.bare(plane), step.tracer

    def own(t: Tensor) -> Cells | None:
        order = orders.get(id(t))
        return bare(t) if order is None else order.given(plane)

    call = OpCall(step.op.name, bound, own, tracer.algebra, plane, out=step.out, blind=tracer.blind)
    return through(call, step.op.rule.fn, step.kind == rules.POINT, orders)
