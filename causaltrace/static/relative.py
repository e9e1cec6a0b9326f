"""State as the next step sees it: all labels that the loop has passed are one and the same, "the past".

Positions are counted from the last score on. What a step makes of two states that look the same from there is
the same: rules and judge only ask which of two labels is later, which one an element is, and what is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from causaltrace.ledger import POSITION_MASK, Ledger, Pending
from causaltrace.shadow import Shadow

#: The place of what is no label and no readout.
NONE = -(1 << 60)


class Look(NamedTuple):
    """One tensor of the state. ``support``, ``possible [*dims, 2]``: places of the latest label and of the
    latest unscored one; ``label``, ``target``: the label or readout that each element is."""

    shape: tuple[int, ...] = ()
    support: Tensor | None = None
    possible: Tensor | None = None
    label: Tensor | None = None
    target: Tensor | None = None
    pending: tuple[int, ...] = ()

    @property
    def holds(self) -> bool:
        """Does it hold any label?"""
        return any(part is not None for part in self[1:5]) or bool(self.pending)

    def within(self, other: Look) -> bool:
        """Is it no more than ``other``, a look at the same tensor one step earlier?"""
        return (
            (self.shape == other.shape or not self.holds)
            and _below(self.support, other.support)
            and _below(self.possible, other.possible)
            and _same(self.label, other.label)
            and _same(self.target, other.target)
            and set(self.pending) <= set(other.pending)
        )


class Frontier:
    """How far the loop has come. ``streams``: the first position of each, and the last one that no later
    step scores."""

    def __init__(self, ledger: Ledger, streams: Sequence[tuple[int, int]]) -> None:
        self.ledger = ledger
        size = ledger.is_scored.numel()
        at = torch.arange(size)
        row, ahead = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
        for i, (first, last) in enumerate(streams):
            row[first:], ahead[first:] = i, at[first:] - last
        bottom = torch.full((1,), -1)
        #: by position (the last entry is for -1): the past of a stream, and then its labels to come
        self._place = torch.cat((row * (size + 1) + ahead.clamp(min=0), bottom))
        self._unscored = torch.where(torch.cat((ahead, bottom)) > 0, self._place, -1)
        self._which = torch.cat((row * (1 << 31) + ahead, torch.full((1,), NONE)))
        #: places of labels to come that were read
        self.read = set(self._place[:-1][ledger.was_read & (ahead > 0)].tolist())

    def look(self, shape: Sequence[int], shadow: Shadow | None) -> Look:
        if shadow is None:
            return Look(tuple(shape))
        target = None if shadow.target is None else _positions(shadow.target.data)
        marks = [shadow.label, shadow.onehot]
        labels = [c.data for c in marks if c is not None] + ([] if target is None else [target])
        possible = shadow.possible if shadow.possible is not None else shadow.support
        pending: set[int] = set()
        for waiting in shadow.pending:
            if isinstance(waiting, Pending) and waiting.shadow.target is not None:
                pending |= set(self._which[_positions(waiting.shadow.target.data)].flatten().tolist())
        return Look(
            tuple(shape),
            self._lanes([shadow.support, shadow.post], labels, bound=False),
            self._lanes([possible, shadow.post], labels, bound=True),
            self._identity([c.data for c in marks if c is not None]),
            self._identity([] if target is None else [target]),
            tuple(sorted(pending)),
        )

    def _lanes(self, cells: Sequence[object], labels: list[Tensor], bound: bool) -> Tensor | None:
        ledger = self.ledger
        parts = [ledger.now(c.data, bound) for c in cells if c is not None]  # type: ignore[attr-defined]
        parts += [ledger.algebra.lattice.read(data, ledger.is_scored) for data in labels]
        out: Tensor | None = None
        for part in parts:
            at = (part[..., :2] >> 1).long()
            placed = torch.stack((self._place[at[..., 0]], self._unscored[at[..., 1]]), -1)
            out = placed if out is None else torch.maximum(out, placed)
        return out

    def _identity(self, positions: list[Tensor]) -> Tensor | None:
        if not positions:
            return None
        return torch.stack([self._which[p[..., 0].long()] for p in torch.broadcast_tensors(*positions)])


def _positions(target: Tensor) -> Tensor:
    return torch.where(target >= 0, target & POSITION_MASK, -1)


def _below(new: Tensor | None, old: Tensor | None) -> bool:
    if new is None or bool((new < 0).all()):
        return True
    if old is None or old.ndim != new.ndim:
        return False
    return bool((new <= old).all())


def _same(new: Tensor | None, old: Tensor | None) -> bool:
    if new is None or old is None:
        return new is old
    return new.ndim == old.ndim and bool((new == old).all())
