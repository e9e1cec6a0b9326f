"""Resampling: interpolation, padding read backwards, overlapping windows laid over each other, sampled grids.

Where the geometry follows from sizes: out[n, c, i, j] = union of in[n, c, k, l] over the places that i and j
read (``separable``). Where it is given by a grid: S(grid) at the place | what the grid's values make it read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, live, varied
from causaltrace.rules.separable import HOT, probed, spread, turned

#: Places in times places out up to which a grid is looked at place by place.
GRID_LIMIT = 1 << 22
#: Numbers of a grid's modes.
NEAREST, BICUBIC = 1, 2


def resampled(op: OpCall) -> Result:
    """Interpolation: out[i] = union of the in[k] that weigh in (nearest: the one that is copied)."""
    x, out = op.tensor("self"), op.out
    assert isinstance(out, Tensor)
    return _through(op, "self", x, out)


def resampled_backward(op: OpCall) -> Result:
    """Linear in the gradient, whatever the input was: grad_in[k] = union of the grad_out[i] that read k."""
    grad, out = op.tensor("grad_output"), op.out
    assert isinstance(out, Tensor)
    return _through(op, "grad_output", grad, out)


def _through(op: OpCall, linear: str, x: Tensor, out: Tensor) -> Cells | None:
    c = op.cells(linear)
    if c is None or not out.numel():
        return None
    n = spatial(op.name)
    maps = probed(op.name, op.args, x, x.shape[-n:], out.shape[-n:], linear)
    return spread(op, op.lattice.aligned(c, x.ndim), maps)


def spatial(name: str) -> int:
    """How many spatial dims an op's name says that it has."""
    return next(n for n in (1, 2, 3) if f"{n}d" in name)


def col2im(op: OpCall) -> Result:
    """Windows laid over each other: out[n, c, h, w] = union of the columns whose window holds the place.

    A column's places are (tap, window) along each dim; what of these reads what is im2col's map, turned."""
    x, c, out = op.tensor("self"), op.cells("self"), op.out
    assert isinstance(out, Tensor)
    if c is None or not out.numel():
        return None
    lattice = op.lattice
    sizes, kernel = out.shape[-2:], _pair(op, "kernel_size")
    steps = zip(sizes, kernel, _pair(op, "dilation"), _pair(op, "padding"), _pair(op, "stride"), strict=True)
    windows = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, d, p, s in steps]
    columns = [k * w for k, w in zip(kernel, windows, strict=True)]
    args = {name: value for name, value in op.args.items() if name != "output_size"}
    maps = probed("im2col", args, x, sizes, columns)
    c = lattice.aligned(c, x.ndim)
    if c.dims[-1] == c.dims[-2] == 1:
        c = lattice.unsqueeze(c, len(c.dims))
    else:
        channels, lead = x.shape[-2] // (kernel[0] * kernel[1]), c.dims[:-2]

        def fn(data: Tensor) -> Tensor:
            data = data.expand(*lead, *x_shape, data.shape[-1])
            data = data.reshape(*lead, channels, *kernel, *windows, data.shape[-1])
            return data.transpose(-4, -3).reshape(*lead, channels, *columns, data.shape[-1])

        x_shape = tuple(x.shape[-2:])
        c = lattice.move(c, fn)
    return spread(op, c, turned(maps))


def _pair(op: OpCall, name: str) -> list[int]:
    value = [int(v) for v in op.args[name]]
    return value * 2 if len(value) == 1 else value


# -- grids ------------------------------------------------------------------------------------------------


def grid_sampler(op: OpCall) -> Result:
    """out[n, c, q] = S(grid[n, q]) | union of the in[n, c, k] that the values of grid[n, q] make it read."""
    lattice, grid = op.lattice, op.tensor("grid")
    where = lattice.reduce(op.cells("grid"), [grid.ndim - 1], keepdim=False)
    if where is not None:
        where = lattice.unsqueeze(where, 1)
    linear = "input" if "input" in op.args else "self"
    return lattice.join(_sampled(op, linear, op.cells(linear)), where)


def grid_sampler_backward(op: OpCall) -> Result:
    """(grad_input, grad_grid). grad_input[n, c, k] = union of the grad[n, c, q] that read k | S(grid[n]),
    which could have pointed there. grad_grid[n, q] = S(grid[n, q]) | grad[n, :, q] | the input[n, :, k] that
    weigh in, where the gradient is not 0."""
    lattice, grid = op.lattice, op.tensor("grid")
    own, where = op.cells("grad_output"), op.cells("grid")
    anywhere = lattice.reduce(where, range(1, grid.ndim))
    dx = lattice.join(_sampled(op, "grad_output", own), anywhere)
    if op.get("interpolation_mode") == NEAREST:  # which has no slope
        return [dx, None]
    batch, places, n = grid.shape[0], tuple(grid.shape[1:-1]), grid.ndim - 2
    grad = op.tensor("grad_output").reshape(batch, -1, torch.Size(places).numel(), 1)
    weighs = _weights(op)
    here = lattice.reduce(where, [grid.ndim - 1], keepdim=False)
    here = None if here is None else _flat(op, lattice.unsqueeze(here, 1), places)
    own = None if own is None else _flat(op, own, places)
    seen = _seen(op, weighs)
    used = live(grad, varied(own, here, seen, ndim=grad.ndim) | {2})
    if weighs is None:
        here = lattice.keep(here, used)
    else:  # where nothing weighs in S(grid) suffices, whatever the gradient
        some = weighs.any(-1)
        own, here = lattice.keep(own, some), lattice.keep(here, used | ~some)
    rest = lattice.join(here, lattice.keep(seen, used))
    placed = lattice.reduce(lattice.join(own, rest), [1], keepdim=False)
    if placed is None:
        return [dx, None]
    first, middle, last = placed.dims
    return [dx, lattice.reshaped(placed, (first, *(places if middle != 1 else (1,) * n), last))]


def _flat(op: OpCall, c: Cells, places: tuple[int, ...]) -> Cells:
    """``c [n, c, *places]`` as ``[n, c, places, 1]``."""
    lead, total = c.dims[:2], torch.Size(places).numel()
    if all(m == 1 for m in c.dims[2:]):
        return op.lattice.reshaped(c, (*lead, 1, 1))
    return op.lattice.move(c, lambda data: data.expand(*lead, *places, -1).reshape(*lead, total, 1, -1))


def _weights(op: OpCall) -> Tensor | None:
    """``[batch, 1, q, n, k]``: does place k of the image weigh in the gradient of the n-th number at place q
    of the grid? None: too many to find out."""
    grid, image = op.tensor("grid"), op.tensor("input" if "input" in op.args else "self")
    batch, n, size = grid.shape[0], grid.ndim - 2, tuple(image.shape[2:])
    k, q = torch.Size(size).numel(), torch.Size(grid.shape[1:-1]).numel()
    if batch * k * max(k, q * n) > GRID_LIMIT or not k or not q or op.name.startswith("cudnn"):
        return None
    hot = torch.eye(k, dtype=image.dtype, device=image.device).mul_(HOT).view(1, k, 1, *size)
    images = hot.expand(batch, k, 1, *size).reshape(batch * k, 1, *size)
    grids = grid.unsqueeze(1).expand(batch, k, *grid.shape[1:]).reshape(batch * k, *grid.shape[1:])
    ones = images.new_ones(batch * k, 1, *grid.shape[1:-1])
    run = getattr(torch.ops.aten, op.name)
    options = {a: op.args[a] for a in ("interpolation_mode", "padding_mode", "align_corners")}
    weights: Tensor = run(ones, images, grids, output_mask=[False, True], **options)[1]
    weighs = weights.reshape(batch, k, q, n) != 0
    if options["interpolation_mode"] == BICUBIC:  # weights of one place may cancel, but for rounding
        sampled: Tensor = getattr(torch.ops.aten, op.name.removesuffix("_backward"))(images, grids, **options)
        weighs |= sampled.reshape(batch, k, q, 1) != 0
    return weighs.movedim(1, -1).unsqueeze(1)


def _seen(op: OpCall, weighs: Tensor | None) -> Cells | None:
    """``[batch, c, q, n]``: union of the image over what weighs in."""
    lattice, image = op.lattice, op.tensor("input" if "input" in op.args else "self")
    c = op.cells("input" if "input" in op.args else "self")
    if c is None:
        return None
    c = _flat(op, c, tuple(image.shape[2:]))
    if weighs is None:
        return lattice.reduce(c, [2])
    q, n, k = weighs.shape[2:]
    out = lattice.contract(weighs.reshape(-1, 1, q * n, k), c)
    if out is None:
        return None
    return lattice.reshaped(out, (*out.dims[:2], *((q, n) if out.dims[2] != 1 else (1, 1))))


def _sampled(op: OpCall, linear: str, c: Cells | None) -> Cells | None:
    """``c [n, c, *places]`` to the places that read them (of a gradient: that they read), as the grid's
    values say: sampling one-hot images gives the weights."""
    lattice = op.lattice
    grid, given = op.tensor("grid"), op.tensor(linear)
    if c is None:
        return None
    back, batch, n = linear == "grad_output", grid.shape[0], grid.ndim - 2
    from_ = tuple(given.shape[2:])
    to = (
        tuple(op.tensor("input" if "input" in op.args else "self").shape[2:])
        if back
        else tuple(grid.shape[1:-1])
    )
    k, q = torch.Size(from_).numel(), torch.Size(to).numel()
    if batch * k * q > GRID_LIMIT or not k or not q or op.name.startswith("cudnn"):
        return lattice.reduce(c, range(2, 2 + n))
    hot = torch.eye(k, dtype=given.dtype, device=given.device).mul_(HOT).view(1, k, *from_)
    images = hot.expand(batch, k, *from_)
    sampler = getattr(torch.ops.aten, op.name)
    options = {a: op.args[a] for a in ("interpolation_mode", "padding_mode", "align_corners")}
    if back:
        read = sampler(images, images.new_zeros(batch, k, *to), grid, output_mask=[True, False], **options)[0]
    else:
        read = sampler(images, grid, **options)
    mask = read.reshape(batch, 1, k, q).transpose(-1, -2) != 0  # [batch, 1, to, from]
    if all(m == 1 for m in c.dims[2:]):
        return lattice.keep(c, mask.any(-1).view(batch, 1, *to))
    lead = c.dims[:2]
    lines = lattice.move(c, lambda data: data.expand(*lead, *from_, -1).reshape(*lead, k, 1, data.shape[-1]))
    out = lattice.contract(mask, lines)
    if out is None:
        return None
    return lattice.reshaped(out, (*out.dims[:2], *(to if out.dims[2] != 1 else (1,) * n)))
