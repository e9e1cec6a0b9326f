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


def forward(op: OpCall) -> Result:
    """(out, offset2bag, bag_size, max_indices)."""
    lattice, index = op.lattice, op.tensor("indices")
    out, *rest = op.out
    count = out.shape[0]
    if not count:
        return [None] * len(op.out)
    bag, layout = _bags(op, count), _layout(op)
    read = lattice.join(_rows(op, op.cells("weight"), index), _column(op, op.cells("per_sample_weights")))
    read = lattice.keep(read, (index != op.get("padding_idx", -1)).unsqueeze(1))
    named = _column(op, op.cells("indices"))
    bags = lattice.join(
        _landed(op, lattice.join(read, named), bag, count),
        None if layout is None else lattice.reshaped(layout, (1, 1)),
    )
    # how many indices are no padding, and (max) which one won
    sizes = lattice.join(lattice.everything(named), layout)
    chosen = lattice.everything(bags) if op.get("mode", 0) == MAX else sizes
    made = [layout, sizes, chosen]
    return [bags] + [
        None if c is None else lattice.reshaped(c, (1,) * t.ndim) for c, t in zip(made, rest, strict=True)
    ]


def backward(op: OpCall) -> Result:
    """Gradient of the table: each index's row gets S(gradient of its bag) | S(weight of the index), and every
    row S(index), which could have pointed there. A bag without gradient changes nothing: S(gradient) vouches
    for it (unless gradients are scaled by how often a row was read)."""
    lattice, index, grad = op.lattice, op.tensor("indices"), op.tensor("grad")
    count, mode = grad.shape[0], int(op.get("mode", 0))
    if not count or not index.numel():
        return None
    bag, rows = _bags(op, count), int(op.args["num_weights"])
    alive = live(grad, (0,))[bag]
    own, named = _rows(op, op.cells("grad"), bag), _column(op, op.cells("indices"))
    scaled = lattice.join(
        _column(op, op.cells("per_sample_weights")),
        lattice.everything(op.cells("bag_size"), 2) if mode == MEAN else None,
    )
    everywhere = lattice.everything(_layout(op), 2)
    if op.get("scale_grad_by_freq", False):  # one index more halves the gradient of every other one
        everywhere = lattice.join(everywhere, lattice.everything(named, 2))
    else:
        named = lattice.keep(named, alive)
    values = lattice.join(own, lattice.keep(scaled, alive))
    if mode == MAX:
        winners = lattice.everything(op.cells("maximum_indices"), 2)
        return lattice.join(lattice.everything(values, 2), lattice.everything(named, 2), winners, everywhere)
    if values is not None and not values.uniform:
        vouching = None if op.cells("indices") is None else lattice.keep(own, ~alive)
        everywhere = lattice.join(everywhere, lattice.everything(vouching, 2))
        values = lattice.keep(values, (index != op.get("padding_idx", -1)).unsqueeze(1))
        values = _landed(op, values, index, rows)
    else:
        values = lattice.everything(values, 2)
    return lattice.join(values, lattice.everything(named, 2), everywhere)


def weights_backward(op: OpCall) -> Result:
    """Gradient of the weight of index i = gradient of its bag . its row: S(gradient of the bag) | S(row) |
    S(index i), the latter two only where there is a gradient."""
    lattice, index, grad = op.lattice, op.tensor("indices"), op.tensor("grad")
    bag = _bags(op, grad.shape[0])
    read = lattice.reduce(_rows(op, op.cells("weight"), index), [1], keepdim=False)
    read = lattice.keep(read, index != op.get("padding_idx", -1))
    read = lattice.keep(lattice.join(read, op.cells("indices")), live(grad, (0,))[bag].squeeze(-1))
    own = lattice.reduce(_rows(op, op.cells("grad"), bag), [1], keepdim=False)
    return lattice.join(own, read, lattice.everything(_layout(op), 1))
