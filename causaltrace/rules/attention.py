"""Fused attention kernels, forward and backward.

Forward, query i: S(q_i) | S(mask_i) | union over the keys j that i may see of S(k_j) | S(v_j).
Backward, with row_i = S(dO_i) | S(out_i), only S(dO_i) where dO_i is zero: dq_i = row_i, and
dk_j, dv_j = union of row_i over the queries i that see j.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, absorb, known
from causaltrace.rules.pointwise import MASK_VALUE


def _heads(op: OpCall, c: Cells | None, heads: int) -> Cells | None:
    """Supports for ``heads`` heads: grouped keys are shared by several queries (repeat_interleave)."""
    if c is None or len(c.dims) < 3 or c.dims[-3] in (1, heads):
        return c
    groups = heads // c.dims[-3]
    return op.lattice.move(c, lambda data: data.repeat_interleave(groups, dim=-4))


def visible(mask: Tensor, q: Tensor, k: Tensor, scale: float | None = None, blind: bool = False) -> Tensor:
    """Which keys a mask lets through, compressed where it is expanded.

    An additive mask hides a key at -inf, and at a finite mask value as far below the row's best one: a row
    whose keys are all at -1e9 is uniform over them. Where scores are as large as that, it hides nothing;
    ``blind``: they are not known, and taken for moderate.
    """
    if not known(mask):
        return torch.ones((1,) * mask.ndim, dtype=torch.bool)
    for d in range(mask.ndim):
        if mask.stride(d) == 0:
            mask = mask.narrow(d, 0, 1)
    if mask.dtype == torch.bool:
        return mask
    low = max(MASK_VALUE, torch.finfo(mask.dtype).min / 2)
    hidden = (mask <= low) & (mask - mask.amax(-1, keepdim=True) <= low / 2)
    if q.numel() and k.numel() and not blind:
        factor = q.shape[-1] * (q.shape[-1] ** -0.5 if scale is None else abs(scale))
        hidden = hidden & (q.abs().amax().float() * k.abs().amax().float() * factor < -low / 4)
    return ~(hidden | (mask == -torch.inf))


def _across(op: OpCall, call: _Call, rows: Cells | None, back: bool = False) -> Cells | None:
    """From keys to the queries that see them; ``back``: from queries to the keys that they see."""
    if rows is None:
        return None
    along = len(rows.dims) - 2
    if call.causal:
        return op.lattice.running(rows, along, reverse=back)
    if call.seen is None:
        return op.lattice.reduce(rows, [along])
    return op.lattice.contract(_shared(call.seen.transpose(-1, -2) if back else call.seen, rows), rows)


def _shared(mask: Tensor, kv: Cells) -> Tensor:
    """One mask, the union, for all heads and batch rows that share their supports."""
    for d in range(mask.ndim - 2):
        along = d - mask.ndim
        if len(kv.dims) >= -along and kv.dims[along] == 1 and mask.shape[d] != 1:
            mask = mask.any(d, keepdim=True)
    return mask


class _Call(NamedTuple):
    """Shapes and supports common to both directions: ``query``, ``keys`` (key and value), ``mask`` are
    ``[.., queries | keys, 1]``; ``seen`` the visible keys, None for all or where ``causal`` says it."""

    key_heads: int
    query: Cells | None
    keys: Cells | None
    mask: Cells | None
    seen: Tensor | None
    causal: bool


def _call(op: OpCall) -> _Call:
    lattice = op.lattice
    q, k = op.tensor("query"), op.tensor("key")
    heads = q.shape[-3] if q.ndim >= 3 else 1
    query = lattice.reduce(op.cells("query"), [q.ndim - 1])
    both = [lattice.reduce(op.cells(name), [k.ndim - 1]) for name in ("key", "value")]
    keys = lattice.join(*[_heads(op, c, heads) for c in both])
    mask = next((op.args[n] for n in ("attn_mask", "attn_bias") if isinstance(op.args.get(n), Tensor)), None)
    causal = bool(op.get("is_causal", False))
    square = q.shape[-2] == k.shape[-2]
    seen = None
    if causal and not square:
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    elif mask is not None and not causal:
        seen = visible(mask, q, k, op.get("scale"), op.blind)
    masked = None if mask is None else lattice.reduce(op.of(mask), [mask.ndim - 1])
    return _Call(k.shape[-3] if k.ndim >= 3 else 1, query, keys, masked, seen, causal and square)


def forward(op: OpCall) -> Result:
    """(out, logsumexp, ...): every result row depends on the query's own row and its visible keys."""
    lattice = op.lattice
    call = _call(op)
    row = lattice.join(call.query, _across(op, call, call.keys), call.mask)
    outs = op.out if isinstance(op.out, (tuple, list)) else [op.out]
    cells = [row] + [
        _flat(op, row, extra) if isinstance(extra, Tensor) and extra.is_floating_point() else None
        for extra in outs[1:]
    ]
    return cells if isinstance(op.out, (tuple, list)) else row


def _flat(op: OpCall, row: Cells | None, extra: Tensor) -> Cells | None:
    """A number for each row (logsumexp), or any other shape."""
    if row is None:
        return None
    dims = row.dims[:-1]
    if len(dims) == extra.ndim and all(n in (1, size) for n, size in zip(dims, extra.shape, strict=True)):
        return op.lattice.squeeze(row, [len(dims)])
    return op.lattice.everything(row, extra.ndim)


def backward(op: OpCall) -> Result:
    """(dq, dk, dv[, dmask])."""
    lattice = op.lattice
    name = next(n for n in ("grad_out", "grad_out_", "grad_output") if n in op.args)
    grad, out = op.tensor(name), op.tensor("out")
    call = _call(op)
    last = [grad.ndim - 1]
    saved = lattice.join(lattice.reduce(op.of(out), last), call.query, call.mask)
    row = absorb(op, grad, lattice.reduce(op.cells(name), last), saved)
    into = _grouped(op, _across(op, call, row, back=True), call.key_heads)
    results: list[Cells | None] = [row, into, into]
    for extra in op.out[3:]:
        results.append(lattice.everything(row, extra.ndim) if isinstance(extra, Tensor) else None)
    return results


def _grouped(op: OpCall, c: Cells | None, heads: int) -> Cells | None:
    """Gradients of keys shared by a group of queries: union over the group."""
    if c is None or len(c.dims) < 3 or c.dims[-3] in (1, heads):
        return c
    shape = (*c.dims[:-3], heads, c.dims[-3] // heads, *c.dims[-2:])
    return op.lattice.reduce(op.lattice.reshaped(c, shape), [len(shape) - 3], keepdim=False)
