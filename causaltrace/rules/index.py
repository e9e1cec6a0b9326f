"""Reads by index: S(index) | S(element read).

``op.selects`` marks a readout: a class picked at a verbatim label, whose result keeps the support of the
whole row and not that of the label.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, anywhere, known


def index_cells(op: OpCall, places: int) -> Cells | None:
    """S(index), where values are moved and where there is more than one place to choose from."""
    return op.cells("index") if op.moves_values and places > 1 else None


def embedding(op: OpCall) -> Result:
    """out[i] = S(index_i) | S(row index_i)."""
    lattice = op.lattice
    index, table = op.tensor("indices"), op.cells("weight")
    where = op.cells("indices") if op.tensor("weight").shape[0] > 1 else None
    where = None if where is None else lattice.unsqueeze(where, len(where.dims))
    table = anywhere(op, table, 0, index)
    if table is None:
        return where
    if table.dims[0] == 1:
        rows = lattice.reshaped(table, (1,) * index.ndim + (table.dims[1],))
    else:
        rows = lattice.move(table, lambda data: data[index], held=index.numel() * 8)
    return lattice.join(rows, where)


def _class_row(op: OpCall, c: Cells, dim: int) -> Cells:
    return op.lattice.reduce(c, [dim]) or c  # of no elements: as it is


def gather(op: OpCall) -> Result:
    """out[.., i, ..] = S(index) | S(self at index along dim); a readout takes the whole row instead."""
    lattice = op.lattice
    x, index = op.tensor("self"), op.tensor("index")
    c = op.cells("self")
    if not index.numel():  # of any shape
        return None
    if not x.ndim or not index.ndim:
        return _gathered_one(op, c, x.numel(), index)
    dim = op.dim()
    if c is not None:
        if op.selects and op.moves_values:
            c = _class_row(op, c, dim)
        c = _narrowed(op, c, index.shape, dim)
        c = anywhere(op, c, dim, index)
        assert c is not None
        if c.dims[dim] != 1:
            wide = [index.shape[d] if d == dim or c.dims[d] != 1 else 1 for d in range(x.ndim)]
            rest = [d for d in range(x.ndim) if d != dim and wide[d] == 1 and index.shape[d] != 1]
            if rest:  # the index varies where the support does not
                wide = list(index.shape)
            source = [c.dims[dim] if d == dim else wide[d] for d in range(x.ndim)]
            places = index.expand(wide) if not rest else index
            c = lattice.move(
                c,
                lambda data: torch.gather(
                    data.expand(*source, data.shape[-1]),
                    dim,
                    places.unsqueeze(-1).expand(*wide, data.shape[-1]),
                ),
                held=index.numel() * 8,
            )
    return lattice.join(c, index_cells(op, x.shape[dim]))


def _gathered_one(op: OpCall, c: Cells | None, places: int, index: Tensor) -> Cells | None:
    """From a number, wherever the index points; or from a vector with a single index."""
    lattice = op.lattice
    if c is not None and (c.uniform or op.selects and op.moves_values):
        c = lattice.everything(c, index.ndim)
    elif c is not None:
        c = lattice.move(c, lambda data: data[index]) if known(index) else lattice.everything(c, index.ndim)
    return lattice.join(c, index_cells(op, places))


def _narrowed(op: OpCall, c: Cells, shape: torch.Size, dim: int) -> Cells:
    """gather reads only the leading part of every other dim."""
    cut = [d for d in range(len(c.dims)) if d != dim and c.dims[d] not in (1, shape[d])]
    if not cut:
        return c
    slices = tuple(slice(0, shape[d]) if d in cut else slice(None) for d in range(len(c.dims)))
    return op.lattice.move(c, lambda data: data[slices])


def index_select(op: OpCall) -> Result:
    """out = self along dim at the indices."""
    lattice = op.lattice
    c, index = op.cells("self"), op.tensor("index")
    if not op.tensor("self").ndim:
        return c
    dim = op.dim()
    c = anywhere(op, c, dim, index)
    if c is not None and c.dims[dim] != 1:
        c = lattice.move(c, lambda data: data.index_select(dim, index), held=index.numel() * 8)
    where = index_cells(op, op.tensor("self").shape[dim])
    if where is not None:
        shape = [1] * op.tensor("self").ndim
        shape[dim] = where.data.shape[0] if len(where.dims) else 1
        where = lattice.reshaped(where, tuple(shape))
    return lattice.join(c, where)


def index(op: OpCall) -> Result:
    """self[indices]: advanced indexing with tensors (None: a whole dim), in torch's order of result dims."""
    lattice = op.lattice
    x = op.tensor("self")
    indices = list(op.args["indices"])
    c = op.cells("self")
    if c is not None:
        if op.selects and op.moves_values:  # a readout: the class dim is the last one indexed
            last = max(d for d, t in enumerate(indices) if t is not None)
            c = _class_row(op, c, last)
        for d, t in _spans(indices):
            c = c if t is None else anywhere(op, c, d, t)
            assert c is not None
        read = _fixed(indices)
        if any(c.dims[d] != 1 for d, t in _spans(indices) if t is not None):
            wide = [x.shape[d] if d in _indexed(indices) else c.dims[d] for d in range(x.ndim)]
            c = lattice.move(
                c, lambda data: _take(data.expand(*wide, data.shape[-1]), read), held=_held(read)
            )
        else:
            shape = _result_dims(x, indices, c)
            c = lattice.reshaped(c, shape)
    where = _selector(op, indices) if op.moves_values else None
    if where is not None:
        where = lattice.reshaped(where, (1,) * op.out.ndim) if isinstance(op.out, Tensor) else where
    exact = _index_cells(op, x, indices) if op.moves_values else None
    return lattice.join(c, exact if exact is not None else where)


def _fixed(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Indices that are not known point at the first place: the support is the same for all of them."""
    return [
        t if t is None or known(t) else torch.zeros((), dtype=torch.long).expand(t.shape) for t in indices
    ]


def _held(indices: Sequence[Tensor | None]) -> int:
    return sum(t.numel() * 8 for t in indices if t is not None)


def _spans(indices: Sequence[Tensor | None]) -> list[tuple[int, Tensor | None]]:
    """Which dim of self each index starts at (a bool mask takes as many dims as it has)."""
    out = []
    d = 0
    for t in indices:
        width = t.ndim if t is not None and t.dtype in (torch.bool, torch.uint8) else 1
        for i in range(width):
            out.append((d + i, t))
        d += width
    return out


def _indexed(indices: Sequence[Tensor | None]) -> set[int]:
    return {d for d, t in _spans(indices) if t is not None}


def _take(data: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    places = tuple(slice(None) if t is None else t for t in indices)
    return data[places]


def _result_dims(x: Tensor, indices: Sequence[Tensor | None], c: Cells) -> tuple[int, ...]:
    """Dims of the result when nothing varies along the indexed dims."""
    probe = torch.empty((), device="meta").expand(x.shape)
    expanded = _expanded(indices)
    shapes = torch.broadcast_shapes(*[t.shape for t in expanded if t is not None])
    used = [d for d, t in enumerate(expanded) if t is not None]
    front = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    rest = [c.dims[d] for d in range(probe.ndim) if d not in used]
    before = front if used == list(range(used[0], used[-1] + 1)) else 0
    return tuple(rest[:before] + [1] * len(shapes) + rest[before:])


def _expanded(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Bool masks as the index tensors that they stand for."""
    out: list[Tensor | None] = []
    for t in indices:
        if t is not None and t.dtype in (torch.bool, torch.uint8):
            out += list(t.nonzero().unbind(1))
        else:
            out.append(t)
    return out


def _selector(op: OpCall, indices: Sequence[Tensor | None]) -> Cells | None:
    """Everything that the indices depend on."""
    return op.lattice.join(*[op.lattice.everything(op.of(t)) for t in indices if t is not None])


def _index_cells(op: OpCall, x: Tensor, indices: Sequence[Tensor | None]) -> Cells | None:
    """Supports of integer indices, element by element, in the place of the indexed dims."""
    if any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in indices):
        return None  # which elements a mask selects depends on all of it
    lattice = op.lattice
    joined = lattice.join(*[op.of(t) for t in indices if t is not None])
    if joined is None:
        return None
    used = [d for d, t in enumerate(indices) if t is not None]
    n = max(t.ndim for t in indices if t is not None)
    joined = lattice.aligned(joined, n)
    together = used == list(range(used[0], used[-1] + 1))
    before = used[0] if together else 0
    after = x.ndim - len(used) - before
    return lattice.reshaped(joined, (1,) * before + joined.dims + (1,) * after)


def clamped(indices: Sequence[Tensor | None], sizes: Sequence[int]) -> list[Tensor | None]:
    """Indices as ``_unsafe_masked_index`` reads them: what points past an end points at it."""
    return [None if t is None else t.clamp(-n, n - 1) for t, n in zip(indices, sizes, strict=False)]


def masked_index(op: OpCall) -> Result:
    """self[indices] where mask is true, else a number."""
    lattice, x, mask = op.lattice, op.tensor("self"), op.tensor("mask")
    if not x.numel():
        return None
    indices, own = list(op.args["indices"]), op.cells("mask")
    places = clamped(indices, x.shape)
    given = {id(t): old for t, old in zip(places, indices, strict=True)}
    read = OpCall("index", {"self": x, "indices": places}, lambda t: op.of(given.get(id(t), t)), lattice,
                  op.plane, op.backward, op.out)  # fmt: skip
    c = index(read)
    assert not isinstance(c, list)
    return lattice.join(lattice.keep(c, mask.bool()), own if op.moves_values else None)


def masked_select(op: OpCall) -> Result:
    """x[mask] as a vector: elements move, and depend on the whole mask."""
    lattice = op.lattice
    x, mask = op.tensor("self"), op.tensor("mask")
    c = op.cells("self")
    shape = torch.broadcast_shapes(x.shape, mask.shape)
    if c is not None:
        c = lattice.move(
            c, lambda data: data.expand(*shape, data.shape[-1])[mask.expand(shape)], held=mask.numel()
        )
    where = lattice.everything(op.cells("mask"), 1) if op.moves_values else None
    return lattice.join(c, where)


def nonzero(op: OpCall) -> Result:
    """Where the nonzeros are depends on every element; so does how many there are (a host escape)."""
    c = op.lattice.everything(op.cells("self"))
    outs = op.out if isinstance(op.out, (tuple, list)) else [op.out]
    cells = [None if c is None else op.lattice.reshaped(c, (1,) * o.ndim) for o in outs]
    return cells if isinstance(op.out, (tuple, list)) else cells[0]


def nonzero_static(op: OpCall) -> Result:
    """Place k is that of the k-th nonzero, which the elements up to it decide; what is filled up depends on
    all of them, and beyond as many places as elements on none."""
    lattice, x, c = op.lattice, op.tensor("self"), op.cells("self")
    inside = torch.arange(op.out.shape[0], device=x.device).unsqueeze(1) < x.numel()
    nowhere = op.blind and x.is_floating_point() and bool(x.isnan().any())
    if c is None or c.uniform or nowhere:
        return lattice.keep(lattice.everything(c, 2), inside)
    shape = tuple(x.shape)
    flat = lattice.move(c, lambda data: data.expand(*shape, -1).reshape(-1, data.shape[-1]))
    found = (x.reshape(-1) != 0).nonzero()[: op.out.shape[0], 0]
    rest = op.out.shape[0] - len(found)
    places = torch.cat((found, found.new_full((rest,), x.numel() - 1)))
    up_to = lattice.running(flat, 0)
    assert up_to is not None
    out = lattice.move(up_to, lambda data: data[places].unsqueeze(1), held=places.numel() * 8)
    return lattice.keep(out, inside)


def distinct(op: OpCall) -> Result:
    """As ``nonzero``, for unique elements; where there is only one, its number and count are fixed."""
    made = nonzero(op)
    if op.tensor("self").numel() == 1 and isinstance(made, list):
        return [made[0], *(None for _ in made[1:])]
    return made


def take(op: OpCall) -> Result:
    """out[i] = S(index_i) | S(element index_i of the flattened tensor)."""
    lattice, x, index = op.lattice, op.tensor("self"), op.tensor("index")
    c = op.cells("self") if known(index) else lattice.everything(op.cells("self"), x.ndim)
    if c is not None and not c.uniform:
        shape = tuple(x.shape)
        c = lattice.move(
            c, lambda data: data.expand(*shape, -1).reshape(-1, data.shape[-1])[index], held=index.numel() * 8
        )
    elif c is not None:
        c = lattice.reshaped(c, (1,) * index.ndim)
    return lattice.join(c, index_cells(op, x.numel()))


def repeats(op: OpCall) -> Result:
    """repeat_interleave(repeats): indices that depend on all the counts."""
    return op.lattice.everything(op.cells("repeats"), 1)
