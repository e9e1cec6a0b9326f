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
    """(maxima, their places) of windows that random samples choose: the union over the plane | S(samples)."""
    lattice, n = op.lattice, spatial(op.name)
    x = op.tensor("self")
    samples = op.cells("random_samples")
    if samples is not None:
        samples = lattice.reduce(lattice.aligned(samples, 3), [2])
        assert samples is not None
        lead = samples.dims[2 - (x.ndim - n) : 2]  # without the batch of one of an unbatched input
        samples = lattice.reshaped(samples, (*lead, *(1,) * n))
    both = lattice.join(_plane(op, op.cells("self"), x.ndim, n), samples)
    return [both, both]


def fractional_backward(op: OpCall) -> Result:
    """grad_in[k] = union over the plane of S(grad) | S(places) where the gradient is not 0."""
    lattice, n = op.lattice, spatial(op.name)
    grad, where = op.tensor("grad_output"), op.cells("indices")
    if where is not None:
        where = lattice.keep(where, live(grad, tuple(varied(where, ndim=grad.ndim))))
    return lattice.join(*[_plane(op, c, grad.ndim, n) for c in (op.cells("grad_output"), where)])


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
    c = lattice.aligned(c, x.ndim)
    if c.uniform or x.numel() > WON_LIMIT:
        return lattice.join(_plane(op, c, x.ndim, n), where)
    total = torch.Size(out.shape[x.ndim - n :]).numel()
    lead = x.shape[: x.ndim - n]
    planes = torch.arange(lead.numel(), device=x.device).view(*lead, *(1,) * n)
    return lattice.join(land(op, None, c, out.shape, planes * total + index, x.shape, False), where)
