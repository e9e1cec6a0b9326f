"""Resampling: interpolation, padding read backwards, overlapping windows laid over each other, sampled grids.

Where the geometry follows from sizes: out[n, c, i, j] = union of in[n, c, k, l] over the places that i and j
read (``separable``). Where it is given by a grid: S(grid) at the place | what the grid's values make it read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, absorb
from causaltrace.rules.separable import HOT, probed, spread, turned

#: Places in times places out up to which a grid is looked at place by place.
GRID_LIMIT = 1 << 22


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
    which could have pointed there. grad_grid[n, q] = grad[n, :, q] | grid[n, q] | input[n], where the
    gradient is not 0."""
    lattice = op.lattice
    grad, grid = op.tensor("grad_output"), op.tensor("grid")
    own, where = op.cells("grad_output"), op.cells("grid")
    anywhere = lattice.reduce(where, range(1, grid.ndim))
    dx = lattice.join(_sampled(op, "grad_output", own), anywhere)
    here = lattice.reduce(where, [grid.ndim - 1], keepdim=False)
    if here is not None:
        here = lattice.unsqueeze(here, 1)
    image = op.cells("input" if "input" in op.args else "self")
    rest = lattice.join(here, lattice.reduce(image, range(1, grid.ndim)))
    placed = lattice.reduce(absorb(op, grad, own, rest), [1], keepdim=False)
    dgrid = None if placed is None else lattice.unsqueeze(placed, len(placed.dims))
    return [dx, dgrid]


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
