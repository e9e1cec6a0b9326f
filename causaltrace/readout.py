"""Which operations read a label's value out of a distribution, and at which positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from causaltrace.distribution import read as read_mass
from causaltrace.lattice.cells import Algebra, Cells
from causaltrace.ledger import Ledger
from causaltrace.mass import pack, proved
from causaltrace.rules.call import known
from causaltrace.rules.loss import charged_at
from causaltrace.schema import Op
from causaltrace.shadow import Memory, Shadow

#: Element-wise integer ops that leave values in range alone.
GUARDS = ("remainder", "clamp", "clamp_min", "clamp_max", "fmod", "maximum", "minimum")

#: Comparisons with one number.
DECIDED = ("eq", "ne", "lt", "le", "gt", "ge")

#: A linear layer and its loss as one op, in its two forms: every position's loss, and their sum or mean.
FUSED, FUSED_ROWS = "_linear_cross_entropy_batch_chunked", "_linear_cross_entropy_batch_chunked_no_reduction"

Read = Callable[[Tensor], Shadow | None]


def is_loss(op: Op) -> bool:
    """Does the op charge rows at ``target``?"""
    return op.name.startswith("nll_loss") or op.name in (FUSED, FUSED_ROWS)


def sums(op: Op, bound: dict[str, Any]) -> bool:
    """Does a loss give one number for all of its positions?"""
    return op.name == FUSED or op.name.startswith("nll_loss") and bound.get("reduction", 1) != 0


def selector(op: Op, bound: dict[str, Any], read: Read, memory: Memory, ledger: Ledger) -> Tensor | None:
    """The tensor of verbatim labels that this op picks classes with, if it is a readout.

    Losses always; ``gather`` from rows; ``logp[i, y]`` with one tensor index per dim; of look-ups in 1-D
    tables those that may charge. A registered loss says what it reads.
    """
    index, x = _classes(op, bound), bound.get("self")
    shadow = None if index is None else read(index)
    if shadow is None or shadow.label is None:
        return None
    looks_up = op.name in ("gather", "index") and isinstance(x, Tensor) and x.ndim == 1
    return None if looks_up and not _charges(bound["self"], shadow.label, memory, ledger) else index


def _classes(op: Op, bound: dict[str, Any]) -> Tensor | None:
    """What picks classes, if these are the labels."""
    index: Any
    if op.rule.reads:
        index = bound.get(op.rule.reads)
        return index if isinstance(index, Tensor) else None
    x = bound.get("self", bound.get("input"))
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
        return None
    if is_loss(op):
        index = bound.get("target")
    elif op.name == "gather":
        index = bound.get("index")
    else:
        indices = list(bound.get("indices") or ())
        if len(indices) != x.ndim or any(t is None or t.dtype == torch.bool for t in indices):
            return None
        index = indices[-1]
    return index if isinstance(index, Tensor) else None


def _charges(table: Tensor, label: Cells, memory: Memory, ledger: Ledger) -> bool:
    """May a 1-D table be a distribution that these labels are charged by? One that no label reached may be at
    a label that is not scored, any other may be none at one that is: then its values say so."""
    constant = memory.read(table) is None
    if ledger.blind or label.data.numel() != 1 or (position := int(label.data)) < 0:
        return not constant
    if constant == bool(ledger.is_scored[position]):
        return not constant
    counts = bool((table == table.round()).all())
    return not counts and bool(proved(read_mass(table, 0, memory), True).any())


def renamed(op: Op, bound: dict[str, Any], shadows: dict[int, Shadow], algebra: Algebra) -> bool:
    """Are rows read at what follows from each label alone, as the bounds of a range coder (``y + 1``) or the
    cluster of a class (``cluster[y]``)? It is taken for the label, which has another name in these rows."""
    x, index = bound.get("self"), _classes(op, bound)
    if op.rule.reads or index is None or not isinstance(x, Tensor) or x.ndim < 2 or sums(op, bound):
        return False
    label = _alone(shadows.get(id(index)), algebra)
    if label is None:
        return False
    shadows[id(index)] = Shadow(label=label)
    for other in bound.get("indices") or ():  # places of the same label belong to its name
        same = None if other is index else _alone(shadows.get(id(other)), algebra)
        if same is not None and torch.equal(same.data, label.data):
            del shadows[id(other)]
    return True


def ahead(shadow: Shadow, ledger: Ledger) -> bool:
    """Are these readouts of labels that come after all that their rows depend on?"""
    if shadow.target is None or shadow.support is None:
        return False
    positions, latest = ledger.positions(shadow.target).data[..., 0], shadow.support.data[..., 0] >> 1
    return bool(((latest < positions) | (positions < 0)).all())


def _alone(shadow: Shadow | None, algebra: Algebra) -> Cells | None:
    """The label that each element depends on, where it is a single one."""
    if shadow is None or shadow.support is None or shadow != Shadow(shadow.support):
        return None
    cells = shadow.support
    while cells.origin is not None and cells.origin.site is None and len(cells.origin.parents) == 1:
        cells = cells.origin.parents[0]  # through views
    if cells.origin is None or len(cells.origin.parents) != 1:
        return None
    if not any(cells is read for read in cells.origin.parents[0].moved.values()):
        return None
    return algebra.move(shadow.support, lambda data: data[..., :1] >> 1)


def targets(op: Op, bound: dict[str, Any], index: Tensor, out: Tensor, read: Read, ledger: Ledger) -> Cells:
    """Readout numbers for the elements that the op reads out; -1 where it reads none."""
    shadow = read(index)
    assert shadow is not None and shadow.label is not None
    label = shadow.label
    if is_loss(op):
        charged = charged_at(index, bound.get("ignore_index", -100))
        label = ledger.algebra.keep(label, charged) or ledger.algebra.move(
            label, lambda d: torch.full_like(d, -1)
        )
        return ledger.new_readouts(label)
    if label.dims != tuple(out.shape):
        shape = tuple(out.shape)
        label = ledger.algebra.move(label, lambda data: data.expand(*shape, 1))
    return ledger.new_readouts(label)


def onehot(
    op: Op, bound: dict[str, Any], outs: list[Tensor], shadows: dict[int, Shadow], ledger: Ledger
) -> Shadow | None:
    """Readouts spelt as ``(logp * one_hot(y)).sum(-1)``: a one-hot row of labels, a row times it, its sum."""
    if len(outs) != 1:
        return None
    x = shadows.get(id(bound.get("self")))
    other = shadows.get(id(bound.get("other")))
    if op.name == "scatter" and x is None and not isinstance(bound.get("src", bound.get("value")), Tensor):
        index, dim = bound["index"], bound["dim"]
        labels = shadows.get(id(index))
        if labels is not None and labels.label is not None and index.ndim and index.shape[dim] == 1:
            return Shadow(labels.support, labels.possible, onehot=labels.label)
    if op.name == "eq" and x is not None and x.label is not None and other is None:
        classes = bound.get("other")
        if isinstance(classes, Tensor) and x.label.dims and x.label.dims[-1] == 1 and outs[0].shape[-1] != 1:
            return Shadow(x.support, x.possible, onehot=x.label)
    if op.name == "mul" and (
        (x is not None and x.onehot is not None) != (other is not None and other.onehot is not None)
    ):
        row, hot = (other, x) if x is not None and x.onehot is not None else (x, other)
        if row is None or row.target is None and row.label is None:
            assert hot is not None
            support = ledger.algebra.join(None if row is None else row.support, hot.support)
            possible = None
            if hot.possible is not None or row is not None and row.possible is not None:
                possible = ledger.algebra.join(support, hot.possible, None if row is None else row.possible)
            values = bound.get("self" if hot is other else "other")
            mass = (
                None
                if ledger.blind or hot.mass is not None
                else _row_mass(hot.onehot, values, outs[0], ledger)
            )
            return Shadow(support, possible, onehot=hot.onehot, mass=mass)
    if op.name == "sum" and x is not None and x.onehot is not None and outs[0].dtype.is_floating_point:
        ndim, dims = bound["self"].ndim, bound.get("dim")
        classes_dim = [d for d in range(ndim) if len(x.onehot.dims) == ndim and x.onehot.dims[d] == 1]
        if dims is not None and len(dims) == 1 and dims[0] % ndim in classes_dim and not bound.get("keepdim"):
            dim, algebra = dims[0] % ndim, ledger.algebra
            label = algebra.squeeze(x.onehot, [dim])
            mass = None
            if x.mass is not None and len(x.mass.dims) == ndim and x.mass.dims[dim] == 1:
                mass = algebra.squeeze(x.mass, [dim])
            if label.dims == tuple(outs[0].shape):
                return Shadow(
                    algebra.reduce(x.support, [dim], keepdim=False),
                    algebra.reduce(x.possible, [dim], keepdim=False),
                    target=ledger.new_readouts(label),
                    mass=mass,
                )
    return None


def _row_mass(hot: Cells | None, values: Any, out: Tensor, ledger: Ledger) -> Cells | None:
    """The mass of the elements of rows that a one-hot row is multiplied with, ``[*rows, 1]``."""
    dim = out.ndim - 1
    if (
        not isinstance(values, Tensor)
        or not values.is_floating_point()
        or hot is None
        or hot.dims[-1:] != (1,)
    ):
        return None
    lanes = read_mass(values if values.shape == out.shape else values.expand(out.shape), dim, ledger.memory)
    return pack(lanes if lanes.ndim == 1 else lanes.unsqueeze(dim), out.ndim)


def matched(
    op: Op, bound: dict[str, Any], outs: list[Tensor], shadows: dict[int, Shadow], ledger: Ledger, point: bool
) -> Shadow | None:
    """What compares each label with a class that was chosen for its position, or is computed from that: a
    row (1 for this class, 0 for the others) read at the label, and no dependence on it beyond a readout."""
    if len(outs) != 1:
        return None
    x, y = bound.get("self"), bound.get("other")
    given = list(shadows.values())
    if op.name in ("eq", "ne") and isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape:
        if len(given) == 2:
            last = _latest(given)
            given = [s if s.label is None or s is last else ledger.value(s) for s in given]
        labels = [s for s in given if s.label is not None]
        if len(labels) != 1 or not all(s.plain for s in given if s.label is None):
            return None
        match = labels[0].label
    else:
        found = [s for s in given if s.match is not None]
        if not found or not (point or op.name in ("where", "masked_fill")):
            return None
        match = found[0].match
        if not all(s.match is match if s.match is not None else s.plain for s in given):
            return None
    if match is None or match.dims != tuple(outs[0].shape):
        return None
    possible = None
    if any(s.possible is not None for s in given):
        possible = ledger.algebra.join(*[s.possible or s.support for s in given])
    return Shadow(ledger.algebra.join(*[s.support for s in given]), possible, match=match)


def _latest(given: list[Shadow]) -> Shadow | None:
    """Of two tensors of labels the one whose labels all come later: the other one chooses a class for it."""
    first, last = sorted(given, key=lambda s: -1 if s.label is None else int(s.label.data.max()))[-2:]
    if first.label is None:
        return last
    return last if last.label is not None and bool((first.label.data < last.label.data).all()) else None


def _in_range(op: Op, bound: dict[str, Any], shadow: Shadow) -> Shadow | None:
    """Labels that are not known are taken for class ids: no guard against negative ones changes them."""
    low, high = bound.get("min"), bound.get("max")
    guards = op.name in ("clamp", "clamp_min") and high is None and isinstance(low, int) and low <= 0
    return Shadow(shadow.support, shadow.possible, label=shadow.label) if guards else None


def unchanged(
    op: Op, bound: dict[str, Any], outs: list[Tensor], shadows: dict[int, Shadow], ledger: Ledger
) -> Shadow | None:
    """Labels that a range guard (clamp, remainder) left as they were are still verbatim labels."""
    x = bound.get("self")
    shadow = shadows.get(id(x))
    if (
        op.name not in GUARDS
        or not isinstance(x, Tensor)
        or shadow is None
        or shadow.label is None
        or len(shadows) != 1
    ):
        return None
    if len(outs) != 1 or outs[0] is x or outs[0].shape != x.shape or outs[0].dtype.is_floating_point:
        return None
    if not known(x):
        return _in_range(op, bound, shadow)
    same, algebra = outs[0] == x, ledger.algebra
    if op.name in ("remainder", "fmod") and not bool(same.all()):  # a part of each label (``y % 16``)
        return None
    changed = algebra.keep(ledger.read(shadow.label), ~same)
    possible = None if shadow.possible is None else algebra.join(shadow.possible, changed)
    return Shadow(algebra.join(shadow.support, changed), possible, label=algebra.keep(shadow.label, same))


def decided(op: Op, bound: dict[str, Any], shadows: dict[int, Shadow]) -> Shadow | None:
    """A comparison that comes out the same for all labels, which are never negative (``y != -100``)."""
    x, limit = bound.get("self"), bound.get("other")
    shadow = shadows.get(id(x))
    if op.name not in DECIDED or not isinstance(x, Tensor) or shadow is None or shadow.label is None:
        return None
    if isinstance(limit, Tensor) and limit.numel() == 1 and id(limit) not in shadows and known(limit):
        limit = limit.item()
    if not isinstance(limit, (int, float)) or limit >= 0 and (limit > 0 or op.name not in ("lt", "ge")):
        return None
    return Shadow(shadow.support, shadow.possible)
