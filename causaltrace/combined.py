"""What becomes of readouts between the readout and the score: arithmetic and mixtures.

A result is a readout itself as long as each of its elements scores one position. What else joins in does so
after the readout: it changes the score, not the distribution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from causaltrace import mass
from causaltrace.lattice.cells import Cells
from causaltrace.order import Order
from causaltrace.rules.call import live
from causaltrace.shadow import Shadow

if TYPE_CHECKING:
    from causaltrace.step import Step

#: Operations that choose between their operands: between two readouts, after the label is known.
CHOOSING = frozenset({"minimum", "maximum", "fmin", "fmax"})
#: Operations that may mix several readouts of one label into one.
MIXING = frozenset({"sum", "mean", "logsumexp"})


def matches(step: Step, shadow: Shadow | None, target: Cells | None) -> bool:
    """Is it a match at the labels of these readouts?"""
    if shadow is None or shadow.match is None or target is None:
        return False
    mine, theirs = shadow.match.data, step.tracer.ledger.positions(target).data
    return mine.shape == theirs.shape and bool(((mine == theirs) | (theirs < 0)).all())


def point(step: Step, carriers: list[tuple[Tensor, Shadow]]) -> Shadow | None:
    """An element-wise op on readouts gives readouts, as long as each element scores one position.

    What else joins in does so after the readout: it changes the score, not the distribution. A readout that
    meets many elements (``counts / totals[y][:, None]``) is one in each of them."""
    if len(step.outs) != 1 or not step.outs[0].dtype.is_floating_point:
        return None
    carriers, hints = _latest(step, carriers)
    out, algebra, ledger = step.outs[0], step.tracer.algebra, step.tracer.ledger
    target = carriers[0][1].target
    spread = any(t.shape != out.shape for t, _ in carriers)
    for _, shadow in carriers:
        other = shadow.target
        assert other is not None and target is not None
        if other is not target:
            a, b = ledger.positions(target).data, ledger.positions(other).data
            if not bool(((a == b) | (a < 0) | (b < 0)).all()):
                return None
            target = algebra.join(target, other)
    mine = {id(t) for t, _ in carriers}
    rest = [t for t in step.inputs if id(t) not in mine]
    shadows = [step.shadows.get(id(t)) for t in rest]
    if hints:  # nothing shows what they do to the sum over all classes
        carriers = [(t, s._replace(mass=None)) for t, s in carriers]
    matching = [matches(step, s, target) for s in shadows]
    shadows = [
        s._replace(match=None) if s is not None and m else s for s, m in zip(shadows, matching, strict=True)
    ]
    # the order that the readouts are in is part of their support
    joining = [s and in_slots(s, _same(s.order, carriers[0][1].order)) for s in shadows]
    post = algebra.join(*[s.post for _, s in carriers], *[ledger.depends(s) for s in joining])
    if step.op.name in CHOOSING and len(carriers) > 1 and target is not None:
        post = algebra.join(post, ledger.read(ledger.positions(target)))
    masses = None if any(matching) or spread else _through(step, carriers)
    if not all(is_score(s) for _, s in carriers):  # data, unless arithmetic makes a charge of it
        masses = masses or mass.pack(mass.unknown(out.device), out.ndim)
    elif spread:  # a part of a charge is charged to the same account
        masses = carriers[0][1].mass
    support = algebra.join(*[s.support for _, s in carriers])
    possible = None
    if any(s.possible is not None for s in step.shadows.values()):
        possible = algebra.join(
            *[bare(s, "possible") for _, s in carriers],
            *[ledger.depends(s, "possible") for s in shadows],
        )
    if step.op.name == "mul":  # a weight of exactly 0 takes the position out of the score
        weights = [w for w in (step.bound["self"], step.bound["other"]) if id(w) not in mine]
        if any(not isinstance(w, Tensor) and w == 0 for w in weights):
            target = support = possible = None
        for weight in rest:
            kept = live(weight, tuple(range(weight.ndim))).expand(out.shape)
            target, support, possible = (algebra.keep(c, kept) for c in (target, support, possible))
    return Shadow(support, possible, target=target, post=post, mass=masses)


def in_slots(shadow: Shadow, order: Order | None) -> Shadow:
    """With what elements depend on besides their order."""
    return shadow if order is None else shadow._replace(support=order.own, possible=order.hedge)


def _same(order: Order | None, other: Order | None) -> Order | None:
    """``order``, where the other is one of the same arrangement."""
    same = order is not None and other is not None and order.arrangement is other.arrangement
    return order if same else None


def spreads(step: Step, carriers: list[tuple[Tensor, Shadow]]) -> bool:
    """Are these readouts no charges, each of which goes to several elements? So do data, like totals that
    counts are divided by."""
    size = max((t.numel() for t in step.outs), default=0)
    if size < 2 or step.tracer.blind or any(is_score(s) for _, s in carriers):
        return False
    return all(size > len(s.target.data.unique()) for _, s in carriers if s.target is not None)


def _latest(
    step: Step, carriers: list[tuple[Tensor, Shadow]]
) -> tuple[list[tuple[Tensor, Shadow]], list[tuple[Tensor, Shadow]]]:
    """The readouts of the latest labels, and those of earlier ones that only weigh them: that are the
    probabilities of nothing, as in ``logp[y] - log(1 + p[hint])`` for a hint that is an earlier label."""
    ledger, out = step.tracer.ledger, step.outs[0]
    if len(carriers) < 2 or step.tracer.blind or any(t.shape != out.shape for t, _ in carriers):
        return carriers, []
    where = [ledger.positions(s.target).data.expand(*out.shape, -1) for _, s in carriers if s.target]
    top = max(range(len(where)), key=lambda i: int(where[i].max()))
    hints = [
        c
        for c, positions in zip(carriers, where, strict=True)
        if bool((positions < where[top]).all()) and not is_score(c[1])
    ]
    return [c for c in carriers if all(c is not h for h in hints)], hints


def is_score(shadow: Shadow) -> bool:
    """Is it the score of a distribution already?"""
    return shadow.mass is None or bool(mass.proved(mass.unpack(shadow.mass.data), False).all())


def _through(step: Step, carriers: list[tuple[Tensor, Shadow]]) -> Cells | None:
    """The mass of an element-wise result; None: unknown."""
    if any(s.mass is None for _, s in carriers):
        return None
    lanes = {id(t): mass.unpack(s.mass.data) for t, s in carriers if s.mass is not None}
    found = mass.through(step.op.name, step.bound, lanes, step.outs[0])
    return None if found is None else mass.pack(found, step.outs[0].ndim)


def mixed(step: Step, carriers: list[tuple[Tensor, Shadow]]) -> Shadow | None:
    """Several readouts of each label, summed: a mixture is a readout like any other."""
    x, shadow = carriers[0]
    dims = step.bound.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    if (
        step.op.name not in MIXING
        or not dims
        or len(dims) != 1
        or shadow.target is None
        or len(step.shadows) > 1
    ):
        return None
    dim, algebra, ledger = dims[0] % max(1, x.ndim), step.tracer.algebra, step.tracer.ledger
    where = ledger.positions(shadow.target).data[..., 0]
    if where.ndim != x.ndim or x.shape[dim] < 2 or bool((where != where.narrow(dim, 0, 1)).any()):
        return None
    keepdim = bool(step.bound.get("keepdim"))
    support, possible, target, post = (
        algebra.reduce(cells, [dim], keepdim)
        for cells in (shadow.support, shadow.possible, shadow.target, shadow.post)
    )
    masses = shadow.mass
    if masses is not None and where.shape[dim] == 1:  # parts of one readout
        masses = masses if keepdim or len(masses.dims) < x.ndim else algebra.squeeze(masses, [dim])
    elif masses is not None:
        lanes = mass.unpack(masses.data)
        lanes = lanes.expand(*[x.shape[d] if d == dim else n for d, n in enumerate(lanes.shape[:-1])], -1)
        found = mass.mixed(step.op.name, lanes, dim)
        found = found if found is None or not keepdim else found.unsqueeze(dim)
        masses = None if found is None else mass.pack(found, step.outs[0].ndim)
    return Shadow(support, possible, target=target, post=post, mass=masses)


def bare(shadow: Shadow, plane: str) -> Cells | None:
    """The support without labels and readouts."""
    return shadow.possible if plane == "possible" and shadow.possible is not None else shadow.support
