"""Embedding bags: sums, means and maxima of the table rows that the indices of a bag name.

S(bag) = union over its indices of S(index) | S(row) | S(weight of the index), | S(offsets): where a bag ends
decides what is in it. What lies in which bag is read off the offsets; an index that is padding reads no row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, live
from causaltrace.rules.scatter import LAND_LIMIT, land

MEAN, MAX = 1, 2


def _bags(op: OpCall, count: int) -> Tensor:
    """The bag of each index. Empty bags start where the next one does."""
    offsets = op.args.get("offsets")
    if not isinstance(offsets, Tensor):
        return op.tensor("offset2bag").long()
    places = torch.arange(op.tensor("indices").numel(), device=offsets.device, dtype=offsets.dtype)
    found = torch.searchsorted(offsets[:count].contiguous(), places, right=True)
    return found.sub(1).clamp(min=0)


def _column(op: OpCall, c: Cells | None) -> Cells | None:
    """The supports of a vector, one a row."""
    return None if c is None else op.lattice.unsqueeze(c, 1)


def _rows(op: OpCall, c: Cells | None, places: Tensor) -> Cells | None:
    """Rows of ``c [rows, columns]`` at places."""
    if c is None or c.dims[0] == 1:
        return c
    return op.lattice.move(c, lambda data: data[places], held=places.numel() * 8)


def _landed(op: OpCall, c: Cells | None, rows: Tensor, count: int) -> Cells | None:
    """``c [places, columns]`` joined into the rows that are named, of ``count``."""
    if c is None:
        return None
    last = c.dims[-1]
    if count * last > LAND_LIMIT:
        return op.lattice.everything(c, 2)
    places = rows.unsqueeze(-1) * last + torch.arange(last, device=rows.device)
    return land(op, None, c, (count, last), places, places.shape, False)


def _layout(op: OpCall) -> Cells | None:
    """What the borders of the bags depend on."""
    lattice = op.lattice
    return lattice.join(*[lattice.everything(op.cells(name)) for name in ("offsets", "offset2bag")])


def _contested(op: OpCall, bag: Tensor, count: int) -> Tensor:
    """``[count, 1]``: does a bag hold indices of more than one row? Else no value decides which one wins."""
    index = op.tensor("indices")
    counts = index != op.get("padding_idx", -1)
    low = torch.full((count,), torch.iinfo(index.dtype).max, device=index.device, dtype=index.dtype)
    low = low.scatter_reduce(0, bag[counts], index[counts], "amin")
    high = torch.full_like(low, -1).scatter_reduce(0, bag[counts], index[counts], "amax")
    return (low < high).unsqueeze(1)


def _of_bags(op: OpCall, c: Cells | None, t: Tensor) -> Cells | None:
    """``c [bags, columns]`` as the support of a result of other dims."""
    if c is None or t.ndim == 2:
        return c
    c = op.lattice.reduce(c, [1], keepdim=False)
    return c if c is None or c.dims[0] in (1, t.shape[0]) else op.lattice.everything(c, 1)


def forward(op: OpCall) -> Result:
    """(out, offset2bag, bag_size, max_indices)."""
    lattice, index = op.lattice, op.tensor("indices")
    out, *rest = op.out
    count = out.shape[0]
    if not count:
        return [None] * len(op.out)
    bag, layout = _bags(op, count), lattice.everything(_layout(op), 2)
    read = lattice.join(_rows(op, op.cells("weight"), index), _column(op, op.cells("per_sample_weights")))
    read = lattice.keep(read, (index != op.get("padding_idx", -1)).unsqueeze(1))
    read, named = (_landed(op, c, bag, count) for c in (read, _column(op, op.cells("indices"))))
    # how many indices are no padding, and (max) which one won
    sizes = chosen = lattice.join(named if op.get("padding_idx", -1) >= 0 else None, layout)
    if op.get("mode", 0) == MAX:
        read = None if read is None else lattice.aligned(read, 2)
        chosen = lattice.join(lattice.keep(read, _contested(op, bag, count)), named, layout)
    made = [_of_bags(op, c, t) for c, t in zip((layout, sizes, chosen), rest, strict=True)]
    return [lattice.join(read, named, layout), *made]


def backward(op: OpCall) -> Result:
    """Gradient of the table: each index's row gets S(gradient of its bag) | S(weight of the index), and every
    row S(index), which could have pointed there, but for the row of the padding, which gets nothing. A bag
    without gradient changes nothing: S(gradient) vouches for it (unless gradients are scaled by how often a
    row was read)."""
    lattice, index, grad = op.lattice, op.tensor("indices"), op.tensor("grad")
    count, mode = grad.shape[0], int(op.get("mode", 0))
    if not count or not index.numel():
        return None
    out = _max_backward(op) if mode == MAX else _sum_backward(op, mode == MEAN)
    padding = op.get("padding_idx", -1)
    if out is None or padding < 0:
        return out
    rows = torch.arange(int(op.args["num_weights"]), device=grad.device)
    return lattice.keep(out, (rows != padding).unsqueeze(1))


def _sum_backward(op: OpCall, mean: bool) -> Cells | None:
    lattice, index, grad = op.lattice, op.tensor("indices"), op.tensor("grad")
    bag, rows = _bags(op, grad.shape[0]), int(op.args["num_weights"])
    alive = live(grad, (0,))[bag]
    own, named = _rows(op, op.cells("grad"), bag), _column(op, op.cells("indices"))
    sizes = _rows(op, _column(op, op.cells("bag_size")), bag) if mean else None
    scaled = lattice.join(_column(op, op.cells("per_sample_weights")), sizes)
    everywhere = lattice.everything(_layout(op), 2)
    if op.get("scale_grad_by_freq", False):  # one index more halves the gradient of every other one
        everywhere = lattice.join(everywhere, lattice.everything(named, 2))
    else:
        named = lattice.keep(named, alive)
    values = lattice.join(own, lattice.keep(scaled, alive))
    if values is not None and not values.uniform:
        vouching = None if op.cells("indices") is None else lattice.keep(own, ~alive)
        everywhere = lattice.join(everywhere, lattice.everything(vouching, 2))
        values = lattice.keep(values, (index != op.get("padding_idx", -1)).unsqueeze(1))
        values = _landed(op, values, index, rows)
    else:
        values = lattice.everything(values, 2)
    return lattice.join(values, lattice.everything(named, 2), everywhere)


def _max_backward(op: OpCall) -> Cells | None:
    """Column by column: the row that won gets S(gradient), the rows that the bag names S(which one won), and
    every row S(index)."""
    lattice, index, grad = op.lattice, op.tensor("indices"), op.tensor("grad")
    best, own = op.tensor("maximum_indices"), op.cells("grad")
    bag, rows, columns = _bags(op, len(best)), int(op.args["num_weights"]), grad.shape[1]
    won = lattice.join(op.cells("maximum_indices"), _column(op, op.cells("bag_size")))
    alive = grad != 0
    named = lattice.join(_landed(op, _column(op, op.cells("indices")), bag, len(best)),
                         lattice.everything(_layout(op), 2))  # fmt: skip
    everywhere = lattice.keep(named, alive)
    if won is not None or named is not None:
        everywhere = lattice.join(everywhere, lattice.keep(own, ~alive))
    won = lattice.keep(won, alive)
    if won is not None and not won.uniform:
        won = _landed(op, _rows(op, won, bag), index, rows)
    out = lattice.join(won, lattice.reduce(everywhere, [0]))
    filled = (op.tensor("bag_size")[: len(best)] != 0).unsqueeze(1)
    own = lattice.keep(own, filled)
    if own is None or own.uniform or rows * columns > LAND_LIMIT:
        return lattice.join(lattice.everything(own, 2), out)
    places = torch.where(filled, best.long(), 0) * columns + torch.arange(columns, device=best.device)
    return lattice.join(land(op, None, own, (rows, columns), places, places.shape, False), out)


def weights_backward(op: OpCall) -> Result:
    """Gradient of the weight of index i = gradient of its bag . its row: S(gradient of the bag) | S(row) |
    S(index i), the latter two only where there is a gradient. At the padding it is 0 because of the index."""
    lattice, index, grad = op.lattice, op.tensor("indices"), op.tensor("grad")
    bag, counts = _bags(op, grad.shape[0]), index != op.get("padding_idx", -1)
    alive = live(grad, (0,))[bag].squeeze(-1)
    read = lattice.reduce(_rows(op, op.cells("weight"), index), [1], keepdim=False)
    own = lattice.reduce(_rows(op, op.cells("grad"), bag), [1], keepdim=False)
    read = lattice.keep(lattice.join(lattice.keep(read, alive), own), counts)
    named = lattice.keep(op.cells("indices"), alive | ~counts)
    return lattice.join(read, named, lattice.everything(_layout(op), 1))
