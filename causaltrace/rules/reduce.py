"""Reductions and running (cumulative) operations."""

from __future__ import annotations

from torch import Tensor

from causaltrace.rules.call import OpCall, Result, absorb


def _kept(op: OpCall) -> bool:
    return bool(op.get("keepdim", False))


def over(op: OpCall) -> Result:
    """out = union over the reduced dims."""
    x = op.tensor("self")
    dims = op.dims() if x.ndim else []
    return op.lattice.reduce(op.cells("self"), dims, keepdim=_kept(op))


def several(op: OpCall) -> Result:
    """As ``over``, for ops that return several results (max with indices, var_mean, aminmax, topk)."""
    one = over(op)
    assert not isinstance(one, list)
    return [one] * len(op.out)


def one_dim(op: OpCall) -> Result:
    """Reductions along one dim that keep its place (softmax, sort): out = union over that dim, everywhere."""
    x = op.tensor("self")
    c = op.cells("self")
    out = op.lattice.reduce(c, [op.dim(-1)] if x.ndim else [])
    return [out] * len(op.out) if isinstance(op.out, (tuple, list)) else out


def softmax_backward(op: OpCall) -> Result:
    """grad_in = f(row of grad, row of output); a row of zero gradient stays zero."""
    grad, dim = op.tensor("grad_output"), op.dim(name="dim", ndim=op.tensor("grad_output").ndim)
    own = op.lattice.reduce(op.cells("grad_output"), [dim])
    rest = op.lattice.reduce(op.cells("output"), [dim])
    return absorb(op, grad, own, rest)


def running(op: OpCall) -> Result:
    """out[i] = union of in[..i]."""
    x = op.tensor("self")
    c = op.lattice.running(op.cells("self"), op.dim()) if x.ndim else op.cells("self")
    return [c] * len(op.out) if isinstance(op.out, (tuple, list)) else c


def whole(op: OpCall) -> Result:
    """Every output element depends on everything."""
    inputs = op.lattice.join(*[op.lattice.everything(op.of(t)) for t in op.inputs()])
    if inputs is None:
        return None
    outs = op.out if isinstance(op.out, (tuple, list)) else [op.out]
    cells = [op.lattice.reshaped(inputs, (1,) * o.ndim) if isinstance(o, Tensor) else None for o in outs]
    return cells if isinstance(op.out, (tuple, list)) else cells[0]


def norm_each(op: OpCall) -> Result:
    """_foreach_norm: one number a tensor."""
    return op.lattice.everything(op.cells("self"))
