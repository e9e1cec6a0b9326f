"""The horizon lattice: one number per element, the latest label position that it may depend on.

Legality compares the latest label with the scored position, so the maximum is all that a verdict needs.
Two lanes: the latest label, and the latest label that was *unscored when it was read*. A lane holds
``2 * position + direct`` where ``direct`` is 0 once the label has passed through a backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from causaltrace._compat import as_numpy

#: Elements that one step of a contraction may hold; larger ones are done in blocks of query rows.
CONTRACT_BLOCK = 1 << 22


class Horizon:
    """Two int32 lanes: latest label, latest unscored label; -1 is bottom."""

    width = 2
    bottom = -1

    def read(self, positions: Tensor, scored: Tensor) -> Tensor:
        position = positions[..., 0].to(torch.int32)
        label = torch.where(position >= 0, position * 2 + 1, -1)
        known = scored.to(position.device)[position.clamp(min=0).long()]
        return torch.stack((label, torch.where(known, -1, label)), dim=-1)

    def join(self, *xs: Tensor) -> Tensor:
        out = xs[0]
        for x in xs[1:]:
            out = torch.maximum(out, x)
        return out

    def reduce(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        return torch.amax(x, dim=tuple(dims), keepdim=True)

    def running(self, x: Tensor, dim: int, reverse: bool) -> Tensor:
        if reverse:
            return torch.cummax(x.flip(dim), dim).values.flip(dim)
        return torch.cummax(x, dim).values

    def keep(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask.unsqueeze(-1), x, -1)

    def contract(self, mask: Tensor, x: Tensor) -> Tensor:
        keys = x.transpose(-3, -2)  # [..., 1, K, width]
        batch = torch.broadcast_shapes(mask.shape[:-2], keys.shape[:-3])
        cost = max(1, batch.numel()) * mask.shape[-1] * self.width
        step = max(1, CONTRACT_BLOCK // max(1, cost))
        blocks = [torch.where(rows.unsqueeze(-1), keys, -1).amax(-2) for rows in mask.split(step, dim=-2)]
        return torch.cat(blocks, dim=-2).unsqueeze(-2)

    def bounds(self, x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if x.numel() == x.shape[-1]:
            value = tuple(x.flatten().tolist())
            return value, value
        if not x.numel():
            return (self.bottom,) * self.width, (self.bottom,) * self.width
        rows = x.reshape(-1, x.shape[-1])
        if x.shape[-1] == Horizon.width and x.device.type == "cpu":  # several times as fast, on one thread
            lanes = [as_numpy(lane) for lane in rows.unbind(1)]
            return tuple(int(lane.min()) for lane in lanes), tuple(int(lane.max()) for lane in lanes)
        low, high = torch.aminmax(rows, dim=0)
        return tuple(low.tolist()), tuple(high.tolist())

    def below(self, low: tuple[int, ...], high: tuple[int, ...]) -> bool:
        return low[0] <= high[0] and low[1] <= high[1]

    def indirect(self, x: Tensor) -> Tensor:
        """The same labels, marked as having passed through a backward pass."""
        return torch.where(x >= 0, x & ~1, x)

    def members(self, x: Tensor) -> Tensor:
        return x[..., Horizon.width :] >= 0

    @staticmethod
    def position(value: Tensor) -> Tensor:
        """Label positions of a lane; bottom gives -1."""
        return value >> 1
