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
    weight = lattice.everything(op.cells("weight"))
    index = op.cells("target")
    per = lattice.join(rows(op), index)
    if weight is not None and per is not None:
        per = lattice.join(per, lattice.reshaped(weight, (1,) * len(per.dims)))
    reduction = op.get("reduction", 1)
    if reduction == 0:
        return [per, None]
    out = lattice.everything(per)
    total = lattice.everything(lattice.join(index, op.cells("weight"))) if _weighs(op) else None
    return [lattice.join(out, total) if reduction == 1 else out, total]


def _weighs(op: OpCall) -> bool:
    """Can the total weight change with the labels? Class ids are never negative, so a negative
    ignore_index cannot be one."""
    return isinstance(op.get("weight"), Tensor) or op.get("ignore_index", -100) >= 0


def nll_loss_backward(op: OpCall) -> Result:
    """grad_in[i, :] = grad_out[i] at the label's column: S(grad_out[i]) | S(label_i); zero stays zero."""
    lattice = op.lattice
    x, grad, target = op.tensor("self"), op.tensor("grad_output"), op.tensor("target")
    dim = class_dim(op)
    own = op.cells("grad_output")
    rest = op.cells("target")
    if x.ndim > 1 and rest is not None:
        rest = lattice.unsqueeze(lattice.keep(rest, target != op.get("ignore_index", -100)) or rest, dim)
        if not bool(_charged(op).any()) and target.device.type == "cpu":
            rest = None
    if grad.ndim and x.ndim > 1:
        grad = grad.unsqueeze(dim)
        own = None if own is None else lattice.unsqueeze(own, dim)
    elif own is not None:
        own = lattice.reshaped(own, (1,) * x.ndim)
    extra = lattice.join(op.cells("weight"), op.cells("total_weight"))
    whole = lattice.everything(extra)
    if whole is not None:
        own = lattice.join(own, lattice.reshaped(whole, (1,) * x.ndim))
    return absorb(op, grad, own, rest)


def _charged(op: OpCall) -> Tensor:
    return op.tensor("target") != op.get("ignore_index", -100)


def mse_like(op: OpCall) -> Result:
    """mse, l1, smooth_l1, huber, bce ...: element-wise, then reduced."""
    lattice = op.lattice
    out = lattice.join(*[op.of(t) for t in op.inputs()])
    return out if op.get("reduction", 1) == 0 else lattice.everything(out)
