"""Which memory holds distributions, and the mass of what is read from rows.

What a softmax wrote is normalised by construction, and so are its copies and its views of whole rows, until
something else is written there. Of any other row the mass is summed from its values.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from causaltrace import mass
from causaltrace._compat import storage_of
from causaltrace.schema import Op
from causaltrace.shadow import Memory


class Rows(NamedTuple):
    """A storage full of rows: the elements of one are ``stride`` apart. ``log``: of log-probabilities."""

    stride: int
    classes: int
    log: bool

    def seen_whole(self, x: Tensor, dim: int) -> bool:
        """Are the rows of ``x`` along ``dim`` whole rows?"""
        if x.shape[dim] != self.classes or x.stride(dim) != self.stride:
            return False
        size = self.stride * self.classes
        start = x.storage_offset() % size
        for d, n in enumerate(x.shape):
            if d != dim and x.stride(d) % size:
                start += x.stride(d) * (n - 1)
        return start < self.stride


def note(op: Op, bound: dict[str, Any], out: Tensor, memory: Memory) -> None:
    """``out`` was written by a softmax, or copied."""
    entry = memory.entries.get(id(storage_of(out)))
    if out.is_nested or bound["self"].is_nested:  # no strides
        return
    whole = out.numel() * out.itemsize == storage_of(out).nbytes()
    if entry is None or not whole or not out.is_floating_point() or not out.ndim:
        return
    x = bound["self"]
    if op.name.endswith("softmax"):
        dim, log = bound["dim"] % out.ndim, op.name == "_log_softmax"
    else:
        source = memory.entries.get(id(storage_of(x)))
        rows = None if source is None else source.rows
        dims = [d for d in range(x.ndim) if isinstance(rows, Rows) and rows.seen_whole(x, d)]
        if not isinstance(rows, Rows) or not dims:
            return
        dim, log = dims[0], rows.log
    entry.rows = Rows(out.stride(dim), out.shape[dim], log)


def _constructed(x: Tensor, dim: int, memory: Memory) -> Tensor | None:
    """The one mass of all elements, where the rows of ``x`` are distributions by construction."""
    entry = memory.entries.get(id(storage_of(x)))
    rows = None if entry is None else entry.rows
    if isinstance(rows, Rows) and rows.seen_whole(x, dim):
        return mass.normalised(rows.log, rows.classes, x.device)
    return None


def read(x: Tensor, dim: int, memory: Memory) -> Tensor:
    """Masses ``[*x.shape without dim, WIDTH]``, or one for all, of the elements of the rows along ``dim``."""
    known = _constructed(x, dim, memory)
    if known is not None:
        return known
    shape = (*x.shape[:dim], *x.shape[dim + 1 :], mass.WIDTH)
    return mass.of_rows(mass.blocks(x, dim)).reshape(shape)


def at_labels(op: Op, bound: dict[str, Any], index: Tensor, memory: Memory) -> Tensor:
    """The masses of what a readout reads at ``index``, broadcast to its shape."""
    if op.rule.reads or "linear_weight" in bound:  # a loss is the logarithm of a softmax
        classes = math.nan if op.rule.reads else bound["linear_weight"].shape[0]
        lanes = mass.normalised(True, classes, index.device)
        if not op.rule.reads and 0 <= bound.get("ignore_index", -100) < classes:
            return mass.refused(lanes, torch.ones((), dtype=torch.bool, device=index.device))
        return mass.negated(lanes) if bound.get("weight") is None else mass.unknown(index.device)
    x: Tensor = bound["self"]
    if op.name.startswith("nll_loss"):
        dim, weight = min(1, x.ndim - 1), bound.get("weight")
        if weight is not None:
            x = x * weight.reshape(-1, *(1,) * (x.ndim - 1 - dim))
        ignored = bound.get("ignore_index", -100)
        if 0 <= ignored < x.shape[dim]:  # a label of this class is charged nothing
            x = x.clone()
            x.select(dim, ignored).zero_()
        return mass.negated(read(x, dim, memory))
    if op.name == "gather":
        dim = bound["dim"] % max(1, x.ndim)
        if x.ndim == 0:
            return mass.unknown(x.device)
        for d, n in enumerate(index.shape):
            if d != dim and x.shape[d] != n:
                x = x.narrow(d, 0, n)
        lanes = read(x, dim, memory)
        return lanes if lanes.ndim == 1 else lanes.unsqueeze(dim)
    places = list(bound["indices"])[:-1]
    known = _constructed(x, x.ndim - 1, memory)
    if known is not None:
        return known
    shape = torch.broadcast_shapes(*[p.shape for p in places]) if places else ()
    return mass.of_rows(mass.chosen(x, places)).reshape(*shape, mass.WIDTH)


def charged(values: Tensor, classes: Tensor, rows: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    """The masses of ``values``, said to be what ``rows`` ``[*values.shape, classes]`` of probabilities or
    their logarithms charge for ``classes``, and where they are that: in nats or in bits, of either sign."""
    last = rows.ndim - 1
    lanes = read(rows, last, memory).expand(*values.shape, mass.WIDTH).clone()
    entry = mass.wide(rows.gather(last, classes.clamp(min=0).unsqueeze(last)).squeeze(last))
    entry = torch.where(mass.is_probability(lanes), entry.log(), entry).abs()
    given = mass.wide(values).abs()
    epsilon = max(torch.finfo(t.dtype).eps for t in (values, rows))
    allowed = (mass.TOLERANCE + 4 * epsilon) * (1 + entry)
    agrees = (given == entry) | ((given - entry).abs() <= allowed)
    bits = ~agrees & ((given * math.log(2) - entry).abs() <= allowed)
    agrees |= bits
    unit = lanes[..., mass.UNIT].masked_fill(mass.is_probability(lanes), 1)
    unit = torch.where(bits, unit / math.log(2), unit)
    lanes[..., mass.UP].masked_fill_(mass.proved(lanes, True), 0)
    lanes[..., mass.UNIT] = torch.where(values > 0, -unit, unit)
    return mass.refused(lanes, ~agrees), agrees
