"""Writes by index: S(old) | S(new) where it landed | S(indices) wherever they could have pointed.

Given the indices, where values land is fixed, so the values' supports land with them; the indices' own
supports go to every place that could have been written, not only to the one that was. A value of exactly 0
that is added changes nothing wherever it lands: it vouches for its index with its own support.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, known, live, varied
from causaltrace.rules.index import _narrowed, clamped, index_cells

#: Elements of a shadow that a landing may spell out; larger ones get one joined value.
LAND_LIMIT = 1 << 22


def land(
    op: OpCall, base: Cells | None, new: Cells | None, shape: Sequence[int], places: Tensor,
    value_shape: Sequence[int], overwrite: bool,
) -> Cells | None:  # fmt: skip
    """``base [*shape]`` with ``new [*value_shape]`` joined in (or put) at the flat ``places``."""
    parents = [c for c in (base, new) if c is not None]
    if not parents or new is None and not overwrite:
        return base
    ids = places.reshape(-1).to(parents[0].data.device)
    total = torch.Size(shape).numel()
    bottom = op.lattice.lattice.bottom  # all that history needs of ``op``: it keeps no tensors alive

    def fn(*data: Tensor) -> Tensor:
        width = data[0].shape[-1]
        if base is None:
            flat = torch.full((total, width), bottom, dtype=data[0].dtype, device=data[0].device)
        else:
            flat = data[0].expand(*shape, width).reshape(total, width).clone()
            if overwrite:
                flat[ids] = bottom
        if new is not None:
            put = data[-1].to(flat.device).expand(*value_shape, width).reshape(-1, width)
            flat.scatter_reduce_(0, ids.unsqueeze(-1).expand(-1, width), put, "amax")
        return flat.view(*shape, width)

    return op.lattice.make(fn, *parents, share=base is not None, held=ids.numel() * 8)


def _numbers(shape: Sequence[int], device: torch.device) -> Tensor:
    """Every element's flat place."""
    return torch.arange(torch.Size(shape).numel(), device=device).view(tuple(shape))


def _vouched(
    op: OpCall, index: Cells | None, values: Tensor | None, own: Cells | None
) -> tuple[Cells | None, Cells | None]:
    """Index supports without those of added zeros, and the supports of the zeros that vouch for them."""
    if index is None or values is None:
        return index, None
    mask = live(values, tuple(varied(index, ndim=values.ndim)))
    kept = op.lattice.keep(index, mask)
    return kept, own if kept is not index else None


# -- index_put --------------------------------------------------------------------------------------------


def index_put(op: OpCall) -> Result:
    """self with values written (or added) at the indices."""
    lattice = op.lattice
    x, values = op.tensor("self"), op.tensor("values")
    indices = list(op.args["indices"])
    base, new = op.cells("self"), op.cells("values")
    add = bool(op.get("accumulate", False))
    given = [t for t in indices if t is not None]
    one_mask = len(given) == 1 and given[0].dtype in (torch.bool, torch.uint8) and values.numel() == 1
    if one_mask and not add:
        return _masked_put(op, indices)
    big = x.numel() > LAND_LIMIT and (new is None or new.uniform)
    if big or not all(map(known, given)) or (new is None and (add or base is None)):
        out = lattice.join(base, lattice.everything(new, x.ndim))
    else:
        places = _numbers(x.shape, x.device)[tuple(slice(None) if t is None else t for t in indices)]
        spread = values.shape
        shape = torch.broadcast_shapes(spread, places.shape)
        aligned = None if new is None else lattice.aligned(new, len(shape))
        out = land(op, base, aligned, x.shape, places.expand(shape), shape, not add)
    if op.moves_values:
        out = lattice.join(out, _pointed(op, indices, x, values if add else None, new))
    return out


def masked_index_put(op: OpCall) -> Result:
    """self with values added at the indices where mask is true."""
    lattice, x = op.lattice, op.tensor("self")
    mask, values = op.tensor("mask"), op.tensor("values")
    indices = clamped(op.args["indices"], x.shape)
    base = op.cells("self")
    if not x.numel():
        return None
    new = lattice.join(lattice.keep(op.cells("values"), mask.bool()), op.cells("mask"))
    where = [lattice.everything(op.of(t)) for t in op.args["indices"]] if op.moves_values else []
    if x.numel() > LAND_LIMIT:
        out = lattice.join(base, lattice.everything(new, x.ndim))
    else:
        places = _numbers(x.shape, x.device)[tuple(slice(None) if t is None else t for t in indices)]
        shape = torch.broadcast_shapes(values.shape, places.shape)
        new = None if new is None else lattice.aligned(new, len(shape))
        out = land(op, base, new, x.shape, places.expand(shape), shape, False)
    return lattice.join(out, lattice.everything(lattice.join(*where), x.ndim))


def _masked_put(op: OpCall, indices: list[Tensor | None]) -> Cells | None:
    """x[mask] = one value: as masked_fill."""
    lattice, x = op.lattice, op.tensor("self")
    before = next(d for d, t in enumerate(indices) if t is not None)
    mask = indices[before]
    assert mask is not None
    dims = (1,) * before + tuple(mask.shape) + (1,) * (x.ndim - before - mask.ndim)
    chosen = mask.bool().reshape(dims)
    beside = live(~chosen, range(x.ndim))
    chosen = live(chosen, range(x.ndim))
    own = op.of(mask) if op.moves_values else None
    if own is not None:
        own = lattice.reshaped(own, (1,) * before + own.dims + (1,) * (x.ndim - before - mask.ndim))
    new = lattice.keep(lattice.everything(op.cells("values"), x.ndim), chosen)
    return lattice.join(lattice.keep(op.cells("self"), beside), new, own)


def _pointed(
    op: OpCall, indices: list[Tensor | None], x: Tensor, added: Tensor | None, new: Cells | None
) -> Cells | None:
    """S(indices) wherever they could have pointed: dims with a fixed index stay in place."""
    lattice = op.lattice
    labelled = [t for t in indices if t is not None and op.of(t) is not None]
    if not labelled:
        return None
    if any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in indices):
        if len(indices) == 1:
            return _masked(op, labelled[0], x)
        return lattice.everything(lattice.join(*[lattice.everything(op.of(t)) for t in labelled]), x.ndim)
    given = [t for t in indices if t is not None]
    shape = torch.broadcast_shapes(*[t.shape for t in given])
    own = lattice.aligned(lattice.join(*[op.of(t) for t in labelled]) or _never(), len(shape))
    fixed = [d for d, t in enumerate(indices) if t is not None and op.of(t) is None]
    if added is not None and added.ndim == len(shape) and len(given) == x.ndim:
        kept, vouching = _vouched(op, own, added.expand(shape), new)
        own_or_none = lattice.join(kept, None if vouching is None else lattice.aligned(vouching, len(shape)))
        if own_or_none is None:
            return None
        own = own_or_none
    if not fixed:
        return lattice.everything(own, x.ndim)
    sizes = [x.shape[d] if d in fixed else 1 for d in range(x.ndim)]
    numbers = _numbers(sizes, x.device)
    places = numbers[tuple(indices[d] if d in fixed else 0 for d in range(x.ndim))].expand(shape)
    return land(op, None, own, sizes, places, shape, False)


def _masked(op: OpCall, mask: Tensor, x: Tensor) -> Cells | None:
    """S(mask) at its places; where each true place has a value of its own, in the order of the places."""
    own, values = op.of(mask), op.tensor("values")
    tail = x.ndim - mask.ndim
    if own is not None and values.ndim > tail and values.shape[0] != 1:
        own = in_order(op, mask, own)
    return None if own is None else op.lattice.reshaped(own, (*own.dims, *(1,) * tail))


def _never() -> Cells:
    raise AssertionError("unreachable")


# -- scatter ----------------------------------------------------------------------------------------------


def scatter(op: OpCall) -> Result:
    """scatter, scatter_add, scatter_reduce: S(index) goes to the whole line along dim."""
    lattice = op.lattice
    x, index = op.tensor("self"), op.tensor("index")
    src = op.args.get("src", op.args.get("value"))
    base, new = op.cells("self"), op.of(src)
    if not index.numel():  # of any shape
        return base
    # without self even an added 0 changes something: it takes self's place
    with_self = op.get("include_self", True)
    adds = op.name == "scatter_add" or op.get("reduce") in ("sum", "add") and with_self
    overwrite = op.name == "scatter" and op.get("reduce") is None or not with_self
    if not x.ndim or not index.ndim:
        kept = None if overwrite and x.numel() == 1 else base
        return lattice.join(kept, lattice.everything(new), index_cells(op, x.numel()))
    dim = op.dim()
    if isinstance(src, Tensor) and src.ndim == x.ndim:
        src = src[tuple(slice(0, n) for n in index.shape)]
        new = None if new is None else _narrowed(op, new, index.shape, dim)
        if new is not None and new.dims[dim] not in (1, index.shape[dim]):
            new = lattice.move(new, lambda data: data.narrow(dim, 0, index.shape[dim]))
    elif new is not None:
        new = lattice.reshaped(new, (1,) * x.ndim)
    where = index_cells(op, x.shape[dim])
    vouching = None
    if adds and isinstance(src, Tensor):
        where, vouching = _vouched(op, where, src, new)
    cut = False
    if op.backward and overwrite and with_self and isinstance(src, Tensor) and src.ndim == x.ndim:
        # a gradient of 0 among zeros: wherever it lands, S(gradient) suffices
        moving = (src != 0) | (x[_leading(index, dim)] != 0).any(dim, keepdim=True)
        kept = lattice.keep(where, live(moving, tuple(varied(where, ndim=x.ndim))))
        where, cut = kept, kept is not where
    lines = lattice.join(where, vouching)
    out = base
    varies = _full(new, dim) or overwrite and _full(base, dim)
    if varies and not cut and known(index):
        out = _scattered(op, base, new, x, index, dim, overwrite)
    elif new is not None:
        lines = lattice.join(lines, new)
    return lattice.join(out, _padded(op, lattice.reduce(lines, [dim]), x, index, dim))


def _leading(index: Tensor, dim: int) -> tuple[slice, ...]:
    """The lines along ``dim`` that an index names."""
    return tuple(slice(None) if d == dim else slice(0, n) for d, n in enumerate(index.shape))


def _scattered(
    op: OpCall, base: Cells | None, new: Cells | None, x: Tensor, index: Tensor, dim: int, overwrite: bool
) -> Cells | None:
    """Values land where a fixed index says; dims along which neither varies stay compressed."""
    flat = [d for d in range(x.ndim) if d != dim and index.stride(d) == 0 and index.shape[d] == x.shape[d]]
    flat = [d for d in flat if not _full(new, d) and not _full(base, d)]
    for d in flat:
        index = index.narrow(d, 0, 1)
    sizes = [1 if d in flat else n for d, n in enumerate(x.shape)]
    numbers = _numbers(sizes, x.device)
    grid = torch.meshgrid(*[torch.arange(n, device=x.device) for n in index.shape], indexing="ij")
    places = numbers[tuple(index if d == dim else grid[d] for d in range(x.ndim))]
    return land(op, base, new, sizes, places, index.shape, overwrite)


def _padded(op: OpCall, c: Cells | None, x: Tensor, index: Tensor, dim: int) -> Cells | None:
    """The index may be shorter than self in the other dims: what lies beyond is not written."""
    if c is None:
        return None
    short = [d for d in range(x.ndim) if d != dim and index.shape[d] != x.shape[d]]
    if not short:
        return c
    wide = [index.shape[d] if d in short else c.dims[d] for d in range(x.ndim)]
    widths = [0, 0]
    for d in reversed(range(x.ndim)):
        widths += [0, x.shape[d] - index.shape[d] if d in short else 0]
    return op.lattice.move(c, lambda data: torch.constant_pad_nd(data.expand(*wide, -1), widths, -1))


# -- index_add, index_copy, index_fill --------------------------------------------------------------------


def index_write(op: OpCall) -> Result:
    """index_add, index_copy, index_fill, index_reduce: slices along dim land at the indices."""
    lattice = op.lattice
    x, index = op.tensor("self"), op.tensor("index")
    src = op.args.get("source", op.args.get("value"))
    base, new = op.cells("self"), op.of(src)
    if op.get("alpha", 1) == 0:
        return base
    overwrite = op.name in ("index_copy", "index_fill") or not op.get("include_self", True)
    if not x.ndim:
        kept = None if overwrite and index.numel() else base
        return lattice.join(kept, lattice.everything(new, 0))
    dim = op.dim()
    where = index_cells(op, x.shape[dim])
    sliced = isinstance(src, Tensor) and src.ndim == x.ndim
    new = new if sliced else lattice.everything(new, x.ndim)
    if where is not None:
        where = lattice.reshaped(
            where, tuple(where.data.numel() // where.data.shape[-1] if d == dim else 1 for d in range(x.ndim))
        )
    vouching = None
    if op.name == "index_add" and sliced and isinstance(src, Tensor):
        where, vouching = _vouched(op, where, src, new)
    pointed = lattice.reduce(lattice.join(where, vouching), [dim])
    sizes = [x.shape[d] if d == dim or _full(base, d) or _full(new, d) else 1 for d in range(x.ndim)]
    small = new is not None and torch.Size(sizes).numel() <= LAND_LIMIT
    if not (overwrite or small or _full(new, dim)) or not known(index):
        out = lattice.join(base, lattice.reduce(new, [dim]))
    else:
        numbers = _numbers(sizes, x.device)
        places = numbers.index_select(dim, index.reshape(-1))
        out = land(op, base, new, sizes, places, places.shape, overwrite)
    return lattice.join(out, pointed)


def _full(c: Cells | None, dim: int) -> bool:
    return c is not None and c.dims[dim] != 1


def embedding_backward(op: OpCall) -> Result:
    """Gradient of a table: a gradient lands in the row that its index names, S(index) in every row. A row of
    zero gradient changes nothing (unless gradients are scaled by how often a row was read)."""
    lattice = op.lattice
    grad, index = op.tensor("grad_output"), op.tensor("indices")
    own, where = op.cells("grad_output"), op.cells("indices")
    vouching = None
    if where is not None and not op.get("scale_grad_by_freq", False):
        some = live(grad, tuple(range(grad.ndim - 1)))
        where, vouching = lattice.keep(where, some[..., 0]), lattice.keep(own, ~some)
    rows = int(op.args["num_weights"])
    if own is None or own.uniform or rows * own.dims[-1] > LAND_LIMIT or not known(index):
        return lattice.join(lattice.everything(own, 2), lattice.everything(where, 2))
    last = own.dims[-1]
    places = index.unsqueeze(-1) * last + torch.arange(last, device=index.device)
    landed = land(op, None, own, (rows, last), places, places.shape, False)
    return lattice.join(landed, lattice.everything(where, 2), lattice.everything(vouching, 2))


# -- masked_scatter ---------------------------------------------------------------------------------------


def in_order(op: OpCall, mask: Tensor, own: Cells | None) -> Cells | None:
    """What a mask decides where elements fill its true places one after the other: S(mask) of all places up
    to a true one, and of itself only for a false one."""
    if own is None or own.uniform:
        return own
    shape = mask.shape
    wide = op.lattice.move(own, lambda data: data.expand(*shape, -1).reshape(-1, data.shape[-1]))
    before = op.lattice.running(wide, 0)
    assert before is not None
    return op.lattice.join(own, op.lattice.keep(op.lattice.reshaped(before, tuple(shape)), mask.bool()))


def masked_scatter(op: OpCall) -> Result:
    """self with source's elements, in order, where mask is true."""
    lattice, x = op.lattice, op.out if isinstance(op.out, Tensor) else op.tensor("self")
    mask = op.tensor("mask").expand(x.shape)
    source = op.tensor("source")
    count = int(mask.sum())
    new = op.cells("source")
    if new is not None:
        shape = tuple(source.shape)
        new = lattice.move(new, lambda data: data.expand(*shape, -1).reshape(-1, data.shape[-1])[:count])
    places = _numbers(x.shape, x.device)[mask]
    out = land(op, op.cells("self"), new, x.shape, places, places.shape, True)
    own = op.cells("mask") if op.moves_values else None
    return lattice.join(out, None if own is None else in_order(op, mask, lattice.aligned(own, x.ndim)))


def masked_scatter_backward(op: OpCall) -> Result:
    """The gradients where mask is true, in order, then zeros: S(mask) up to the place that was true."""
    lattice, grad = op.lattice, op.tensor("grad_output")
    mask = op.tensor("mask").expand(grad.shape)
    sizes = [int(n) for n in op.args["sizes"]]
    where = op.cells("mask")
    if where is not None:
        where = in_order(op, mask, lattice.aligned(where, grad.ndim))
    c = lattice.join(op.cells("grad_output"), where)
    if c is None:
        return None
    total, shape = torch.Size(sizes).numel(), tuple(grad.shape)
    beyond = lattice.everything(where)

    def fn(data: Tensor, *rest: Tensor) -> Tensor:
        chosen = data.expand(*shape, -1)[mask][:total]
        last = rest[0] if rest else data.new_full(data.shape[-1:], lattice.lattice.bottom)
        return torch.cat((chosen, last.expand(total - len(chosen), -1))).view(*sizes, -1)

    return lattice.make(fn, *[k for k in (c, beyond) if k is not None], held=mask.numel(), share=False)


def put(op: OpCall) -> Result:
    """put_: source lands at flat places; S(index) wherever it could have pointed."""
    lattice, x, index = op.lattice, op.tensor("self"), op.tensor("index")
    new = op.cells("source")
    if x.numel() > LAND_LIMIT:
        out = lattice.join(op.cells("self"), lattice.everything(new, x.ndim))
    else:
        places = index % max(1, x.numel())
        shape = op.tensor("source").shape  # any shape of as many elements
        out = land(op, op.cells("self"), new, x.shape, places, shape, not op.get("accumulate", False))
    return lattice.join(out, lattice.everything(index_cells(op, x.numel()), x.ndim))


def bincount(op: OpCall) -> Result:
    """How often each number is there, or the sum of the weights there: S(numbers) in every bin, S(weight) in
    the bin that it is added to."""
    lattice, x, out = op.lattice, op.tensor("self"), op.out
    assert isinstance(out, Tensor)
    weights = op.cells("weights")
    if len(out) > LAND_LIMIT:
        weights = lattice.everything(weights, 1)
    else:
        weights = land(op, None, weights, out.shape, x.long(), x.shape, False)
    return lattice.join(lattice.everything(op.cells("self"), 1), weights)
