"""Which operations treat all slots of a sorted order alike, and which put items back (see ``order``).

``op`` is the operation with ``own`` as the support of every ordered argument. Its usual rule then gives what
the results depend on, given which item is in which slot; here it is decided whether that may be used, and
what for. Anything not named here loses the order, and keeps the support of all that was sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.order import (
    COLUMN,
    COUNTS,
    ENDS,
    INVERSE,
    ITEMS,
    KEYS,
    MASK,
    PERMUTATION,
    PLACES,
    Arrangement,
    Order,
)
from causaltrace.rules import index, matmul, move, norm, reduce
from causaltrace.rules.call import OpCall, Result, known

Orders = Mapping[int, Order]
#: Integers survive in these.
LOSSLESS = (torch.int32, torch.int64, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)
SLOTS = (ITEMS, PERMUTATION, KEYS, PLACES, COLUMN)
#: Operations that put items into slots.
MAKERS = ("sort", "nonzero")
#: Those that take a mask for the places where it is true.
MASKED = ("nonzero", "index", "index_put", "masked_select", "masked_scatter")
#: Rules that take slots from what has none itself.
CHOOSING = ((matmul.grouped_mm, ENDS), (index.index, MASK), (index.masked_select, MASK))


class Followed(NamedTuple):
    """``orders``: of each result. ``settled``: their supports, where the order has cancelled out."""

    orders: list[Order | None]
    settled: list[Cells | None] | None = None


NOTHING = Followed([])


def masks(name: str, args: Mapping[str, Any]) -> list[Tensor]:
    """Masks that choose what an operation reads or writes."""
    if name not in MASKED:
        return []
    if name == "nonzero":
        return [args["self"]] if args["self"].ndim else []
    if name in ("masked_select", "masked_scatter"):
        mask = args["mask"]
        return [mask] if mask.shape == args["self"].shape != () and known(mask) else []
    return [t for t in args["indices"] if t is not None and t.dtype == torch.bool and t.ndim and known(t)]


def of_mask(mask: Tensor, chosen: Mapping[str, Cells | None]) -> Order:
    """The order of what a mask chooses, for as long as the mask is what it is."""
    return Order(
        Arrangement(int(mask.count_nonzero()), chosen=chosen, sizes=tuple(mask.shape)), MASK, 0, None
    )


def through(op: OpCall, rule: Callable[[OpCall], Result], pointwise: bool, orders: Orders) -> Followed:
    """What becomes of the orders of the arguments in this operation."""
    if op.name == "sort":
        return _sort(op, orders)
    if op.name == "nonzero":
        return _places(op, orders)
    if op.name in ("histc", "bincount", "cumsum"):
        found = _counted(op, orders)
        if found is not None:
            return Followed([found])
    if op.name in ("index_put", "scatter"):
        inverse = _inverse(op, orders)
        if inverse is not None:
            return Followed([inverse])
    back = _puts_back(op, orders)
    if back is not None:
        return Followed([], [op.lattice.join(c, _chosen(op, *back)) for c in _results(rule(op))])
    if rule is move.same:
        return _same(op, orders)
    shifted = _shifted(op, orders) if op.name in ("add", "sub") else None
    if shifted is not None:
        return Followed([shifted])
    known = [o for t in op.inputs() if (o := orders.get(id(t))) is not None]
    slots = [o for o in known if o.role in SLOTS or (rule, o.role) in CHOOSING]
    if not known or len(slots) < len(known) or len({id(o.arrangement) for o in known}) > 1:
        return NOTHING
    dim = _aligned(op, orders) if pointwise or rule in (move.where, move.masked_fill) else None
    if rule in ALIKE:
        dim = ALIKE[rule](op, orders)
    if dim is None:
        return NOTHING
    cells = _results(rule(op))
    if rule is matmul.grouped_mm:  # whose weights a slot meets follows from its key
        cells = [op.lattice.join(c, _column(op, known[0].arrangement.keys)) for c in cells]
    first = _counts_up(op) if known[0].role == MASK else None
    role = ITEMS if first is None else COLUMN
    return Followed([Order(known[0].arrangement, role, dim, c, shift=first or 0) for c in cells])


def _results(result: Result) -> list[Cells | None]:
    return result if isinstance(result, list) else [result]


def _slots(orders: Orders, t: object, dim: int | None = None) -> Order | None:
    """The order of a tensor that holds items in slots (along ``dim``)."""
    order = orders.get(id(t)) if isinstance(t, Tensor) else None
    return order if order is not None and order.role in SLOTS and dim in (None, order.dim) else None


# -- orders come about ------------------------------------------------------------------------------------


def _sort(op: OpCall, orders: Orders) -> Followed:
    """A sorted vector: a new permutation, or, of a permutation, its inverse."""
    x, c = op.tensor("self"), op.cells("self")
    before = orders.get(id(x))
    descending = bool(op.get("descending", False))
    if before is not None and before.role == PERMUTATION and not descending:
        return Followed([None, Order(before.arrangement, INVERSE, 0, None)])
    if before is not None or c is None or x.ndim != 1 or len(x) < 2:
        return NOTHING
    places: Tensor = op.out[1]
    # which item is in which slot may be unknown: any order shows what an order cancels out to
    own = (
        c
        if c.uniform or not known(places)
        else op.lattice.move(c, lambda data: data[places], held=places.numel() * 8)
    )
    permutation = Arrangement(len(x), own)
    role = KEYS if not descending and not x.is_floating_point() else ITEMS
    return Followed([Order(permutation, role, 0, own), Order(permutation, PERMUTATION, 0, None)])


def _places(op: OpCall, orders: Orders) -> Followed:
    """Where a mask is true, in order: which items there are follows from the mask at their own places."""
    order, out = orders.get(id(op.args["self"])), op.out  # a matrix, or numpy's columns
    if order is None or order.role != MASK:
        return NOTHING
    if isinstance(out, Tensor) and out.ndim == 2:
        return Followed([Order(order.arrangement, PLACES, 0, None)])
    return Followed([Order(order.arrangement, COLUMN, 0, None, d) for d in range(len(op.outputs()))])


def _counted(op: OpCall, orders: Orders) -> Order | None:
    """How many of each key, and where each key ends: the same for every order of the keys."""
    order = orders.get(id(op.args["self"]))
    if order is None:
        return None
    if order.role == KEYS and op.name == "bincount" and op.get("weights") is None:
        return order._replace(role=COUNTS, own=None)
    if order.role == KEYS and op.name == "histc":
        whole = op.get("min", 0) == 0 and op.get("max", 0) == op.get("bins", 100) - 1
        if not whole or bool((op.tensor("self") < 0).any()):  # keys left out at the start shift all others
            return None
        return order._replace(role=COUNTS, own=None)
    if order.role == COUNTS and op.name == "cumsum":
        return order._replace(role=ENDS)
    return None


def _inverse(op: OpCall, orders: Orders) -> Order | None:
    """out[permutation] = 0, 1, 2, ...: the slot of each item."""
    x = op.tensor("self")
    if op.name == "index_put":
        indices, values = op.args["indices"], op.args["values"]
        place = indices[0] if len(indices) == 1 else None
    else:
        place, values = op.args["index"], op.args.get("src")
    order = orders.get(id(place))
    if order is None or order.role != PERMUTATION or x.ndim != 1 or len(x) != order.arrangement.size:
        return None
    if (
        op.get("accumulate")
        or op.get("reduce")
        or not isinstance(values, Tensor)
        or op.of(values) is not None
    ):
        return None
    numbers = torch.arange(len(x), device=x.device)
    if values.shape != x.shape or not torch.equal(values, numbers.to(values.dtype)):  # waits for a device
        return None
    return Order(order.arrangement, INVERSE, 0, None)


def _same(op: OpCall, orders: Orders) -> Followed:
    """Copies and casts that keep integers apart."""
    order = orders.get(id(op.args["self"]))
    if order is None:
        return NOTHING
    kept = isinstance(op.out, Tensor) and op.out.dtype in LOSSLESS
    if not kept and order.role not in SLOTS:
        return NOTHING
    return Followed([order if kept else order._replace(role=ITEMS)])


def _shifted(op: OpCall, orders: Orders) -> Order | None:
    """Places, and the same number more for all of them."""
    x, by = op.args["self"], op.args.get("other")
    if op.name == "add" and id(by) in orders:
        x, by = by, x
    order = orders.get(id(x))
    if order is None or order.role != COLUMN or op.get("alpha", 1) != 1 or op.out.shape != x.shape:
        return None
    if isinstance(by, Tensor):
        if by.numel() != 1 or by.dtype not in INTEGERS or id(by) in orders or op.of(by) or not known(by):
            return None
        by = int(by)
    if type(by) is not int or op.out.dtype not in INTEGERS:
        return None
    return order._replace(shift=order.shift + (by if op.name == "add" else -by))


# -- orders cancel out ------------------------------------------------------------------------------------


def _puts_back(op: OpCall, orders: Orders) -> tuple[Order, int] | None:
    """Reads of slots by the inverse permutation; writes of slots where their items say. The order that says
    so, and the dim of the result where the items are; None: neither."""
    x = op.args.get("self")
    if op.name in ("index", "index_select"):
        places = op.args["indices"] if op.name == "index" else _at(op.args["index"], op.dim())
        given = [(d, t) for d, t in enumerate(places) if t is not None]
        dim, index = given[0]
        order, known = _slots(orders, x, dim), orders.get(id(index))
        if len(given) > 1 or index.ndim != 1 or order is None or known is None or known.role != INVERSE:
            return None
        return (known, dim) if known.arrangement is order.arrangement else None
    if id(x) in orders or not isinstance(x, Tensor) or not x.ndim:
        return None
    if op.name == "masked_scatter":
        target, values = orders.get(id(op.args["mask"])), op.tensor("source")
        source = _slots(orders, values, 0)
        if target is None or not values.numel():  # nothing is written: the mask says so, place by place
            return target and (target, 0)
        alike = source is not None and target.arrangement is source.arrangement
        return (target, 0) if alike and values.ndim == 1 else None
    if op.name == "index_put":
        given = [(d, t) for d, t in enumerate(op.args["indices"]) if t is not None]
        if len(given) != 1:
            return None
        (dim, index), values, adds = given[0], op.tensor("values"), bool(op.get("accumulate", False))
    elif op.name in ("index_add", "index_copy"):
        dim, index, values, adds = op.dim(), op.tensor("index"), op.tensor("source"), op.name == "index_add"
    elif op.name in ("scatter_add", "scatter") and isinstance(op.args.get("src"), Tensor):
        dim, index, values, adds = op.dim(), op.tensor("index"), op.tensor("src"), op.name == "scatter_add"
        if op.get("reduce") is not None or index.shape != values.shape:
            return None
    else:
        return None
    target, source = orders.get(id(index)), _slots(orders, values)
    if target is None or target.role not in (*SLOTS, MASK):
        return None
    if target.role == MASK and index.shape != x.shape[dim : dim + index.ndim]:
        return None
    if target.role == COLUMN:
        size = target.arrangement.sizes[target.column]
        if not 0 <= target.shift <= x.shape[dim] - size:
            return None
    if id(values) not in orders and target.role in (COLUMN, MASK) and _alike(values, x, dim, index):
        return target, dim  # the same is written to all places
    if source is None or target.arrangement is not source.arrangement:
        return None
    if target.role == MASK:
        behind = x.ndim - dim - index.ndim
        inside = values.ndim - 1 - source.dim == behind or target.arrangement.size == 1  # which is on any dim
        return (target, dim) if inside else None
    rows = (dim if op.name.startswith("scatter") else 0, dim)
    elsewhere = (target.dim, source.dim) != rows or values.ndim != x.ndim
    if elsewhere and target.arrangement.size > 1:  # a single slot may be on any dim, or on none
        return None
    if target.role == COLUMN:
        return target, dim
    if target.arrangement.chosen is not None or not adds and target.role != PERMUTATION:
        return None  # where items that were not chosen would go; or, the last slot to write wins
    return target, dim


def _alike(values: Tensor, x: Tensor, dim: int, index: Tensor) -> bool:
    """Are values that are written at ``index`` the same for all slots?"""
    behind = x.ndim - dim - (index.ndim if index.dtype == torch.bool else 1)
    return values.ndim <= behind or values.shape[-1 - behind] < 2


def _counts_up(op: OpCall) -> int | None:
    """n, n + 1, n + 2, ...: what is chosen of it are the places, and n more."""
    x = op.tensor("self")
    if x.ndim != 1 or x.dtype not in INTEGERS or op.of(x) is not None or not len(x) or not known(x):
        return None
    first = int(x[0])
    return first if bool((x - first == torch.arange(len(x), device=x.device)).all()) else None


def _chosen(op: OpCall, order: Order, dim: int) -> Cells | None:
    """What decides which items are written to each index of ``dim``: the mask at their places."""
    if order.arrangement.chosen is None:
        return None
    chosen, lattice, ndim = order.arrangement.chosen[op.plane], op.lattice, op.tensor("self").ndim
    sizes = order.arrangement.sizes
    if chosen is not None and order.role != MASK:
        chosen = lattice.reduce(chosen, [d for d in range(len(sizes)) if d != order.column])
    if chosen is None:
        return None
    dims = chosen.dims if order.role == MASK else chosen.dims[order.column : order.column + 1]
    behind = ndim - dim - len(dims)
    chosen = lattice.reshaped(chosen, (1,) * dim + tuple(dims) + (1,) * behind)
    places = op.tensor("self").shape[dim]
    if order.role != COLUMN or sizes[order.column] == places:
        return chosen
    size, start = sizes[order.column], order.shift

    def fn(data: Tensor) -> Tensor:
        shape = list(data.shape)
        shape[dim] = places
        out = data.new_full(shape, lattice.lattice.bottom)
        out.narrow(dim, start, size).copy_(data)
        return out

    return lattice.move(chosen, fn)


def _at(index: Tensor, dim: int) -> list[Tensor | None]:
    return [None] * dim + [index]


# -- operations that treat slots alike --------------------------------------------------------------------

#: Random numbers are drawn slot by slot.
DRAWN = ("normal", "bernoulli", "dropout", "native_dropout", "rrelu_with_noise")


def _aligned(op: OpCall, orders: Orders) -> int | None:
    """Element-wise: slots on one dim of all ordered operands, along which the others do not vary."""
    out = op.out
    if isinstance(out, (tuple, list)) or not isinstance(out, Tensor) or op.name in DRAWN:
        return None
    known = [(t, o) for t in op.inputs() if (o := orders.get(id(t))) is not None]
    right = {t.ndim - o.dim for t, o in known}
    if len(right) != 1:
        return None
    back = right.pop()
    for t in op.inputs():
        if id(t) not in orders and t.ndim >= back and t.shape[-back] != 1:
            return None
    return out.ndim - back


def _reduced(op: OpCall, orders: Orders) -> int | None:
    """Reductions over other dims."""
    x = op.tensor("self")
    order = orders.get(id(x))
    dims = op.dims()
    if order is None or order.dim in dims:
        return None
    return order.dim if op.get("keepdim", False) else order.dim - sum(d < order.dim for d in dims)


def _padded(op: OpCall, orders: Orders) -> int | None:
    """Padding of other dims."""
    x, widths = op.tensor("self"), list(op.args["pad"])
    order = orders.get(id(x))
    if order is None or any(w for i, w in enumerate(widths) if x.ndim - 1 - i // 2 == order.dim):
        return None
    return order.dim


def _along(op: OpCall, orders: Orders) -> int | None:
    """Softmaxes, running sums and the like along another dim."""
    order = orders.get(id(op.tensor("self")))
    return None if order is None or order.dim == op.dim(-1) else order.dim


def _normalised(op: OpCall, orders: Orders) -> int | None:
    """Norms of each row; weight and bias are for the row's elements."""
    x = op.tensor("input")
    order = orders.get(id(x))
    if order is None or len(orders) != 1:
        return None
    return order.dim if order.dim < x.ndim - len(op.args["normalized_shape"]) else None


def _rows(op: OpCall, orders: Orders) -> int | None:
    """Rows times a matrix."""
    name = next(n for n in ("mat1", "batch1", "input", "self") if n in op.args)
    x = op.tensor(name)
    order = orders.get(id(x))
    if order is None or order.dim == x.ndim - 1 or x.ndim == 3 and name != "input" and order.dim != 1:
        return None
    if any(id(t) in orders for t in op.inputs() if t is not x and t is not op.args.get("offs")):
        return None
    bias = op.args.get("self") if name in ("mat1", "batch1") else None
    if isinstance(bias, Tensor) and bias.ndim > 1 and bias.shape[-2] != 1:
        return None
    return order.dim


def _grouped(op: OpCall, orders: Orders) -> int | None:
    """Rows times the matrix of their group, where the groups are the keys that they were sorted by."""
    ends = orders.get(id(op.args.get("offs")))
    rows = orders.get(id(op.args["self"]))
    if ends is None or rows is None or ends.role != ENDS or ends.arrangement is not rows.arrangement:
        return None
    if op.tensor("self").ndim != 2 or op.tensor("mat2").ndim != 3 or rows.dim != 0:
        return None
    return _rows(op, orders)


def _read(op: OpCall, orders: Orders) -> int | None:
    """Reads by index: every item reads from the same table."""
    if op.name == "embedding":
        order = orders.get(id(op.args["indices"]))
        return order.dim if order is not None and len(orders) == 1 else None
    if id(op.args["self"]) in orders:
        return None
    if (
        op.name == "index"
        and (used := [t for t in op.args["indices"] if t is not None])[0].dtype == torch.bool
    ):
        return op.args["indices"].index(used[0]) if len(used) == 1 and id(used[0]) in orders else None
    places = op.args["indices"] if op.name in ("index", "_unsafe_index") else _at(op.args["index"], op.dim())
    used = [(d, t) for d, t in enumerate(places) if t is not None]
    first = _slots(orders, used[0][1])
    if first is None or any(_slots(orders, t, first.dim) is None for _, t in used):
        return None
    if any(t.shape != used[0][1].shape or t.dtype == torch.bool or t.dtype == torch.uint8 for _, t in used):
        return None
    together = used[-1][0] - used[0][0] == len(used) - 1
    return first.dim + (used[0][0] if together else 0)


def _selected(op: OpCall, orders: Orders) -> int | None:
    """What a mask chooses of the elements of another tensor."""
    return 0 if len(orders) == 1 and id(op.args["mask"]) in orders else None


def _column(op: OpCall, keys: Cells | None) -> Cells | None:
    """The keys of slots along dim 0 of a matrix."""
    return None if keys is None else op.lattice.unsqueeze(keys, 1)


#: Rule -> the dim of the results that holds the slots, or None.
ALIKE: dict[Callable[[OpCall], Result], Callable[[OpCall, Orders], int | None]] = {
    move.pad: _padded,
    reduce.over: _reduced,
    reduce.several: _reduced,
    reduce.folded: _reduced,
    reduce.where: _reduced,
    reduce.chosen: _reduced,
    reduce.one_dim: _along,
    reduce.running: _along,
    norm.layer_norm: _normalised,
    norm.rms_norm: _normalised,
    norm.fused_rms_norm: _normalised,
    matmul.mm: _rows,
    matmul.addmm: _rows,
    matmul.linear: _rows,
    matmul.grouped_mm: _grouped,
    index.index: _read,
    index.index_select: _read,
    index.masked_select: _selected,
    index.embedding: _read,
}
