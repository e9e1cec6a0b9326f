"""Reductions of segments: S(out[segment]) = union over the segment, | S(lengths or offsets)."""

from __future__ import annotations

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result
from causaltrace.rules.scatter import land


def _axis(op: OpCall) -> int:
    return int(op.get("axis", 0)) % op.tensor("data").ndim


def _layout(op: OpCall) -> Cells | None:
    """What the borders depend on: where a segment begins, all lengths before it decide."""
    names = ("lengths", "offsets", "indices")
    return op.lattice.join(*[op.lattice.everything(op.cells(n), op.tensor("data").ndim) for n in names])


def _owners(op: OpCall, segments: int) -> Tensor | None:
    """The segment of each row ``[*before the axis, rows]``, ``segments`` where it is in none; None: no layout
    that says so."""
    offsets, data = op.args.get("offsets"), op.tensor("data")
    given: Tensor | None = offsets if isinstance(offsets, Tensor) else op.args.get("lengths")
    if not isinstance(given, Tensor) or given.ndim != _axis(op) + 1:
        return None
    places = torch.arange(data.shape[_axis(op)], device=given.device, dtype=given.dtype)
    places = places.expand(*given.shape[:-1], -1).contiguous()
    if isinstance(offsets, Tensor):  # one more than segments
        found = torch.searchsorted(given.contiguous(), places, right=True) - 1
        return torch.where(found < 0, segments, found)
    return torch.searchsorted(given.cumsum(-1), places, right=True)


def _wide(op: OpCall, owner: Tensor) -> Tensor:
    """``owner`` as it broadcasts over the data."""
    return owner.reshape(*owner.shape, *(1,) * (op.tensor("data").ndim - owner.ndim))


def _rows(op: OpCall, c: Cells | None, owner: Tensor, segments: int) -> Cells | None:
    """The union over each segment of ``c [*before the axis, rows, ...]``."""
    wide = _wide(op, owner)
    c = op.lattice.keep(c, wide < segments)
    if c is None:
        return None
    lead, rest = owner.shape[:-1], torch.Size(c.dims[owner.ndim :])
    outer = torch.arange(lead.numel(), device=owner.device).view(*lead, *(1,) * (wide.ndim - len(lead)))
    inner = torch.arange(rest.numel(), device=owner.device).view(rest)
    places = (outer * segments + wide.clamp(max=segments - 1)) * rest.numel() + inner
    return land(op, None, c, (*lead, segments, *rest), places, places.shape, False)


def forward(op: OpCall) -> Result:
    """segment_reduce: sums, means, products and extrema along an axis."""
    lattice, axis, segments = op.lattice, _axis(op), op.out.shape[_axis(op)]
    owner = _owners(op, segments) if segments else None
    if owner is None:
        return lattice.join(lattice.reduce(op.cells("data"), [axis]), _layout(op))
    return lattice.join(_rows(op, op.cells("data"), owner, segments), _layout(op))


def backward(op: OpCall) -> Result:
    """S(gradient of the segment), | S(segment) where its values decide who gets the gradient."""
    lattice, axis, segments = op.lattice, _axis(op), op.tensor("grad").shape[_axis(op)]
    owner = _owners(op, segments) if segments else None
    outer, data = op.cells("grad"), None
    if op.get("reduce") not in ("sum", "mean"):
        outer, data = lattice.join(outer, op.cells("output")), op.cells("data")
    if owner is None:
        return lattice.join(lattice.reduce(outer, [axis]), lattice.reduce(data, [axis]), _layout(op))
    read, wide = lattice.join(outer, _rows(op, data, owner, segments)), _wide(op, owner)
    if read is not None and read.dims[axis] != 1:
        dims = (*owner.shape[:-1], *read.dims[axis:])
        places = wide.clamp(max=segments - 1).expand(*owner.shape, *dims[axis + 1 :]).unsqueeze(-1)

        def fn(data: Tensor) -> Tensor:
            width = data.shape[-1]
            return data.expand(*dims, width).gather(axis, places.expand(*places.shape[:-1], width))

        read = lattice.move(read, fn, held=owner.numel() * 8)
    return lattice.join(lattice.keep(read, wide < segments), _layout(op))
