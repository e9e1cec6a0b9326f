"""Small convolutions, followed weight by weight: products of weights with unfolded windows.

``out[n, o, p] = union over c, t of W[o, c, t] | x[n, c, read(p, t)]`` with the zeros of either cutting the
other, as in any product (``matmul``). Transposed and backward forms read the same table of places the other
way round. Beyond ``LIMIT`` ``conv`` joins the channels instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall
from causaltrace.rules.matmul import product

#: Elements that an unfolded support may spell out.
LIMIT = 1 << 18


class Unfolded:
    """The places that a convolution connects: ``places [outputs, taps]``, flat places of the inputs."""

    def __init__(
        self, op: OpCall, inputs: tuple[int, ...], outputs: tuple[int, ...], taps: torch.Size
    ) -> None:
        n = len(inputs)
        stride, padding, dilation = (
            list(op.args[k]) * (n if len(op.args[k]) == 1 else 1) for k in ("stride", "padding", "dilation")
        )
        flat = torch.zeros(1, 1, dtype=torch.long)
        inside = torch.ones(1, 1, dtype=torch.bool)
        for d in range(n):
            at = (
                torch.arange(outputs[d]).unsqueeze(1) * stride[d]
                + torch.arange(taps[d]) * dilation[d]
                - padding[d]
            )
            fits = (at >= 0) & (at < inputs[d])
            shape = (flat.shape[0] * outputs[d], flat.shape[1] * taps[d])
            flat = (flat[:, None, :, None] * inputs[d] + at[None, :, None, :]).reshape(shape)
            inside = (inside[:, None, :, None] & fits[None, :, None, :]).reshape(shape)
        self.sizes = math.prod(inputs), math.prod(outputs)
        self.places = torch.where(inside, flat, self.sizes[0])

    def back(self) -> Tensor:
        """``[inputs, taps]``: the output that reads a place through a tap."""
        ins, outs = self.sizes
        table = torch.full((ins + 1, self.places.shape[1]), outs)
        taps = torch.arange(self.places.shape[1]).expand_as(self.places)
        table[self.places, taps] = torch.arange(outs).unsqueeze(1).expand_as(self.places)
        return table[:ins]


def _columns(data: Tensor, groups: int, table: Tensor, fill: float) -> Tensor:
    """``[N, C, *places, lanes]`` as ``[N, groups, C / groups * taps, places, lanes]``."""
    n, c, lanes = data.shape[0], data.shape[1], data.shape[-1]
    flat = data.reshape(n, groups, c // groups, -1, lanes)
    flat = torch.cat((flat, flat.new_full((*flat.shape[:3], 1, lanes), fill)), 3)
    read = flat[:, :, :, table.to(data.device)]  # [N, groups, C / groups, places, taps, lanes]
    return read.transpose(3, 4).reshape(n, groups, -1, table.shape[0], lanes)


def _matrix(data: Tensor, groups: int, swap: bool) -> Tensor:
    """Weights ``[A, B, *taps, lanes]`` as ``[1, groups, A / groups, B * taps, lanes]``, A and B swapped if
    asked."""
    split = data.reshape(groups, data.shape[0] // groups, data.shape[1], -1, data.shape[-1])
    if swap:
        split = split.transpose(1, 2)
    return split.reshape(1, groups, split.shape[1], -1, data.shape[-1])


Form = Callable[[Tensor, float], Tensor]


class Factor(NamedTuple):
    """A matrix of values, and its support."""

    value: Tensor
    own: Cells | None


def _factor(op: OpCall, name: str, form: Form) -> Factor:
    """A tensor argument brought into the form of a matrix; what lies outside is 0 and depends on nothing."""
    value, own, bottom = op.tensor(name), op.cells(name), op.lattice.lattice.bottom
    shape = value.shape
    if own is not None:
        own = op.lattice.move(own, lambda data: form(data.expand(*shape, -1), bottom))
    return Factor(form(value.detach().unsqueeze(-1), 0)[..., 0], own)


def _product(op: OpCall, a: Factor, b: Factor, shape: tuple[int, ...]) -> Cells | None:
    """Support of ``a @ b``, as that of a tensor of this shape."""
    out = product(op, a.value, b.value, a.own, b.own)
    if out is None or out.uniform:
        return None if out is None else op.lattice.reshaped(out, (1,) * len(shape))
    full = torch.broadcast_shapes(a.value.shape[:-2], b.value.shape[:-2])
    full = (*full, a.value.shape[-2], b.value.shape[-1])
    return op.lattice.move(out, lambda data: data.expand(*full, -1).reshape(*shape, -1))


class Small:
    """A convolution that is small enough."""

    def __init__(self, op: OpCall, result: Tensor) -> None:
        self.op = op
        weight, x = op.tensor("weight"), op.tensor("input")
        self.taps = weight.ndim - 2
        self.groups, self.transposed = int(op.get("groups", 1)), bool(op.get("transposed", False))
        ins, outs = tuple(x.shape[-self.taps :]), tuple(result.shape[-self.taps :])
        if self.transposed:
            ins, outs = outs, ins
        self.unfolded = Unfolded(op, ins, outs, weight.shape[2:])

    @staticmethod
    def fits(op: OpCall, result: Tensor) -> bool:
        weight, x = op.tensor("weight"), op.tensor("input")
        spread = max(x.numel(), result.numel()) * max(weight.shape[:2]) * math.prod(weight.shape[2:])
        known = [c for c in (op.cells("input"), op.cells("weight"), op.cells("grad_output")) if c is not None]
        return spread <= LIMIT and not all(c.uniform for c in known)

    def columns(self, name: str, table: Tensor) -> Factor:
        taps, groups = self.taps, self.groups

        def form(data: Tensor, fill: float) -> Tensor:
            return _columns(data if data.ndim == taps + 3 else data.unsqueeze(0), groups, table, fill)

        return _factor(self.op, name, form)

    def weights(self, swap: bool) -> Factor:
        return _factor(self.op, "weight", lambda data, _: _matrix(data, self.groups, swap))

    def forward(self, result: Tensor) -> Cells | None:
        table = self.unfolded.back() if self.transposed else self.unfolded.places
        return _product(
            self.op, self.weights(self.transposed), self.columns("input", table), tuple(result.shape)
        )

    def to_input(self) -> Cells | None:
        table = self.unfolded.places if self.transposed else self.unfolded.back()
        columns = self.columns("grad_output", table)
        return _product(
            self.op, self.weights(not self.transposed), columns, tuple(self.op.tensor("input").shape)
        )

    def to_weight(self) -> Cells | None:
        """One side unfolded, the other as it is, summed over the batch and the places."""
        flat, unfolded = ("input", "grad_output") if self.transposed else ("grad_output", "input")
        groups = self.groups

        def rows(data: Tensor, _: float) -> Tensor:
            n, c, lanes = data.shape[0], data.shape[1], data.shape[-1]
            split = data.reshape(n, groups, c // groups, -1, lanes).permute(1, 2, 0, 3, 4)
            return split.reshape(groups, c // groups, -1, lanes)

        def columns(data: Tensor, fill: float) -> Tensor:
            read = _columns(data, groups, self.unfolded.places, fill)  # [N, groups, C * taps, places, lanes]
            read = read.permute(1, 0, 3, 2, 4)
            return read.reshape(groups, -1, read.shape[3], read.shape[4])

        a, b = _factor(self.op, flat, rows), _factor(self.op, unfolded, columns)
        return _product(self.op, a, b, tuple(self.op.tensor("weight").shape))
