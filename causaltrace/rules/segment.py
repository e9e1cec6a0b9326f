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
    """The segment of each row, ``segments`` where it is in none; None: a layout of its own for each batch."""
    offsets = op.args.get("offsets")
    given: Tensor | None = offsets if isinstance(offsets, Tensor) else op.args.get("lengths")
    if not isinstance(given, Tensor) or given.ndim != 1 or _axis(op) != 0:
        return None
    places = torch.arange(op.tensor("data").shape[0], device=given.device, dtype=given.dtype)
    if isinstance(offsets, Tensor):  # one more than segments
        found = torch.searchsorted(given.contiguous(), places, right=True) - 1
        return torch.where(found < 0, segments, found)
    return torch.searchsorted(given.cumsum(0), places, right=True)


def _rows(op: OpCall, c: Cells | None, owner: Tensor, segments: int) -> Cells | None:
    """The union over each segment of ``c [rows, ...]``."""
    if c is None:
        return None
    rest = torch.Size(c.dims[1:])
    c = op.lattice.keep(c, (owner < segments).reshape(-1, *(1 for _ in rest)))
    if c is None:
        return None
    inner = torch.arange(rest.numel(), device=owner.device).view(1, *rest)
    places = owner.clamp(max=segments - 1).reshape(-1, *(1 for _ in rest)) * rest.numel() + inner
    return land(op, None, c, (segments, *rest), places, places.shape, False)


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
    read = lattice.join(outer, _rows(op, data, owner, segments))
    if read is not None and read.dims[0] != 1:
        read = lattice.move(read, lambda data: data[owner.clamp(max=segments - 1)], owner.numel() * 8)
    return lattice.join(
        lattice.keep(read, (owner < segments).reshape(-1, *(1,) * (op.out.ndim - 1))), _layout(op)
    )
