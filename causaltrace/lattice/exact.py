"""The exact lattice: beside the horizon's two lanes one more lane for each label of a window.

A label's lane holds 1 where it was read as it is, 0 where it came through a backward pass only, -1 where it
did not reach. Joining is the maximum in every lane, so all that the rules do to supports stays the same, and
the horizon of an element is always there to be compared with its set of labels.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from causaltrace.lattice.horizon import Horizon


class Exact(Horizon):
    """Sets of labels within ``window`` (global positions)."""

    def __init__(self, window: range) -> None:
        self.window = window
        self.width = Horizon.width + len(window)

    def read(self, positions: Tensor, scored: Tensor) -> Tensor:
        labels = torch.arange(self.window.start, self.window.stop, device=positions.device)
        own = (positions[..., :1] == labels).to(torch.int32) * 2 - 1
        return torch.cat((super().read(positions, scored), own), dim=-1)

    def contract(self, mask: Tensor, x: Tensor) -> Tensor:
        """As products of matrices: how many of the kept keys hold a label."""
        labels = x[..., 0, Horizon.width :]  # [..., K, window]
        kept = mask.float()
        lanes = torch.where(kept @ (labels > 0).float() > 0, 1, 0)
        lanes = torch.where(kept @ (labels >= 0).float() > 0, lanes, -1).to(torch.int32)
        return torch.cat((super().contract(mask, x[..., : Horizon.width]), lanes.unsqueeze(-2)), dim=-1)

    def below(self, low: tuple[int, ...], high: tuple[int, ...]) -> bool:
        return all(map(operator.le, low, high))
