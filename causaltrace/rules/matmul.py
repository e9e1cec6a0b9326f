"""Matrix products: out[i, j] = union over k of A[i, k] | B[k, j], where a zero factor cuts its partner."""

from __future__ import annotations

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, all_live, live, varied
from causaltrace.rules.pointwise import MASK_VALUE, may_mask

#: Distinct supports along the free dim for which zeros are still looked at one column at a time.
COLUMNS = 64
#: Elements of a gradient beyond which its features share one look at the zeros of their rows.
FEATURES = 1 << 12
#: Elements of a factor beyond which only its borders are looked at.
BORDERS = 1 << 16


def product(op: OpCall, a: Tensor, b: Tensor, ca: Cells | None, cb: Cells | None) -> Cells | None:
    """Support of ``a [.., I, K] @ b [.., K, J]``."""
    if ca is None and cb is None:
        return None
    # where both factors are 0, one has to vouch for it: B where B[k, :] is 0 (a gradient), else A
    both = op.backward and ca is not None and cb is not None and not b.requires_grad
    dead = ~live(b, range(b.ndim - 1)) if both else None
    left, cut = _side(op, ca, a, b)
    if cb is not None and not cut and op.lattice.within(cb, left):
        return left  # whatever of B is cut adds nothing
    right, _ = _side(op, cb, b, a, transposed=True, always=dead)
    if cut and cb is not None:
        left = op.lattice.join(left, _zeros(op, a, ca, b, cb, dead))
    return op.lattice.join(left, right)


def _zeros(
    op: OpCall, x: Tensor, own: Cells | None, other: Tensor, theirs: Cells, dead: Tensor | None
) -> Cells | None:
    """Union over the contracted dim of S(x) where x is 0, but for zeros of the other that depend on nothing
    or vouch for themselves (``dead``)."""
    if own is None:
        return None
    doubtful = (other == 0) & (theirs.data != op.lattice.lattice.bottom).any(-1)
    if dead is not None:
        doubtful = doubtful & ~dead
    zero = (x == 0) & doubtful.any(-1, keepdim=True).transpose(-1, -2)
    if zero.device.type == "cpu" and not bool(zero.any()):
        return None
    along = varied(own, ndim=x.ndim)
    for d in range(x.ndim):
        if d not in along and zero.shape[d] != 1:
            zero = zero.any(d, keepdim=True)
    return op.lattice.reduce(op.lattice.keep(own, zero), [len(own.dims) - 1])


def _side(
    op: OpCall,
    own: Cells | None,
    x: Tensor,
    factor: Tensor,
    transposed: bool = False,
    always: Tensor | None = None,
) -> tuple[Cells | None, bool]:
    """What of ``x`` reaches the output through ``factor``: ``x @ factor``, or ``factor @ x`` if transposed.
    Also: were zeros of ``factor`` used to cut it? Not where ``always [.., k, 1]``.

    Works on the second form; the first is its transpose.
    """
    if own is None:
        return None, False
    lattice = op.lattice
    keys = -1 if transposed else -2  # factor's contracted dim
    contracted = len(own.dims) + (-2 if transposed else -1)
    along = own.dims[contracted] != 1
    if not along:
        if not op.backward or factor.requires_grad:
            return own, False
        # a zero row of a gradient cuts a whole slice of the partner
        slices = [d for d in range(factor.ndim) if d != factor.ndim + keys]
        if all_live(factor, slices):
            return own, False
        mask = live(factor, slices)
        if always is not None:
            mask = mask | always.any(-2, keepdim=True)
        kept = lattice.keep(own, mask)
        return kept, kept is not own
    free = own.dims[-1 if transposed else -2]
    feature = factor.ndim == 2 and op.backward and factor.shape[0] != factor.shape[1]
    feature = feature and factor.numel() > FEATURES
    if free > COLUMNS or (factor.requires_grad if feature else _dense(factor)):
        return lattice.reduce(own, [contracted]), False
    if feature and all_live(factor, (factor.ndim + keys,)):
        return lattice.reduce(own, [contracted]), False
    mask = live(factor, (factor.ndim + keys,)) if feature else factor != 0  # features share one mask
    if always is not None:
        mask = mask | always.transpose(-1, -2)
    if mask.ndim > 2:
        batch = own.dims[:-2]
        for d in range(mask.ndim - 2):
            if batch[d] == 1 and mask.shape[d] != 1:  # heads that share supports share one mask
                mask = mask.any(d, keepdim=True)
    if mask.device.type == "cpu" and bool(mask.all()):
        return lattice.reduce(own, [contracted]), False
    if not transposed:
        mask = mask.transpose(-1, -2)
        own = _swapped(op, own)
    # mask [.., free of factor, k] and own [.., k, free of x]
    out = _contract(op, mask, own)
    if out is not None and not transposed:
        out = _swapped(op, out)
    return out, True


def _dense(factor: Tensor) -> bool:
    """Has it no zeros? On the host only, where looking is cheap. Whatever masks a large matrix leaves
    zeros in its first or last row or column."""
    if factor.device.type != "cpu" or not factor.dtype.is_floating_point or not factor.numel():
        return False
    if factor.numel() <= BORDERS:
        least = factor.abs().amin()
        return bool(least) and not bool(least.isnan())
    rows, columns = (max(1, n - 1) for n in factor.shape[-2:])
    return bool(factor[..., ::rows, :].all()) and bool(factor[..., ::columns].all())


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


def linear(op: OpCall) -> Result:
    """x @ W.T + b as one op (inference mode): out[.., j] = union over the row of x, and over W[j], | b[j]."""
    lattice, last = op.lattice, op.tensor("input").ndim - 1
    weights = op.tensor("weight")
    rows = lattice.reduce(op.cells("weight"), [weights.ndim - 1], keepdim=False)
    out = lattice.join(lattice.reduce(op.cells("input"), [last]), op.cells("bias"))
    if weights.ndim == 1:  # one output feature, no dim for it
        return lattice.join(lattice.reduce(out, [last], keepdim=False), rows)
    return lattice.join(out, rows)


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
    """bias | product; a mask value in the bias (<= -1e9 or -inf) that swallows the product cuts it."""
    bias = op.cells("self") if op.get("beta", 1) != 0 else None
    if op.get("alpha", 1) == 0:
        return bias
    mask, out = op.tensor("self"), op.out
    unfit = op.backward or mask.requires_grad or op.get("beta", 1) != 1
    unfit = unfit or out is mask or not mask.is_floating_point()  # out is mask: in place, no result yet
    if product_cells is not None and mask.ndim > 1 and not unfit and may_mask(bias):
        low = mask <= max(MASK_VALUE, torch.finfo(mask.dtype).min / 2)
        if low.device.type != "cpu" or bool(low.any()):
            swallowed = (out == mask) | out.isnan() if op.blind else out == mask
            product_cells = op.lattice.keep(product_cells, ~(low & swallowed))
    return op.lattice.join(product_cells, bias)


def addmm(op: OpCall) -> Result:
    """out = bias | A @ B (addmm, baddbmm)."""
    a, b = ("mat1", "mat2") if "mat1" in op.args else ("batch1", "batch2")
    out = product(op, op.tensor(a), op.tensor(b), op.cells(a), op.cells(b))
    if op.name == "addbmm":  # summed over the batch
        out = op.lattice.reduce(out, [0], keepdim=False)
    return _plus(op, out)


def addmv(op: OpCall) -> Result:
    lattice = op.lattice
    vec = op.cells("vec")
    column = None if vec is None else lattice.unsqueeze(vec, 1)
    out = product(op, op.tensor("mat"), op.tensor("vec").unsqueeze(1), op.cells("mat"), column)
    return _plus(op, None if out is None else lattice.squeeze(out, [1]))


def ger(op: OpCall) -> Result:
    """Outer product (ger, addr): out[i, j] = u[i] | v[j]."""
    lattice = op.lattice
    u, v = op.cells("self" if "vec1" not in op.args else "vec1"), op.cells("vec2")
    out = lattice.join(
        None if u is None else lattice.unsqueeze(u, 1), None if v is None else lattice.unsqueeze(v, 0)
    )
    return _plus(op, out) if "vec1" in op.args else out


def grouped_mm(op: OpCall) -> Result:
    """_grouped_mm: ``offs`` shares out the rows (or columns, or the contracted dim) among the matrices of a
    batch: union over the contracted dim | S(offs). A zero row of a gradient cuts its partner."""
    lattice = op.lattice
    a, b, offs = op.tensor("self"), op.tensor("mat2"), op.args.get("offs")
    ca, cb = op.cells("self"), op.cells("mat2")
    if a.ndim == b.ndim:  # both are shared out along the contracted dim, or neither is
        out = product(op, a, b, ca, cb)
        out = None if out is None else lattice.aligned(out, 3)
    else:  # which matrix a row or column meets is not told apart
        rows, columns = lattice.reduce(ca, [a.ndim - 1]), lattice.reduce(cb, [b.ndim - 2])
        if a.ndim == 3:
            rows = lattice.reduce(rows, [0], keepdim=False)
        if b.ndim == 3:
            columns = lattice.reduce(columns, [0], keepdim=False)
        out = lattice.join(rows, columns)
    shared = lattice.everything(op.of(offs))
    return lattice.join(out, shared, op.cells("bias"))


def scaled_mm(op: OpCall) -> Result:
    """_scaled_mm: A @ B with scales, a bias and an output scale."""
    lattice = op.lattice
    out = product(op, op.tensor("self"), op.tensor("mat2"), op.cells("self"), op.cells("mat2"))
    scales = [lattice.everything(op.cells(n), 2) for n in ("scale_a", "scale_b", "scale_result")]
    return lattice.join(out, op.cells("bias"), *scales)


def distances(op: OpCall) -> Result:
    """cdist: out[i, j] = row i of x1 | row j of x2."""
    lattice = op.lattice
    a, b = op.tensor("x1"), op.tensor("x2")
    rows = lattice.reduce(op.cells("x1"), [a.ndim - 1])
    columns = lattice.reduce(op.cells("x2"), [b.ndim - 1])
    return lattice.join(rows, None if columns is None else _swapped(op, columns))


def distances_backward(op: OpCall) -> Result:
    """_cdist_backward: grad_x1[i, d] sums over j what differs in place d: S(x1[i, d]) | S(column d of x2) |
    row i of grad and of the distances, which p = 1 does not read. Counting (p = 0) has no gradient."""
    lattice, p = op.lattice, op.args["p"]
    grad, b = op.tensor("grad"), op.tensor("x2")
    if p == 0 or not grad.numel():
        return None
    return lattice.join(
        lattice.reduce(op.cells("grad"), [grad.ndim - 1]),
        lattice.reduce(op.cells("cdist") if p != 1 else None, [grad.ndim - 1]),
        op.cells("x1"),
        lattice.reduce(op.cells("x2"), [b.ndim - 2]),
    )


def pairs(op: OpCall) -> Result:
    """_pdist_forward: the distance of rows i < j, one after the other: row i | row j."""
    lattice, x = op.lattice, op.tensor("self")
    rows = lattice.reduce(op.cells("self"), [1], keepdim=False)
    if rows is None or rows.uniform:
        return rows
    first, second = torch.triu_indices(len(x), len(x), 1, device=x.device)
    held = first.numel() * 8
    return lattice.join(
        lattice.move(rows, lambda data: data[first], held),
        lattice.move(rows, lambda data: data[second], held),
    )


def pairs_backward(op: OpCall) -> Result:
    """_pdist_backward: as for cdist; row i of the gradient is that of the pairs that i is one of."""
    lattice, x, p = op.lattice, op.tensor("self"), op.args["p"]
    if p == 0 or len(x) < 2:
        return None
    first, second = torch.triu_indices(len(x), len(x), 1, device=x.device)
    number = torch.zeros(len(x), len(x), dtype=torch.long, device=x.device)
    number[first, second] = number[second, first] = torch.arange(len(first), device=x.device)
    number.diagonal().copy_(number.roll(-1, 1).diagonal())  # some other pair of its own

    def rows(c: Cells | None) -> Cells | None:
        if c is None or c.uniform:
            return lattice.everything(c, 2)
        return lattice.reduce(lattice.move(c, lambda data: data[number], held=number.numel() * 8), [1])

    return lattice.join(
        rows(op.cells("grad")),
        rows(op.cells("pdist") if p != 1 else None),
        lattice.reduce(op.cells("self"), [0]),
    )


def trilinear(op: OpCall) -> Result:
    """sum of i1 * i2 * i3, each with new dims where the others have theirs: union over the summed dims."""
    lattice = op.lattice
    joined: Cells | None = None
    for name, dims in (("i1", "expand1"), ("i2", "expand2"), ("i3", "expand3")):
        c = op.cells(name)
        for d in sorted(op.args[dims]) if c is not None else ():
            c = None if c is None else lattice.unsqueeze(c, d)
        joined = lattice.join(joined, c)
    summed = sorted(op.args["sumdim"])
    return lattice.reduce(joined, summed, keepdim=False) if summed else joined
