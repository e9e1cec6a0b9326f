"""Convolutions: exact receptive fields, channels joined (per group where there are groups).

out[n, :, o] = S(weight) | S(bias) | union over the taps k of S(x[n, :, o * stride + k * dilation - padding]).
A tap whose weights are all exactly 0 reads nothing; S(weight) vouches for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result
from causaltrace.rules.unfold import Small

Ints = Sequence[int]


class _Window:
    """Which input places (along each spatial dim) an output place reads, tap by tap."""

    def __init__(self, op: OpCall, inputs: Ints, outputs: Ints, weight: Tensor) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        n = len(self.inputs)
        self.stride, self.padding, self.dilation = (
            [int(v) for v in (op.args[k] if len(op.args[k]) == n else list(op.args[k]) * n)]
            for k in ("stride", "padding", "dilation")
        )
        live = (weight != 0).flatten(0, 1).any(0)
        taps = list(itertools.product(*[range(k) for k in weight.shape[2:]]))
        if weight.device.type == "cpu":
            taps = [tap for tap in taps if bool(live[tap])]
        self.taps = taps

    def spans(self, tap: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
        """(places in the input, places in the output) that this tap connects."""
        sources, targets = [], []
        for d, k in enumerate(tap):
            stride, shift = self.stride[d], k * self.dilation[d] - self.padding[d]
            first = max(0, -(shift // stride))  # smallest o with o * stride + shift >= 0
            last = min(self.outputs[d] - 1, (self.inputs[d] - 1 - shift) // stride)
            if last < first:
                return None
            start = first * stride + shift
            sources.append(slice(start, start + (last - first) * stride + 1, stride))
            targets.append(slice(first, last + 1))
        return tuple(sources), tuple(targets)

    def read(self, op: OpCall, data: Tensor, forward: bool) -> Tensor:
        """Union over the taps; ``forward``: input places to output places, else back."""
        lead, width = data.shape[:2], data.shape[-1]
        from_, to = (self.inputs, self.outputs) if forward else (self.outputs, self.inputs)
        data = data.expand(*lead, *from_, width)
        out = torch.full((*lead, *to, width), -1, dtype=data.dtype, device=data.device)
        for tap in self.taps:
            if (spans := self.spans(tap)) is None:
                continue
            sources, targets = spans if forward else spans[::-1]
            part = out[(slice(None), slice(None), *targets)]
            part.copy_(op.lattice.lattice.join(part, data[(slice(None), slice(None), *sources)]))
        return out


def _channels(op: OpCall, c: Cells | None, groups: int, out: int) -> Cells | None:
    """Joined over the channels of each group, spread over ``out`` channels."""
    if c is None or c.dims[1] == 1:
        return c
    if groups == 1:
        return op.lattice.reduce(c, [1])
    split = (c.dims[0], groups, c.dims[1] // groups, *c.dims[2:])
    joined = op.lattice.reduce(op.lattice.reshaped(c, split), [2], keepdim=False)
    if joined is None or joined.dims[1] == 1:
        return joined
    return op.lattice.move(joined, lambda data: data.repeat_interleave(out // groups, 1))


def _bias(op: OpCall, ndim: int, lead: int) -> Cells | None:
    """S(bias) ``[C]`` for a result of ``ndim`` dims, ``lead`` of them before the places."""
    c = op.cells("bias")
    return None if c is None else op.lattice.reshaped(c, ((1,) * (lead - 1) + c.dims + (1,) * (ndim - lead)))


def _through(op: OpCall, window: _Window, c: Cells | None, forward: bool) -> Cells | None:
    if c is None:
        return None
    return op.lattice.make(lambda data: window.read(op, data, forward), c, share=False)


def convolution(op: OpCall) -> Result:
    """convolution, plain and transposed, any number of spatial dims, groups."""
    lattice = op.lattice
    x, weight, out = op.tensor("input"), op.tensor("weight"), op.out
    assert isinstance(out, Tensor)
    lead = out.ndim - (weight.ndim - 2)
    c = op.cells("input")
    if lead == 1 and c is not None:  # no batch dim
        c = lattice.unsqueeze(c, 0)
    if Small.fits(op, out):
        return lattice.join(Small(op, out).forward(out), _bias(op, out.ndim, lead))
    transposed = bool(op.get("transposed", False))
    sizes = x.shape[lead:], out.shape[lead:]
    window = _Window(op, *(sizes[::-1] if transposed else sizes), weight)
    channels = out.shape[lead - 1]
    read = _through(op, window, _channels(op, c, op.get("groups", 1), channels), not transposed)
    own = op.cells("weight")
    if own is not None:
        own = lattice.everything(own, weight.ndim) if transposed else _weights(op, own)
    result = lattice.join(read, own)
    if lead == 1 and result is not None:
        result = lattice.squeeze(result, [0])
    return lattice.join(result, _bias(op, out.ndim, lead))


def _weights(op: OpCall, own: Cells) -> Cells | None:
    """S(weight[o]) for output channel o."""
    joined = op.lattice.reduce(own, range(1, len(own.dims)))
    return (
        None
        if joined is None
        else op.lattice.reshaped(joined, (1, joined.dims[0], *(1,) * (len(own.dims) - 2)))
    )


def convolution_backward(op: OpCall) -> Result:
    """(dx, dweight, dbias). dx: windows the other way round; dweight: what a nonzero gradient can see."""
    lattice = op.lattice
    grad, x, weight = op.tensor("grad_output"), op.tensor("input"), op.tensor("weight")
    transposed = bool(op.get("transposed", False))
    groups = op.get("groups", 1)
    own = op.cells("grad_output")
    dbias = lattice.reduce(own, [d for d in range(grad.ndim) if d != 1], keepdim=False)
    if Small.fits(op, grad):
        small = Small(op, grad)
        return [small.to_input(), small.to_weight(), dbias]
    sizes = x.shape[2:], grad.shape[2:]
    window = _Window(op, *(sizes[::-1] if transposed else sizes), weight)
    back = _through(op, window, _channels(op, own, groups, x.shape[1]), transposed)
    dx = lattice.join(back, lattice.everything(op.cells("weight"), x.ndim))
    window.taps = list(itertools.product(*[range(k) for k in weight.shape[2:]]))
    seen = (
        window.read(op, grad.ne(0).any(1, keepdim=True).to(torch.int32).unsqueeze(-1) - 1, transposed)[..., 0]
        >= 0
    )
    through = lattice.everything(lattice.keep(op.cells("input"), seen))
    gathered = lattice.everything(own)
    both = lattice.join(gathered, through)
    dweight = None if both is None else lattice.reshaped(both, (1,) * weight.ndim)
    return [dx, dweight, dbias]
