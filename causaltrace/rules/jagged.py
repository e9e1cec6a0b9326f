"""Rows of several lengths, packed one after the other (jagged nested tensors), to and from padded ones.

Row ``i`` of sequence ``b`` lies at ``offsets[b] + i``: S(out) = S(offsets) | S of the row that moved.
"""

from __future__ import annotations

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result
from causaltrace.rules.reduce import whole


def _placed(op: OpCall, c: Cells | None, ndim: int) -> Cells | None:
    """``c`` with what decides where a row lies."""
    if not op.moves_values:
        return c
    return op.lattice.join(c, op.lattice.everything(op.of(op.args["offsets"][0]), ndim))


def to_padded(op: OpCall) -> Result:
    """Packed rows ``[total, *]`` to ``[sequences, longest, *]``; what pads holds nothing."""
    if len(op.args["offsets"]) != 1:
        return whole(op)
    lattice, c, values = op.lattice, op.cells("values"), op.tensor("values")
    starts, (longest,) = op.args["offsets"][0], op.args["max_lengths"]
    if c is not None:
        place = starts[:-1, None] + torch.arange(longest, device=starts.device)
        inside = (place < starts[1:, None])[(...,) + (None,) * (values.ndim - 1)]
        place = place.clamp(max=max(len(values) - 1, 0))
        if c.dims[0] == 1:
            c = lattice.reshaped(c, (1, *c.dims))
        else:
            c = lattice.move(c, lambda data: data[place], held=place.numel() * 8)
        c = lattice.keep(c, inside)
    return _placed(op, c, values.ndim + 1)


def to_packed(op: OpCall) -> Result:
    """Padded rows ``[sequences, longest, *]`` to ``[total, *]``."""
    if len(op.args["offsets"]) != 1:
        return whole(op)
    lattice, c, dense = op.lattice, op.cells("dense"), op.tensor("dense")
    starts, total = op.args["offsets"][0], op.out.shape[0]
    if c is not None:
        row = torch.arange(total, device=starts.device)
        sequence = torch.searchsorted(starts, row, right=True) - 1
        place = row - starts[sequence]

        def packed(data: Tensor) -> Tensor:
            return data[
                sequence if data.shape[0] != 1 else torch.zeros_like(row),
                place if data.shape[1] != 1 else torch.zeros_like(row),
            ]

        c = lattice.move(c, packed, held=row.numel() * 16)
    return _placed(op, c, dense.ndim - 1)
