"""Pools: out[n, c, i, j] = union over the window, whose places follow from sizes along each dim.

An average weighs its window (``resample.resampled``). A maximum, and the place where it is, depend on the
whole window: any element of it could have been larger. Backward, the saved places say which element of the
window gets its gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, live, varied
from causaltrace.rules.resample import spatial
from causaltrace.rules.scatter import land
from causaltrace.rules.separable import Map, Reads, probed, spread, turned

#: Windows that hold one place, and elements, up to which it is looked at which window a place won.
WINDOWS = 256
WON_LIMIT = 1 << 22


def max_pool(op: OpCall) -> Result:
    """(maxima, their places): both the union over the window. The place of an only element is fixed."""
    x, out = op.tensor("self"), op.out[0]
    c, n = op.cells("self"), spatial(op.name)
    if c is None or not out.numel():
        return [None, None]
    maps = probed(op.name, op.args, x, x.shape[-n:], out.shape[-n:])
    both = spread(op, op.lattice.aligned(c, x.ndim), maps)
    return [both, op.lattice.keep(both, _several(maps))]


def _several(maps: Sequence[Map]) -> Tensor:
    """``[*places out]``: is there more than one element to choose from?"""
    out = torch.tensor(False)
    for d, m in enumerate(maps):
        some = torch.ones(1, dtype=torch.bool) if m is None else (m.index != m.index[:, :1]).any(1)
        out = out | some.view([-1 if i == d else 1 for i in range(len(maps))]).to(out.device)
    return out


def max_pool_backward(op: OpCall) -> Result:
    """grad_in[k] = union over the windows i that hold k of S(place[i]) | S(grad[i]) where place[i] is k.

    A gradient of 0 does not show where it went: S(grad[i]) vouches for S(place[i])."""
    lattice = op.lattice
    grad, x = op.tensor("grad_output"), op.tensor("self")
    own, where = op.cells("grad_output"), op.cells("indices")
    if own is None and where is None or not grad.numel():
        return None
    n = spatial(op.name)
    name = op.name.removesuffix("_backward")
    sizes = tuple(grad.shape[-n:])
    more = {"output_size": sizes} if name.startswith("adaptive") else {}
    back = turned(probed(name, op.args | more, x, x.shape[-n:], sizes))
    vouching = where is not None
    if where is not None:
        where = lattice.aligned(where, grad.ndim)
        where = lattice.keep(where, live(grad, tuple(varied(where, ndim=grad.ndim))))
    own = None if own is None else lattice.aligned(own, grad.ndim)
    return lattice.join(_won(op, own, back, vouching), spread(op, where, back))


def _won(op: OpCall, own: Cells | None, back: Sequence[Map], vouching: bool) -> Cells | None:
    """S(grad[i]) at the place that won window i; if ``vouching``, zeros at all places of their windows."""
    grad, x, place = op.tensor("grad_output"), op.tensor("self"), op.tensor("indices")
    n = len(back)
    maps = [m for m in back if m is not None]
    wide = own is not None and any(m != 1 for m in own.dims[-n:])
    taps = list(itertools.product(*[range(m.index.shape[1]) for m in maps][: n if wide else 0]))
    if own is None or not wide or len(maps) < n or len(taps) > WINDOWS or x.numel() > WON_LIMIT:
        return spread(op, own, back)
    lead = x.ndim - n
    dims = (*own.dims[:lead], *grad.shape[lead:])
    numbers = torch.arange(torch.Size(x.shape[lead:]).numel(), device=x.device).view(x.shape[lead:])
    zero = grad == 0 if vouching else None
    shared = [d for d in range(lead) if dims[d] == 1]

    def fn(data: Tensor) -> Tensor:
        lattice = op.lattice.lattice
        data, out = data.expand(*dims, data.shape[-1]), None
        for tap in taps:
            at: Any = (Ellipsis, *_crossed(maps, tap))
            won = place[at] == numbers
            if zero is not None:
                won = won | zero[at]
            for d in shared:
                won = won.any(d, keepdim=True)
            part = lattice.keep(data[(*at, slice(None))], won)
            out = part if out is None else lattice.join(out, part)
        assert out is not None
        for d, m in enumerate(maps):
            out = lattice.keep(out, m.some.view([-1 if i == d else 1 for i in range(n)]))
        return out

    return op.lattice.compressed(fn, own, held=place.numel() * 8 + grad.numel())


def _crossed(maps: Sequence[Reads], tap: Sequence[int]) -> list[Tensor]:
    """Along every dim, the ``tap``-th window of each place, ready to index with."""
    n = len(maps)
    return [
        m.index[:, t].view([-1 if i == d else 1 for i in range(n)])
        for d, (m, t) in enumerate(zip(maps, tap, strict=True))
    ]


# -- windows that values choose ---------------------------------------------------------------------------


def fractional(op: OpCall) -> Result:
    """(maxima, their places) of windows that samples choose: the union over the window | S(samples)."""
    lattice, n = op.lattice, spatial(op.name)
    x, places = op.tensor("self"), op.out[1]
    c, samples = op.cells("self"), op.cells("random_samples")
    if samples is not None:
        samples = lattice.reduce(lattice.aligned(samples, 3), [2])
        assert samples is not None
        lead = samples.dims[2 - (x.ndim - n) : 2]  # without the batch of one of an unbatched input
        samples = lattice.reshaped(samples, (*lead, *(1,) * n))
        samples = lattice.keep(samples, _may_move(places.shape[-n:], x.device))
    if c is not None:
        c = _windowed(op, lattice.aligned(c, x.ndim), n)
    kernel = torch.Size(op.args["kernel_size"])
    return [lattice.join(c, samples), lattice.join(c if kernel.numel() > 1 else None, samples)]


def _may_move(sizes: Sequence[int], device: torch.device) -> Tensor:
    """Along each dim the first window begins at the first place, and the last ends at the last."""
    out = torch.zeros((1,) * len(sizes), dtype=torch.bool, device=device)
    for d, size in enumerate(sizes):
        middle = torch.arange(size, device=device) % max(1, size - 1) != 0
        out = out | middle.view([-1 if i == d else 1 for i in range(len(sizes))])
    return out


def _windowed(op: OpCall, c: Cells, n: int) -> Cells | None:
    """The union over each window. Where numbers fall from place to place, the maximum is where it begins."""
    x = op.tensor("self")
    kernel, sizes, plane = op.args["kernel_size"], tuple(op.args["output_size"]), tuple(x.shape[-n:])
    total = torch.Size(plane).numel()
    if all(m == 1 for m in c.dims[-n:]) or total > 1 / torch.finfo(x.dtype).eps or x.numel() > WON_LIMIT:
        return op.lattice.reduce(c, range(x.ndim - n, x.ndim))
    falling = -torch.arange(total, dtype=x.dtype, device=x.device).view(plane).expand(x.shape).contiguous()
    run = getattr(torch.ops.aten, op.name)
    begin = run(falling, kernel, sizes, op.args["random_samples"])[1].flatten(-n)
    lead, dims = x.shape[: x.ndim - n], (*x.shape[: x.ndim - n], total)
    numbers = torch.arange(total, device=x.device).view(plane)
    taps = numbers[tuple(slice(0, int(k)) for k in kernel)].flatten().tolist()

    def fn(data: Tensor) -> Tensor:
        width, lattice = data.shape[-1], op.lattice.lattice
        lines = data.expand(*x.shape, width).reshape(*dims, width)
        parts = [lines.gather(-2, (begin + t).unsqueeze(-1).expand(*begin.shape, width)) for t in taps]
        return lattice.join(*parts).view(*lead, *sizes, width)

    return op.lattice.compressed(fn, c, held=begin.numel() * 8)


def fractional_backward(op: OpCall) -> Result:
    """grad_in[k] = S(grad[i]) where place[i] is k | S(places) of the plane, which could have been k, where
    the gradient is not 0 (else S(grad) vouches for them)."""
    lattice, n = op.lattice, spatial(op.name)
    grad, place, x = op.tensor("grad_output"), op.tensor("indices"), op.tensor("self")
    own, where = op.cells("grad_output"), op.cells("indices")
    vouching = None
    if where is not None:
        some = live(grad, tuple(varied(where, ndim=grad.ndim)))
        kept = lattice.keep(where, some)
        vouching = None if kept is where else lattice.keep(own, grad == 0)
        where = kept
    elsewhere = lattice.join(_plane(op, where, grad.ndim, n), _plane(op, vouching, grad.ndim, n))
    return lattice.join(_landed(op, own, place, tuple(x.shape), n), elsewhere)


def _landed(op: OpCall, c: Cells | None, place: Tensor, shape: tuple[int, ...], n: int) -> Cells | None:
    """``c`` at its place in a plane of the result."""
    if c is None:
        return None
    c = op.lattice.aligned(c, place.ndim)
    if c.uniform or torch.Size(shape).numel() > WON_LIMIT:
        return _plane(op, c, place.ndim, n)
    lead = torch.Size(shape[: place.ndim - n])
    planes = torch.arange(lead.numel(), device=place.device).view(*lead, *(1,) * n)
    places = planes * torch.Size(shape[place.ndim - n :]).numel() + place
    return land(op, None, c, shape, places, place.shape, False)


def _plane(op: OpCall, c: Cells | None, ndim: int, n: int) -> Cells | None:
    """The union over the last ``n`` dims."""
    return None if c is None else op.lattice.reduce(op.lattice.aligned(c, ndim), range(ndim - n, ndim))


def max_unpool(op: OpCall) -> Result:
    """out[k] = S(x[i]) where index[i] is k | S(indices) of the plane, which could have pointed there. Of
    several that point to one place any may be written last."""
    lattice, n = op.lattice, spatial(op.name)
    x, index, out = op.tensor("self"), op.tensor("indices"), op.out
    assert isinstance(out, Tensor)
    c, where = op.cells("self"), _plane(op, op.cells("indices"), x.ndim, n)
    if c is None or not x.numel() or not out.numel():
        return where
    return lattice.join(_landed(op, c, index, tuple(out.shape), n), where)
