"""Sorted orders, and those that masks make, through one operation (see ``order``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from causaltrace import rules
from causaltrace.combined import bare, in_slots, is_score
from causaltrace.lattice.cells import Algebra
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
    _rows(step)
    for mask in masks(step.op.name, step.bound):
        shadow = step.shadows.get(id(mask))
        if shadow is not None and shadow.plain:
            chosen = {"support": shadow.support, "possible": shadow.possible or shadow.support}
            order = of_mask(mask, chosen)
            step.tracer.memory.arrange(mask, order)
            step.shadows[id(mask)] = shadow._replace(order=order)


def _rows(step: Step) -> None:
    """Readouts that a mask chose and that meet rows are data: ``counts[hit] / totals[y][hit][:, None]``."""
    if step.kind != rules.POINT or len(step.outs) != 1:
        return
    ledger = step.tracer.ledger
    for t in step.inputs:
        shadow = step.shadows.get(id(t))
        if shadow is None or shadow.order is None or shadow.target is None or is_score(shadow):
            continue
        if t.shape == step.outs[0].shape:
            continue
        order = shadow.order
        given = ledger.value(in_slots(shadow, order)._replace(order=None))
        order = order._replace(own=given.support, hedge=given.possible if order.hedge else None)
        step.shadows[id(t)] = ledger.value(shadow._replace(order=None))._replace(order=order)


def follow(step: Step, after: After, hedged: bool) -> bool:
    """An order through the op; where it cancels out, supports without it. Is it one of these? ``hedged``: on
    both planes."""
    orders = {i: s.order for i, s in step.shadows.items() if s.order is not None}
    if not all(map(_plain, step.shadows.values())):
        return False  # what becomes of readouts is decided element by element
    if hedged and (not orders or any(o.arrangement.chosen is None for o in orders.values())):
        return False  # of sorts only one plane is kept
    bound, originals = step.tracer.represented(step.bound, orders)
    orders |= {t: orders[original] for t, original in originals.items()}
    found, settled = _followed(step, "support", bound, orders)
    hedges, possible = _followed(step, "possible", bound, orders) if hedged else (found, settled)
    for i, cells in enumerate(settled or []):
        after.shadows[i] = after.shadows[i]._replace(support=cells)
        if hedged and possible is not None:
            after.shadows[i] = after.shadows[i]._replace(possible=possible[i])
    kept = step.kind == rules.POINT and after.shadows[0].target is not None
    for i, (order, hedge) in enumerate(zip(found, hedges, strict=True)):
        if order is not None and hedge is not None and after.shadows[i][:2] != (None, None):
            order = order._replace(hedge=hedge.own if hedged else None)
            if kept:
                order = _readouts(step, order, hedged)
            after.shadows[i] = after.shadows[i]._replace(order=order)
    return settled is not None or all(s.order is not None for s in after.shadows)


def _readouts(step: Step, order: Order, hedged: bool) -> Order:
    """Arithmetic on readouts, slot by slot. What else joins in does so after the readout."""
    given = [s for t in step.inputs if (s := step.shadows.get(id(t))) is not None and s.target is not None]
    slots = [in_slots(s, s.order) for s in given]
    join = step.tracer.algebra.join
    hedge = join(*[bare(s, "possible") for s in slots]) if hedged else None
    return order._replace(own=join(*[s.support for s in slots]), hedge=hedge)


def empty(order: Order, ndim: int, algebra: Algebra) -> Shadow:
    """Of a tensor of ``ndim`` dims that has no elements, in an order that a mask made."""
    chosen = order.arrangement.chosen or {}
    support, possible = (algebra.everything(chosen.get(plane), ndim) for plane in ("support", "possible"))
    return Shadow(support, possible, order=order._replace(own=None, hedge=None))


def _plain(shadow: Shadow) -> bool:
    """Is there nothing but supports, an order, and what moves with elements?"""
    rest = shadow._replace(order=None, label=None, target=None, mass=None, post=None, values=None)
    return rest[2:] == UNHEDGED[1:]


def _followed(step: Step, plane: str, bound: dict[str, Any], orders: dict[int, Order]) -> Followed:
    tracer, given = step.tracer, dict(step.shadows)
    for t, order in orders.items():
        given[t] = in_slots(given.get(t, Shadow()), order)
    cells = step.cells(plane, given)
    call = OpCall(step.op.name, bound, cells, tracer.algebra, plane, out=step.out, blind=tracer.blind)
    return through(call, step.op.rule.fn, step.kind == rules.POINT, orders)
