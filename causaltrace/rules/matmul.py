"""Matrix products: out[i, j] = union over k of A[i, k] | B[k, j], where a zero factor cuts its partner."""

from __future__ import annotations

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, live


def product(op: OpCall, a: Tensor, b: Tensor, ca: Cells | None, cb: Cells | None) -> Cells | None:
    """Support of ``a [.., I, K] @ b [.., K, J]``."""
    if ca is None and cb is None:
        return None
    left = _side(op, ca, a, b)
    right = _side(op, cb, b, a, transposed=True)
    return op.lattice.join(left, right)


def _side(op: OpCall, own: Cells | None, x: Tensor, factor: Tensor, transposed: bool = False) -> Cells | None:
    """What of ``x`` reaches the output through ``factor``: ``x @ factor``, or ``factor @ x`` if transposed.

    Works on the second form; the first is its transpose.
    """
    if own is None:
        return None
    lattice = op.lattice
    rows, keys = (-2, -1) if transposed else (-1, -2)  # factor's free and contracted dims
    contracted = len(own.dims) + (-2 if transposed else -1)
    along = own.dims[contracted] != 1
    if not along:
        if not op.backward or factor.requires_grad:
            return own
        # a zero row of a gradient cuts a whole slice of the partner
        mask = live(factor, tuple(d for d in range(factor.ndim) if d != factor.ndim + keys))
        return lattice.keep(own, mask)
    mask = factor != 0
    if mask.ndim > 2:
        batch = own.dims[:-2]
        for d in range(mask.ndim - 2):
            if batch[d] == 1 and mask.shape[d] != 1:  # heads that share supports share one mask
                mask = mask.any(d, keepdim=True)
    if mask.device.type == "cpu" and bool(mask.all()):
        return lattice.reduce(own, [contracted])
    if factor.ndim == 2 and op.backward:  # weight gradients: features share one mask
        mask = mask.any(rows, keepdim=True)
    if not transposed:
        mask = mask.transpose(-1, -2)
        own = _swapped(op, own)
    # mask [.., free of factor, k] and own [.., k, free of x]
    out = _contract(op, mask, own)
    if out is not None and not transposed:
        out = _swapped(op, out)
    return out


def _contract(op: OpCall, mask: Tensor, x: Cells) -> Cells | None:
    """``out[.., q, j] = union of x[.., k, j] over the k with mask[.., q, k]``."""
    if x.dims[-1] == 1:
        return op.lattice.contract(mask, x)
    lattice = op.lattice.lattice

    def fn(data: Tensor) -> Tensor:
        columns = [lattice.contract(mask, data[..., j : j + 1, :]) for j in range(data.shape[-2])]
        return torch.cat(columns, dim=-2)

    return op.lattice.make(fn, x, held=mask.numel())


def _swapped(op: OpCall, x: Cells) -> Cells:
    """The last two dims exchanged."""
    if x.dims[-1] == 1 and x.dims[-2] == 1:
        return x
    return op.lattice.move(x, lambda data: data.transpose(-3, -2))


def mm(op: OpCall) -> Result:
    """mm, bmm: out = A @ B."""
    b = "mat2"
    return product(op, op.tensor("self"), op.tensor(b), op.cells("self"), op.cells(b))


def mv(op: OpCall) -> Result:
    """out[i] = union over k of A[i, k] | v[k]."""
    lattice = op.lattice
    vec = op.cells("vec")
    column = None if vec is None else lattice.unsqueeze(vec, 1)
    out = product(op, op.tensor("self"), op.tensor("vec").unsqueeze(1), op.cells("self"), column)
    return None if out is None else lattice.squeeze(out, [1])


def dot(op: OpCall) -> Result:
    """out = everything in both, less what zeros cut."""
    lattice = op.lattice
    other = "other" if "other" in op.args else "tensor"
    a, b = op.cells("self"), op.cells(other)
    row = None if a is None else lattice.unsqueeze(a, 0)
    column = None if b is None else lattice.unsqueeze(b, 1)
    out = product(op, op.tensor("self").unsqueeze(0), op.tensor(other).unsqueeze(1), row, column)
    return lattice.everything(out)


def _plus(op: OpCall, product_cells: Cells | None) -> Cells | None:
    bias = op.cells("self") if op.get("beta", 1) != 0 else None
    return op.lattice.join(product_cells if op.get("alpha", 1) != 0 else None, bias)


def addmm(op: OpCall) -> Result:
    """out = bias | A @ B (addmm, baddbmm)."""
    a, b = ("mat1", "mat2") if "mat1" in op.args else ("batch1", "batch2")
    return _plus(op, product(op, op.tensor(a), op.tensor(b), op.cells(a), op.cells(b)))


def addmv(op: OpCall) -> Result:
    lattice = op.lattice
    vec = op.cells("vec")
    column = None if vec is None else lattice.unsqueeze(vec, 1)
    out = product(op, op.tensor("mat"), op.tensor("vec").unsqueeze(1), op.cells("mat"), column)
    return _plus(op, None if out is None else lattice.squeeze(out, [1]))


def ger(op: OpCall) -> Result:
    """Outer product: out[i, j] = u[i] | v[j]."""
    lattice = op.lattice
    u, v = op.cells("self"), op.cells("vec2")
    return lattice.join(
        None if u is None else lattice.unsqueeze(u, 1), None if v is None else lattice.unsqueeze(v, 0)
    )
