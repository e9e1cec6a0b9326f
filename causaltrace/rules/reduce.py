"""Reductions and running (cumulative) operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from causaltrace.rules.call import OpCall, Result, absorb, live, varied


def _kept(op: OpCall) -> bool:
    return bool(op.get("keepdim", False))


def _single(x: Tensor, dims: Sequence[int]) -> bool:
    """Is there but one element to choose from?"""
    return all(x.shape[d] == 1 for d in dims)


def over(op: OpCall) -> Result:
    """out = union over the reduced dims."""
    x = op.tensor("self")
    dims = op.dims() if x.ndim else []
    return op.lattice.reduce(op.cells("self"), dims, keepdim=_kept(op))


def folded(op: OpCall) -> Result:
    """As ``over``, from a first value."""
    one = over(op)
    assert not isinstance(one, list)
    return op.lattice.join(one, op.lattice.everything(op.cells("initial")))


def where(op: OpCall) -> Result:
    """As ``over``, for the place of an element (argmax): nothing where there is one place only."""
    x = op.tensor("self")
    return None if _single(x, op.dims() if x.ndim else []) else over(op)


def trace(op: OpCall) -> Result:
    """out = union over the diagonal."""
    x, c = op.tensor("self"), op.cells("self")
    if c is None or c.uniform:
        return op.lattice.everything(c)
    return op.lattice.everything(op.lattice.keep(c, torch.ones_like(x, dtype=torch.bool).tril().triu()))


def several(op: OpCall) -> Result:
    """As ``over``, for ops that return several results (var_mean, aminmax)."""
    one = over(op)
    assert not isinstance(one, list)
    return [one] * len(op.out) if isinstance(op.out, (tuple, list)) else one


def chosen(op: OpCall) -> Result:
    """An element and its place (max, median); without a dim the element only; of two tensors (max(a, b), as
    it arrives in inference mode) element by element."""
    if "other" in op.args:
        return op.lattice.join(op.cells("self"), op.cells("other"))
    if not isinstance(op.out, (tuple, list)):
        return over(op)
    x = op.tensor("self")
    dim = [op.dim(-1)] if x.ndim else []  # kthvalue and mode need not be told
    one = op.lattice.reduce(op.cells("self"), dim, keepdim=_kept(op))
    return [one, None if _single(x, dim) else one]


def one_dim(op: OpCall) -> Result:
    """Reductions along one dim that keep its place (softmax): out = union over that dim, everywhere."""
    return op.lattice.reduce(op.cells("self"), [op.dim(-1)] if op.tensor("self").ndim else [])


def ordered(op: OpCall) -> Result:
    """Elements in another order, and their places (sort, topk): union over the dim, everywhere."""
    x = op.tensor("self")
    dim = [op.dim(-1)] if x.ndim else []
    out = op.lattice.reduce(op.cells("self"), dim)
    places = None if _single(x, dim) else out
    if isinstance(op.out, (tuple, list)):
        return [out, places]
    return places if op.name == "argsort" else out


def softmax_backward(op: OpCall) -> Result:
    """grad_in = out * (grad - sum(grad * out)), for log_softmax grad - exp(out) * sum(grad): S(row of grad),
    S(row of output). A row of zero gradient stays zero. Where a softmax's output is exactly 0 (masked keys)
    its gradient is not read, and the result is 0."""
    grad, output, lattice = op.tensor("grad_output"), op.tensor("output"), op.lattice
    own, out = op.cells("grad_output"), op.cells("output")
    if not grad.ndim:
        return lattice.join(own, out)
    dim = op.dim(ndim=grad.ndim)
    rest = lattice.reduce(out, [dim])
    if op.name == "_softmax_backward_data":
        seen = live(output, tuple(varied(own, ndim=grad.ndim)))
        used = live(grad, tuple(varied(own, rest, ndim=grad.ndim) - {dim}))
        # a row without gradient is vouched for by its gradient alone, any other by S(output)
        return lattice.join(lattice.reduce(lattice.keep(own, seen | ~used), [dim]), lattice.keep(rest, used))
    return absorb(op, grad, lattice.reduce(own, [dim]), rest)


def running(op: OpCall) -> Result:
    """out[i] = union of in[..i]; the place of the first maximum is fixed."""
    x = op.tensor("self")
    c = op.lattice.running(op.cells("self"), op.dim()) if x.ndim else op.cells("self")
    if not isinstance(op.out, (tuple, list)):
        return c
    if _single(x, [op.dim()] if x.ndim else []):
        return [c, None]
    if c is None or c.dims[op.dim()] == 1:
        return [c, c]
    later = torch.arange(x.shape[op.dim()], device=x.device) > 0
    later = later.reshape([-1 if d == op.dim() else 1 for d in range(x.ndim)])
    return [c, op.lattice.keep(c, later)]


def whole(op: OpCall) -> Result:
    """Every output element depends on everything."""
    inputs = op.lattice.join(*[op.lattice.everything(op.of(t)) for t in op.inputs()])
    if inputs is None:
        return None
    outs = op.out if isinstance(op.out, (tuple, list)) else [op.out]
    cells = [op.lattice.reshaped(inputs, (1,) * o.ndim) if isinstance(o, Tensor) else None for o in outs]
    return cells if isinstance(op.out, (tuple, list)) else cells[0]


def spaced(op: OpCall) -> Result:
    """linspace, logspace: from both ends, of which the first element is one and the last the other."""
    start, end, out = op.cells("start"), op.cells("end"), op.out
    place = torch.arange(out.numel(), device=out.device)
    return op.lattice.join(
        op.lattice.keep(op.lattice.everything(start, 1), (place < max(1, len(place) - 1))),
        op.lattice.keep(op.lattice.everything(end, 1), place > 0),
    )


def norm_each(op: OpCall) -> Result:
    """_foreach_norm: one number a tensor."""
    return op.lattice.everything(op.cells("self"))


def rows(op: OpCall) -> Result:
    """Draws from a distribution along the last dim (multinomial): union over it."""
    return op.lattice.reduce(op.cells("self"), [op.tensor("self").ndim - 1])


def searched(op: OpCall) -> Result:
    """out[.., i] = S(value i) | union of the sorted row that it is looked up in (all of it, if it is 1-D)."""
    lattice = op.lattice
    sequence = (
        "sorted_sequence"
        if "sorted_sequence" in op.args
        else "boundaries"
        if "boundaries" in op.args
        else "test_elements"
    )
    value = "elements" if "elements" in op.args else "self"
    table = op.args.get(sequence)
    row = op.cells(sequence)
    if isinstance(table, Tensor) and sequence == "sorted_sequence" and table.ndim > 1:
        row = lattice.reduce(row, [table.ndim - 1])
        sorter = op.args.get("sorter")
        if isinstance(sorter, Tensor):
            row = lattice.join(row, lattice.reduce(op.of(sorter), [table.ndim - 1]))
    else:
        row = lattice.join(lattice.everything(row), lattice.everything(op.cells("sorter")))
    return lattice.join(op.cells(value), row)


def renorm(op: OpCall) -> Result:
    """Slices along dim scaled by their own norm."""
    dim, x = op.dim(), op.tensor("self")
    return op.lattice.reduce(op.cells("self"), [d for d in range(x.ndim) if d != dim])


def across(op: OpCall) -> Result:
    """Fourier transforms: union over the transformed dims, everywhere along them."""
    return op.lattice.reduce(op.cells("self"), op.dims())
