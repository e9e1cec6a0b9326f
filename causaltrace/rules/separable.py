"""Linear maps whose geometry follows from sizes alone, one spatial dim at a time.

Pools, resampling and the backwards of both are products of one map for each spatial dim: ``out[n, c, i, j]``
reads ``in[n, c, k, l]`` where i reads k along the first dim and j reads l along the second. Which places read
which is not written down here: the op itself is run on one-hot vectors along one dim, with the other dims of
size 1, and what comes out nonzero says it, for the very kernel that runs, with its padding, rounding and
borders. A weight of exactly 0 is no dependence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall

#: One-hot vectors hold this number, so that no weight is lost to the least number of a half precision dtype.
HOT = 2.0**12
#: Elements of one block of one-hot vectors, and of supports gathered at once.
BLOCK = 1 << 22
#: Places times places up to which each place is probed by itself.
ONE_HOT_LIMIT = 1 << 23
#: Places times places beyond which a dim is not probed: everything along it is taken to read everything.
PROBE_LIMIT = 1 << 34
#: Arguments with one entry for each spatial dim, and the entry that makes a dim of size 1 stay out of it.
NEUTRAL = {"kernel_size": 1, "stride": 1, "dilation": 1, "padding": 0}
SCALES = ("scales_d", "scales_h", "scales_w")


class Reads:
    """Which of ``ins`` places each of ``outs`` places along one dim reads, as pairs (``out``, ``place``)."""

    def __init__(self, out: Tensor, place: Tensor, outs: int, ins: int) -> None:
        self.out, self.place, self.outs, self.ins = out, place, outs, ins
        order = torch.argsort(out, stable=True)
        rows, columns = out[order], place[order]
        counts = torch.bincount(rows, minlength=outs)
        nth = torch.arange(rows.numel(), device=out.device) - (counts.cumsum(0) - counts)[rows]
        longest = int(counts.max()) if outs else 0
        first = torch.zeros(outs, dtype=torch.long, device=out.device)
        first[rows[nth == 0]] = columns[nth == 0]
        #: ``[outs, most reads]``: the places read; shorter rows repeat their first, which a join absorbs
        self.index = first.unsqueeze(1).repeat(1, max(1, longest))
        self.index[rows, nth] = columns
        self.some = counts > 0  #: does it read anything?
        self.all_some = bool(self.some.all())

    @cached_property
    def turned(self) -> Reads:
        """The transposed map: which outs read each place."""
        return Reads(self.place, self.out, self.ins, self.outs)

    def across(self, op: OpCall, data: Tensor, dim: int) -> Tensor:
        """Along ``dim``: the join of what each place reads, bottom where that is nothing."""
        lattice = op.lattice.lattice
        if data.shape[dim] == 1:
            out = data.narrow(dim, 0, 1).expand(
                [self.outs if d == dim else n for d, n in enumerate(data.shape)]
            )
        elif self.index.shape[1] == 1:  # nothing is joined: a movement, on whatever plane
            out = data.index_select(dim, self.index[:, 0])
        else:
            each = max(1, data.numel() // max(1, data.shape[dim]) * self.outs)
            parts = []
            for index in self.index.split(max(1, BLOCK // each), dim=1):
                read = data.index_select(dim, index.reshape(-1)).unflatten(dim, index.shape)
                parts.append(lattice.reduce(read, [dim + 1]).squeeze(dim + 1))
            out = lattice.join(*parts)
        if self.all_some:
            return out
        return lattice.keep(out, self.some.view([self.outs if d == dim else 1 for d in range(data.ndim - 1)]))


Map = Reads | None
"""None: too many places to find out; every place may read every other."""


def turned(maps: Sequence[Map]) -> list[Map]:
    """The other way round."""
    return [None if m is None else m.turned for m in maps]


def spread(op: OpCall, c: Cells | None, maps: Sequence[Map]) -> Cells | None:
    """``c`` through one map for each of its last dims. Dims along which nothing varies stay compressed."""
    if c is None:
        return None
    first = len(c.dims) - len(maps)
    c = op.lattice.reduce(c, [first + d for d, m in enumerate(maps) if m is None])
    assert c is not None
    moving = [(first + d, m) for d, m in enumerate(maps) if m and (c.dims[first + d] != 1 or not m.all_some)]
    if not moving:
        return c

    def fn(data: Tensor) -> Tensor:
        for dim, m in moving:
            data = m.across(op, data, dim)
        return data

    return op.lattice.compressed(fn, c, held=sum(m.index.numel() * 8 for _, m in moving))


# -- probing ----------------------------------------------------------------------------------------------

Sizes = Sequence[int]
Frozen = tuple[tuple[str, Any], ...]


def probed(
    name: str, args: dict[str, Any], like: Tensor, ins: Sizes, outs: Sizes, linear: str = "self"
) -> list[Map]:
    """For each spatial dim, which of the places ``ins`` of its argument ``linear`` each of the places
    ``outs`` of the result of the op ``name`` reads. ``args``: its other arguments; ``like``: its dtype and
    device."""
    args = {k: v for k, v in args.items() if not isinstance(v, Tensor)}
    frozen = tuple((k, tuple(v) if isinstance(v, (list, tuple)) else v) for k, v in args.items())
    sizes = [(int(k), int(q)) for k, q in zip(ins, outs, strict=True)]
    small = [_small(k, q) if "output_size" in args else (1, 1) for k, q in sizes]
    maps: list[Map] = []
    for d, (k, q) in enumerate(sizes):
        before, after = zip(*[*small[:d], (k, q), *small[d + 1 :]], strict=True)
        probe = _Probe(name, linear, frozen, d, before, after, like.dtype, like.device)
        maps.append(None if k * q > PROBE_LIMIT else _probe(probe))
    return maps


def _small(k: int, q: int) -> tuple[int, int]:
    """Small sizes that are to each other as k to q are: some kernels copy, whatever the scale, when no size
    changes, and some go wrong where a size is 1."""
    if k == q:
        return min(k, 2), min(k, 2)
    return (1, 2) if k == 1 else (2, 1) if q == 1 else (2, 3)


class _Probe(NamedTuple):
    """The dim ``dim`` of an op, with the sizes of all spatial dims before and after."""

    name: str
    linear: str
    args: Frozen
    dim: int
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def options(self) -> dict[str, Any]:
        """The op's arguments with those of the other dims neutral."""
        out, n = dict(self.args), len(self.ins)
        pads = "_pad" in self.name
        for key, neutral in NEUTRAL.items():
            given = out.get(key)
            if given is None or pads or isinstance(given, tuple) and not given:
                continue
            each = given * n if isinstance(given, tuple) and len(given) == 1 else given
            own = each[self.dim] if isinstance(each, tuple) else each
            out[key] = [own if d == self.dim else neutral for d in range(n)]
        if pads:  # (before, after) of the last dim first
            at = 2 * (n - 1 - self.dim)
            out["padding"] = [w if i - i % 2 == at else 0 for i, w in enumerate(out["padding"])]
        if "output_size" in out:
            out["output_size"] = self.outs if self.linear == "self" else self.ins
        for d, key in enumerate(SCALES[len(SCALES) - n :]):
            if d != self.dim:
                out.pop(key, None)
        return out

    def run(self, hot: Tensor) -> Tensor:
        """``hot [rows, places]`` through the op: ``[rows, places after, the rest]``."""
        rows, args, after = hot.shape[0], self.options(), self.outs[self.dim]
        if "input_size" in args:
            args["input_size"] = [rows, 1, *self.outs]
        elif self.linear != "self":
            args["self"] = hot.new_zeros(rows, 1, *self.outs)
        line = [n if d == self.dim else 1 for d, n in enumerate(self.ins)]
        args[self.linear] = hot.view(rows, 1, *line).expand(rows, 1, *self.ins).contiguous()
        got = getattr(torch.ops.aten, self.name)(**args)
        got = got[0] if isinstance(got, (tuple, list)) else got
        if got.ndim == 2 + len(self.ins):
            got = got.movedim(2 + self.dim, 1)
        return got.reshape(rows, after, -1)


@lru_cache(maxsize=512)
def _probe(probe: _Probe) -> Reads:
    """The geometry that integers get may be that of either float dtype."""
    kinds = (probe.dtype,) if probe.dtype.is_floating_point else (torch.float32, torch.float64)
    place, out = torch.cat([_pairs(probe, kind) for kind in kinds]).unique(dim=0).unbind(1)
    return Reads(out, place, probe.outs[probe.dim], probe.ins[probe.dim])


def _pairs(probe: _Probe, kind: torch.dtype) -> Tensor:
    """``[pairs, (place, out)]``: where one-hot vectors come out. Of a long dim, groups of places: a place is
    read where its remainder, its block, and its block among blocks shifted by half are. Of a window of up to
    half a block that says all; a wider one may get places near its ends that it does not read."""
    ins, outs = probe.ins[probe.dim], probe.outs[probe.dim]
    at = torch.arange(ins, device=probe.device)
    if ins * outs <= ONE_HOT_LIMIT:
        return torch.nonzero(_hits(probe, kind, at))
    side = 2 * math.isqrt(ins)
    shift = side // 2
    rest, block, shifted = (_hits(probe, kind, g) for g in (at % side, at // side, (at + shift) // side))
    found = []
    for pairs in torch.nonzero(block).split(max(1, BLOCK // side)):
        out = pairs[:, 1:]
        place = pairs[:, :1] * side + at[:side]
        read = rest[at[:side], out] & shifted[((place + shift) // side).clamp(max=shifted.shape[0] - 1), out]
        nth, offset = torch.nonzero(read & (place < ins)).unbind(1)
        found.append(torch.stack((place[nth, offset], out[nth, 0]), 1))
    return torch.cat(found) if found else torch.zeros(0, 2, dtype=torch.long, device=probe.device)


def _hits(probe: _Probe, kind: torch.dtype, group: Tensor) -> Tensor:
    """``[groups, outs]``: which outs read something of each group of places? Their values differ, so that
    weights of either sign do not cancel."""
    count, outs = int(group.max()) + 1, probe.outs[probe.dim]
    values = (HOT * (1 + torch.arange(group.numel(), device=group.device) * 0.618034 % 1)).to(kind)
    step = max(1, BLOCK // max(1, group.numel(), outs))
    parts = []
    for numbers in torch.arange(count, device=group.device).split(step):
        got = probe.run((group == numbers.unsqueeze(1)) * values)
        live = got != 0
        if "max_pool" in probe.name:
            live &= got != -torch.inf  # the maximum of no elements
        parts.append(live.any(-1))
    return torch.cat(parts)
