"""Fused attention kernels, forward and backward.

Forward, query i: S(q_i) | S(mask_i) | union over the keys j that i may see of S(k_j) | S(v_j).
Backward, with row_i = S(dO_i) | S(out_i), only S(dO_i) where dO_i is zero: dq_i = row_i, and
dk_j, dv_j = union of row_i over the queries i that see j.
"""

from __future__ import annotations

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, absorb
from causaltrace.rules.pointwise import MASK_VALUE


def _heads(op: OpCall, c: Cells | None, heads: int) -> Cells | None:
    """Supports for ``heads`` heads: grouped keys are shared by several queries (repeat_interleave)."""
    if c is None or len(c.dims) < 3 or c.dims[-3] in (1, heads):
        return c
    groups = heads // c.dims[-3]
    return op.lattice.move(c, lambda data: data.repeat_interleave(groups, dim=-4))


def visible(mask: Tensor | None) -> Tensor | None:
    """Which keys a mask lets through (None: all). A row whose keys are all at a finite mask value is
    uniform over all of them."""
    if mask is None or mask.dtype == torch.bool:
        return mask
    low = max(MASK_VALUE, torch.finfo(mask.dtype).min / 2)
    seen = mask > low
    finite = ~torch.isinf(mask).any(-1, keepdim=True)
    return torch.where(~seen.any(-1, keepdim=True) & finite, True, seen)


def _attend(op: OpCall, kv: Cells | None, mask: Tensor | None, causal: bool, queries: int, keys: int) -> Cells | None:
    """Union over visible keys; ``kv [.., keys | 1, 1]`` to ``[.., queries | 1, 1]``."""
    lattice = op.lattice
    if kv is None:
        return None
    n = len(kv.dims)
    if causal and queries == keys:
        return lattice.running(kv, n - 2)
    if causal:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=kv.data.device).tril()
    if mask is None:
        return lattice.reduce(kv, [n - 2])
    return lattice.contract(_shared(mask, kv), kv)


def _shared(mask: Tensor, kv: Cells) -> Tensor:
    """One mask for all heads and batch rows that share their supports, when they share the mask too."""
    for d in range(mask.ndim - 2):
        along = d - mask.ndim
        if mask.stride(d) == 0 or (len(kv.dims) >= -along and kv.dims[along] == 1 and mask.shape[d] != 1):
            mask = mask.any(d, keepdim=True) if mask.stride(d) != 0 else mask.narrow(d, 0, 1)
    return mask


def _arguments(op: OpCall) -> tuple[Tensor, Tensor, Cells | None, Cells | None, Tensor | None, Cells | None]:
    lattice = op.lattice
    q, k = op.tensor("query"), op.tensor("key")
    last = q.ndim - 1
    cq = lattice.reduce(op.cells("query"), [last])
    kv = lattice.reduce(lattice.join(op.cells("key"), op.cells("value")), [last])
    kv = _heads(op, kv, q.shape[-3]) if q.ndim >= 3 else kv
    mask = next((op.args[n] for n in ("attn_mask", "attn_bias") if isinstance(op.args.get(n), Tensor)), None)
    cm = None if mask is None else lattice.reduce(op.of(mask), [mask.ndim - 1])
    return q, k, cq, kv, mask, cm


def forward(op: OpCall) -> Result:
    """(out, logsumexp, ...): every result row depends on the query's own row and its visible keys."""
    q, k, cq, kv, mask, cm = _arguments(op)
    seen = visible(mask)
    causal = bool(op.get("is_causal", False))
    through = _attend(op, kv, seen, causal, q.shape[-2], k.shape[-2])
    row = op.lattice.join(cq, through, cm)
    outs = op.out if isinstance(op.out, (tuple, list)) else [op.out]
    cells: list[Cells | None] = []
    for i, out in enumerate(outs):
        if not isinstance(out, Tensor) or not out.dtype.is_floating_point or row is None:
            cells.append(None)
        elif i == 0:
            cells.append(row)
        else:  # logsumexp [.., queries] or padded to it
            flat = op.lattice.squeeze(row, [len(row.dims) - 1])
            fits = all(a in (1, b) for a, b in zip(flat.dims, out.shape, strict=False)) and len(flat.dims) == out.ndim
            cells.append(flat if fits else op.lattice.reshaped(_all(op, row), (1,) * out.ndim))
    return cells if isinstance(op.out, (tuple, list)) else cells[0]


def _all(op: OpCall, row: Cells) -> Cells:
    out = op.lattice.everything(row)
    assert out is not None
    return out


def backward(op: OpCall) -> Result:
    """(dq, dk, dv[, dmask])."""
    lattice = op.lattice
    name = "grad_out" if "grad_out" in op.args else "grad_out_" if "grad_out_" in op.args else "grad_output"
    grad, out = op.tensor(name), op.tensor("out")
    q, k, cq, kv, mask, cm = _arguments(op)
    last = grad.ndim - 1
    own = lattice.reduce(op.cells(name), [last])
    saved = lattice.join(lattice.reduce(op.of(out), [last]), cq, cm)
    row = absorb(op, grad, own, saved)
    seen = visible(mask)
    into = None
    if row is not None:
        n = len(row.dims)
        causal = bool(op.get("is_causal", False))
        if causal and q.shape[-2] == k.shape[-2]:
            into = lattice.running(row, n - 2, reverse=True)
        elif causal or seen is not None:
            kept = (
                torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril() if causal else seen
            )
            assert kept is not None
            into = lattice.contract(_shared(kept.transpose(-1, -2), row), row)
        else:
            into = lattice.reduce(row, [n - 2])
        if into is not None and q.ndim >= 3 and k.shape[-3] != q.shape[-3]:
            into = _grouped(op, into, k.shape[-3])
    results: list[Cells | None] = [row, into, into]
    outs = op.out if isinstance(op.out, (tuple, list)) else [op.out]
    for extra in outs[3:]:
        whole = lattice.everything(row)
        results.append(
            lattice.reshaped(whole, (1,) * extra.ndim) if isinstance(extra, Tensor) and whole is not None else None
        )
    return results


def _grouped(op: OpCall, c: Cells, heads: int) -> Cells:
    """Gradients of keys shared by a group of queries: union over the group."""
    if c.dims[-3] in (1, heads):
        return c
    shape = (*c.dims[:-3], heads, c.dims[-3] // heads, *c.dims[-2:])
    split = op.lattice.move(c, lambda data: data.reshape(*shape, data.shape[-1]))
    out = op.lattice.reduce(split, [len(shape) - 3], keepdim=False)
    assert out is not None
    return out
