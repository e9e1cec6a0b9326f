"""Movements of which torch itself says where elements go: the op, run on the numbers of its elements.

Element k of the inputs, counted from 1, is worth k; 0 in the result is an element that came from nowhere
(padding). S(out) = S of the element that moved (| what its place depends on).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from causaltrace._compat import storage_of
from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result


def _moved(op: OpCall, tensors: Sequence[Tensor], places: Tensor) -> Cells | None:
    """The supports of the tensors' elements at their numbers ``places``."""
    cells = [op.of(t) for t in tensors]
    parents = [c for c in cells if c is not None]
    if not parents:
        return None
    shapes = [tuple(t.shape) for t in tensors]
    blank = op.lattice.lattice.bottom if op.moves_values else -1  # -1: no label
    known, where = [c is not None for c in cells], places.long()

    def fn(*data: Tensor) -> Tensor:
        width, rest = data[0].shape[-1], iter(data)
        parts = [data[0].new_full((1, width), blank)]
        for shape, present in zip(shapes, known, strict=True):
            if present:
                parts.append(next(rest).expand(*shape, width).reshape(-1, width))
            else:
                parts.append(data[0].new_full((torch.Size(shape).numel(), width), blank))
        return torch.cat(parts)[where.to(data[0].device)]

    return op.lattice.make(fn, *parents, share=False, held=where.numel() * 8)


def _numbers(tensors: Sequence[Tensor]) -> list[Tensor]:
    """On the host, where looking at them is free."""
    out, start = [], 1
    for t in tensors:
        out.append(torch.arange(start, start + t.numel(), dtype=torch.float64).view(t.shape))
        start += t.numel()
    return out


def _in_memory(x: Tensor, numbers: Tensor) -> Tensor | None:
    """Numbers, laid out in memory as ``x``; None where elements share memory."""
    if any(n > 1 and stride == 0 for n, stride in zip(x.shape, x.stride(), strict=True)):
        return None
    memory = torch.zeros(storage_of(x).nbytes() // x.element_size(), dtype=numbers.dtype)
    placed = memory.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(numbers)
    return placed if torch.equal(placed, numbers) else None


def as_strided_copy(op: OpCall) -> Result:
    """out = the memory of self, read through another geometry. It may hold more than self does: then no
    element is told from another."""
    x, lattice = op.tensor("self"), op.lattice
    size, stride, offset = op.args["size"], op.args["stride"], op.get("storage_offset")
    placed = _in_memory(x, _numbers([x])[0])
    if placed is not None and bool((places := placed.as_strided(size, stride, offset)).all()):
        return _moved(op, [x], places)
    return lattice.everything(op.cells("self"), len(size))


def as_strided_scatter(op: OpCall) -> Result:
    """self with src where the geometry says."""
    x, src, lattice = op.tensor("self"), op.tensor("src"), op.lattice
    size, stride, offset = op.args["size"], op.args["stride"], op.get("storage_offset")
    old, new = _numbers([x, src])
    placed = _in_memory(x, old)
    if placed is None:
        return lattice.join(*[lattice.everything(op.cells(n), x.ndim) for n in ("self", "src")])
    placed.as_strided(size, stride, offset).copy_(new)
    return _moved(op, [x, src], placed)


def chunk_cat(op: OpCall) -> Result:
    """_chunk_cat: every tensor cut into chunks, padded, flattened and laid side by side."""
    tensors = list(op.args["tensors"])
    places = torch.ops.aten._chunk_cat(_numbers(tensors), op.args["dim"], op.args["num_chunks"])
    return _moved(op, tensors, places)


def pack_padded(op: OpCall) -> Result:
    """_pack_padded_sequence: (the steps of all sequences that are no padding, how many go on at each step).
    Where an element goes depends on all lengths."""
    x, lattice, c = op.tensor("input"), op.lattice, op.cells("input")
    lengths = lattice.everything(op.cells("lengths"), 1) if op.moves_values else None
    if c is not None and c.dims[:2] == (1, 1):
        c = lattice.reshaped(c, (1, *c.dims[2:]))
    elif c is not None:
        steps = torch.arange(x.shape[0] * x.shape[1], dtype=torch.float64).view(*x.shape[:2], 1)
        packed, _ = torch.ops.aten._pack_padded_sequence(steps, op.tensor("lengths"), op.args["batch_first"])
        places, wide = packed[:, 0].long(), (*x.shape[:2], *c.dims[2:])

        def fn(data: Tensor) -> Tensor:
            return data.expand(*wide, data.shape[-1]).flatten(0, 1)[places.to(data.device)]

        c = lattice.move(c, fn, held=places.numel() * 8)
    spread = None if lengths is None else lattice.reshaped(lengths, (1,) * (x.ndim - 1))
    return [lattice.join(c, spread), lengths]
