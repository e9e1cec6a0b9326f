"""Movement: elements keep their values and change places, so every plane moves the same way.

The rule runs the same movement on the shadow. What an index or a condition depends on joins in on the
planes where that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, known, live, varied
from causaltrace.rules.pointwise import MASK_VALUE


def same(op: OpCall) -> Result:
    """out = self, element by element (clone, casts, copies)."""
    return op.cells("self")


def copy(op: OpCall) -> Result:
    """copy_: out = src, broadcast to self."""
    return op.cells("src")


def _data(c: Cells | None, t: Tensor, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    if c is not None:
        return c.data
    return torch.full((1,) * t.ndim + (width,), -1, device=device, dtype=dtype)


def _several(
    op: OpCall, tensors: Sequence[Tensor], fn: Callable[..., Tensor], full: bool = False, held: int = 0
) -> Cells | None:
    """``fn`` over the data of several tensors, bottom spelt out where it must be."""
    cells = [op.of(t) for t in tensors]
    known = next((c for c in cells if c is not None), None)
    if known is None:
        return None
    width, device, dtype = known.data.shape[-1], known.data.device, known.data.dtype
    blanks = [_data(None, t, width, device, dtype) for t in tensors]

    def over(*present: Tensor) -> Tensor:
        rest = iter(present)
        data = [next(rest) if c is not None else b for c, b in zip(cells, blanks, strict=True)]
        return fn(*data)

    return (
        op.lattice.move(known, fn)
        if len(cells) == 1
        else op.lattice.make(over, *[c for c in cells if c is not None], share=False, held=held)
    )


def cat(op: OpCall) -> Result:
    """out = the inputs one after the other along dim."""
    tensors = [t for t in op.args["tensors"] if t.numel() or t.ndim != 1]
    if not tensors:
        return None
    dim = int(op.get("dim", 0)) % tensors[0].ndim
    if all(op.of(t) is op.of(tensors[0]) for t in tensors):
        first = op.of(tensors[0])
        if first is None or first.dims[dim] == 1:
            return first
    sizes = [t.shape[dim] for t in tensors]

    def fn(*data: Tensor) -> Tensor:
        shape = [max(d.shape[i] for d in data) for i in range(data[0].ndim)]
        parts = []
        for d, size in zip(data, sizes, strict=True):
            shape[dim] = size
            parts.append(d.expand(shape))
        return torch.cat(parts, dim)

    return _several(op, tensors, fn)


def stack(op: OpCall) -> Result:
    """out[i] = tensor i."""
    tensors = op.args["tensors"]
    n = tensors[0].ndim + 1
    dim = int(op.get("dim", 0)) % n

    def fn(*data: Tensor) -> Tensor:
        shape = [max(sizes) for sizes in zip(*[d.shape for d in data], strict=True)]
        return torch.stack([d.expand(shape) for d in data], dim)

    return _several(op, tensors, fn)


def permuted(
    fn: Callable[[Tensor, OpCall], Tensor], touched: Callable[[OpCall], Sequence[int]]
) -> Callable[[OpCall], Result]:
    """A movement within the dims ``touched``; where the support is the same along all of them, nothing."""

    def rule(op: OpCall) -> Result:
        c = op.cells("self")
        if c is None:
            return None
        dims = touched(op)
        sizes = op.tensor("self").shape
        if all(c.dims[d] == 1 for d in dims):
            return c
        wide = [sizes[d] if d in dims else c.dims[d] for d in range(len(sizes))]
        return op.lattice.move(c, lambda data: fn(data.expand(*wide, data.shape[-1]), op))

    return rule


def _flipped(op: OpCall) -> list[int]:
    """No dims are none here, not all."""
    return op.dims("dims") if op.args["dims"] else []


flip = permuted(lambda data, op: data.flip(_flipped(op)), _flipped)


def _roll(data: Tensor, op: OpCall) -> Tensor:
    shifts, dims = op.args["shifts"], op.get("dims") or ()
    if not dims:
        shape = data.shape
        return data.reshape(-1, shape[-1]).roll(shifts, 0).reshape(shape)
    return data.roll(shifts, op.args["dims"] if min(dims) >= 0 else [d % (data.ndim - 1) for d in dims])


roll = permuted(_roll, lambda op: op.dims("dims"))


def repeat(op: OpCall) -> Result:
    """out = self tiled."""
    c = op.cells("self")
    if c is None:
        return None
    times = list(op.args["repeats"])
    x = op.tensor("self")
    c = op.lattice.aligned(c, len(times))
    sizes = (1,) * (len(times) - x.ndim) + tuple(x.shape)
    tiles = [t if n != 1 and c.dims[d] != 1 else 1 for d, (t, n) in enumerate(zip(times, sizes, strict=True))]
    return op.lattice.move(c, lambda data: data.repeat(*tiles, 1))


def pad(op: OpCall) -> Result:
    """constant_pad_nd: the padding depends on nothing."""
    c = op.cells("self")
    if c is None:
        return None
    widths = list(op.args["pad"])
    x = op.tensor("self")
    padded = [x.ndim - 1 - i // 2 for i, w in enumerate(widths) if w]
    wide = [x.shape[d] if d in padded else c.dims[d] for d in range(x.ndim)]
    return op.lattice.move(
        c,
        lambda data: torch.constant_pad_nd(
            data.expand(*wide, data.shape[-1]),
            [0, 0] + [w if (x.ndim - 1 - i // 2) in padded else 0 for i, w in enumerate(widths)],
            -1,
        ),
    )


def where(op: OpCall) -> Result:
    """out = the branch taken | S(condition); the branch not taken is cut."""
    lattice = op.lattice
    cond = op.tensor("condition") if "condition" in op.args else op.tensor("mask")
    yes, no = op.args.get("self"), op.args.get("other")
    return lattice.join(_choose(op, cond, yes, no), _condition(op, cond, yes, no))


def _condition(op: OpCall, cond: Tensor, yes: Any, no: Any) -> Cells | None:
    """S(condition); in a backward pass not where both branches are equal (a gradient of 0, or none): there
    S(both) suffices."""
    own, lattice = op.of(cond) if op.moves_values else None, op.lattice
    if own is None or not op.backward or yes is None or no is None:
        return own
    differs = torch.as_tensor(yes != no)
    kept = lattice.keep(own, live(differs, tuple(varied(own, ndim=differs.ndim))))
    if kept is own:
        return own
    both = [(op.of(t), ~differs) for t in (yes, no)]
    return lattice.join(kept, *[lattice.keep(c, live(m, tuple(varied(c, ndim=m.ndim)))) for c, m in both])


def _choose(op: OpCall, cond: Tensor, yes: Any, no: Any) -> Cells | None:
    """Elements of ``yes`` where ``cond``, else of ``no``."""
    lattice = op.lattice
    cy, cn = op.of(yes), op.of(no)
    if cy is cn:
        return cy
    if op.moves_values:
        dims = varied(cy, cn, ndim=cond.ndim) | _spread(cond, yes) | _spread(cond, no)
        if any(map(_hides, (yes, no))):  # scores of keys: each query has keys of its own
            dims |= {d for d in range(cond.ndim) if cond.shape[d] != 1 and cond.stride(d) != 0}
        picked_yes, picked_no = live(cond, tuple(dims)), live(~cond, tuple(dims))
        return lattice.join(lattice.keep(cy, _align(picked_yes, cy)), lattice.keep(cn, _align(picked_no, cn)))
    taken = live(cond, range(cond.ndim)), live(~cond, range(cond.ndim))
    return lattice.join(lattice.keep(cy, _align(taken[0], cy)), lattice.keep(cn, _align(taken[1], cn)))


def _hides(value: Any) -> bool:
    """Is this the value that hides a key from a softmax? Looked at on the host only."""
    if isinstance(value, Tensor):
        return known(value) and value.ndim == 0 and value.device.type == "cpu" and bool(value <= MASK_VALUE)
    return isinstance(value, float) and value <= MASK_VALUE


def _spread(cond: Tensor, branch: Any) -> set[int]:
    """The dims of a condition along which a branch is broadcast: it may be taken here and not there."""
    if not isinstance(branch, Tensor) or branch.numel() == 1:
        return set()
    shift = cond.ndim - branch.ndim
    dims = [d for d in range(max(shift, 0), cond.ndim) if cond.shape[d] != 1]
    return {d for d in dims if branch.shape[d - shift] == 1 or branch.stride(d - shift) == 0}


def _align(mask: Tensor, c: Cells | None) -> Tensor:
    missing = 0 if c is None else len(c.dims) - mask.ndim
    return mask.reshape((1,) * missing + tuple(mask.shape)) if missing > 0 else mask


def masked_fill(op: OpCall) -> Result:
    """out = value where mask, else self; | S(mask)."""
    mask = op.tensor("mask")
    out = _choose(op, mask, op.args.get("value"), op.tensor("self"))
    return op.lattice.join(out, _condition(op, mask, op.args.get("value"), op.tensor("self")))


def slice_backward(op: OpCall) -> Result:
    """select_backward, slice_backward, diagonal_backward ...: the gradient in its place, 0 elsewhere."""
    c = op.cells("grad_output") or op.cells("grad")
    if c is None:
        return None
    sizes = list(op.args["input_sizes"] if "input_sizes" in op.args else op.args["input_size"])
    return _scatter_view(op, c, None, sizes)


def _scatter_view(op: OpCall, c: Cells, base: Cells | None, sizes: Sequence[int]) -> Cells:
    """``base`` with the view that the op's arguments name replaced by ``c``."""

    def view(full: Tensor) -> Tensor:
        g = op.get
        if op.name.startswith("select"):
            return full.select(g("dim") % len(sizes), g("index"))
        if op.name.startswith("slice"):
            dim = g("dim", 0) % len(sizes)
            start, end, step = g("start"), g("end"), g("step", 1)
            return full[(slice(None),) * dim + (slice(start, end, step),)]
        return full.diagonal(g("offset", 0), g("dim1", 0) % len(sizes), g("dim2", 1) % len(sizes)).movedim(
            -1, -2
        )

    def fn(data: Tensor, *old: Tensor) -> Tensor:
        width = data.shape[-1]
        full = (
            old[0].expand(*sizes, width).clone(memory_format=torch.contiguous_format)
            if old
            else torch.full((*sizes, width), -1, device=data.device, dtype=data.dtype)
        )
        view(full).copy_(data)
        return full

    # dims that the view does not touch and along which nothing varies stay compressed
    named = {int(op.get(k, 0)) % len(sizes) for k in ("dim", "dim1", "dim2") if k in op.args}
    shrunk = list(sizes)
    if not op.name.startswith("diagonal"):
        dim = next(iter(named)) if named else 0
        for d in range(len(sizes)):
            if d == dim:
                continue
            own = c.dims[d if d < dim or not op.name.startswith("select") else d - 1]
            if own == 1 and (base is None or base.dims[d] == 1):
                shrunk[d] = 1
        sizes = shrunk
    parents = [c] if base is None else [c, base]
    return op.lattice.make(fn, *parents, share=False)


def slice_scatter(op: OpCall) -> Result:
    """slice_scatter, select_scatter, diagonal_scatter: self with a view replaced by src."""
    c, base = op.cells("src"), op.cells("self")
    if c is None and base is None:
        return None
    x = op.tensor("self")
    some = c or base
    assert some is not None
    if c is None:
        blank = torch.full((1,) * op.tensor("src").ndim + (some.data.shape[-1],), -1, device=some.data.device)
        c = Cells(blank.to(some.data.dtype))
    return _scatter_view(op, c, base, list(x.shape))


def rearranged(op: OpCall) -> Result:
    """Copies whose places follow from shapes alone (view copies, rot90, diag_embed, shuffles, mirrored pads):
    the op itself, run on the numbers of the elements, says where each one goes; 0 is a fill."""
    x, c = op.tensor("self"), op.cells("self")
    if c is None:
        return [None] * len(op.out) if isinstance(op.out, (list, tuple)) else None
    outs = list(op.out) if isinstance(op.out, (list, tuple)) else [op.out]
    if c.uniform:
        made: list[Cells | None] = [op.lattice.reshaped(c, (1,) * o.ndim) for o in outs]
    else:
        numbers = torch.arange(1, x.numel() + 1, dtype=torch.float64, device=x.device).view(x.shape)
        rest = {name: value for name, value in op.args.items() if name != "self"}
        packet = getattr(torch.ops.aten, op.name)
        placed = packet(numbers, **rest)
        maps = [m.long() for m in (placed if isinstance(placed, (list, tuple)) else [placed])]
        sizes = tuple(x.shape)

        def fn(data: Tensor, where: Tensor) -> Tensor:
            flat = data.expand(*sizes, data.shape[-1]).reshape(-1, data.shape[-1])
            return torch.cat((torch.full_like(flat[:1], -1), flat))[where]

        made = [op.lattice.move(c, lambda data, m=m: fn(data, m), held=m.numel() * 8) for m in maps]  # type: ignore[misc]
    return made if isinstance(op.out, (list, tuple)) else made[0]


def block_diag(op: OpCall) -> Result:
    """The inputs along the diagonal, nothing elsewhere."""
    tensors = [t if t.ndim == 2 else t.reshape(1, -1) for t in op.args["tensors"]]
    sizes = [tuple(t.shape) for t in tensors]

    def fn(*data: Tensor) -> Tensor:
        width = data[0].shape[-1]
        out = torch.full(
            (sum(n for n, _ in sizes), sum(m for _, m in sizes), width),
            -1,
            dtype=data[0].dtype,
            device=data[0].device,
        )
        row = column = 0
        for d, (n, m) in zip(data, sizes, strict=True):
            out[row : row + n, column : column + m] = d.reshape(-1, d.shape[-2], width) if d.ndim > 1 else d
            row, column = row + n, column + m
        return out

    return _several(op, list(op.args["tensors"]), fn)


def unfold_backward(op: OpCall) -> Result:
    """Windows of gradients laid over each other: union where they overlap."""
    c = op.cells("grad_in")
    if c is None:
        return None
    sizes = list(op.args["input_sizes"])
    if not sizes:
        return op.lattice.everything(c, 0)
    dim, size, step = int(op.args["dim"]) % len(sizes), int(op.args["size"]), int(op.args["step"])
    windows = op.tensor("grad_in").shape[dim]
    wide = [*c.dims[:dim], windows, *c.dims[dim + 1 : -1], size]
    shape = [n if d == dim else c.dims[d] for d, n in enumerate(sizes)]

    def fn(data: Tensor) -> Tensor:
        width = data.shape[-1]
        data = data.expand(*wide, width)
        out = torch.full((*shape, width), -1, dtype=data.dtype, device=data.device)
        for k in range(size):
            part = out[(slice(None),) * dim + (slice(k, k + (windows - 1) * step + 1, step),)]
            part.copy_(op.lattice.lattice.join(part, data.select(-2, k)))
        return out

    return op.lattice.make(fn, c, share=False)
