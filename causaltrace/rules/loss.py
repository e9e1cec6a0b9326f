"""Losses at a label: the readouts. S(out) = S(row); the label itself is the target, not a cause."""

from __future__ import annotations

from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, absorb


def class_dim(op: OpCall) -> int:
    return 1 if op.tensor("self").ndim > 1 else 0


def rows(op: OpCall) -> Cells | None:
    """S(row) of every position: union over the class dim, less positions that are ignored."""
    x = op.tensor("self")
    row = op.lattice.reduce(op.cells("self"), [class_dim(op)], keepdim=False)
    if x.ndim == 1:
        return row
    return op.lattice.keep(row, op.tensor("target") != op.get("ignore_index", -100))


def nll_loss(op: OpCall) -> Result:
    """(out, total_weight). ``op.selects``: the target is a verbatim label, so out is a readout and only
    what else the index depends on joins in; otherwise the index counts like any other."""
    lattice = op.lattice
    target = op.tensor("target")
    weight = lattice.everything(op.cells("weight"))
    index = op.cells("target")
    per = lattice.join(rows(op), index, lattice.everything(weight, target.ndim))
    reduction = op.get("reduction", 1)
    if reduction == 0:
        return [per, None]
    counted = index if _weighs(op) else op.bare(target)  # who is ignored may be computed from labels
    total = lattice.join(lattice.everything(counted), weight)
    return [lattice.join(lattice.everything(per), total if reduction == 1 else None), total]


def _weighs(op: OpCall) -> bool:
    """Can the total weight change with verbatim labels? Class ids are never negative, so a negative
    ignore_index cannot be one."""
    return isinstance(op.get("weight"), Tensor) or op.get("ignore_index", -100) >= 0


def nll_loss_backward(op: OpCall) -> Result:
    """grad_in[i, :] = grad_out[i] at the label's column: S(grad_out[i]) | S(label_i) | S(weights); a zero
    gradient stays zero. An ignored row is 0 because of its label alone."""
    lattice = op.lattice
    x, grad = op.tensor("self"), op.tensor("grad_output")
    dim = class_dim(op)
    own, target = op.cells("grad_output"), op.cells("target")
    charged = op.tensor("target") != op.get("ignore_index", -100)
    if x.ndim > 1:
        charged = charged.unsqueeze(dim)
        target = None if target is None else lattice.unsqueeze(target, dim)
        if grad.ndim:
            grad = grad.unsqueeze(dim)
            own = None if own is None else lattice.unsqueeze(own, dim)
    rest = lattice.join(
        target, lattice.everything(lattice.join(op.cells("weight"), op.cells("total_weight")), x.ndim)
    )
    read = absorb(op, grad, None if own is None else lattice.aligned(own, x.ndim), rest)
    kept = lattice.keep(read, charged)
    return kept if kept is read else lattice.join(kept, lattice.keep(target, ~charged))


def mse_like(op: OpCall) -> Result:
    """mse, l1, smooth_l1, huber, bce ...: element-wise, then reduced."""
    lattice = op.lattice
    out = lattice.join(*[op.of(t) for t in op.inputs()])
    return out if op.get("reduction", 1) == 0 else lattice.everything(out)
