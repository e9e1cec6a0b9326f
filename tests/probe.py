"""A small flip oracle for single forward passes and short adaptations, independent of causaltrace.

An *eval* maps a 1-D token stream to (rows, positions): logits ``[n, classes]`` and the stream position that
each row scores. ``flips`` gives the truth by flipping every label; ``watched`` what the watch says of the
same function, under the same settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace.report.model import Report

Eval = Callable[[Tensor], tuple[Tensor, Tensor]]

CLASSES = 11
LENGTH = 8


class Seen(NamedTuple):
    """``violating``: positions whose row depends on its own or a later label. ``latest``: the latest label
    that each row depends on (-1: none)."""

    violating: set[int]
    latest: list[int]

    def __or__(self, other: tuple[object, ...]) -> Seen:
        assert isinstance(other, Seen)
        latest = [max(a, b) for a, b in zip(self.latest, other.latest, strict=True)]
        return Seen(self.violating | other.violating, latest)


def stream(length: int = LENGTH + 1, seed: int = 0) -> Tensor:
    return torch.randint(CLASSES, (length,), generator=torch.Generator().manual_seed(seed))


def flips(run: Eval, tokens: Tensor, replacements: int = 3) -> Seen:
    """Flip every label, run again, compare rows bit by bit."""
    rows, positions = run(tokens)
    base = rows.detach().clone()
    where = positions.tolist()
    latest = [-1] * len(where)
    violating = set()
    for label in range(len(tokens)):
        for step in range(1, replacements + 1):
            flipped = tokens.clone()
            flipped[label] = (flipped[label] + step * 3) % CLASSES
            moved = run(flipped)[0].detach()
            same = (moved == base) | (moved.isnan() & base.isnan())
            for i in (~same.all(-1)).nonzero()[:, 0].tolist():
                latest[i] = max(latest[i], label)
                if label >= where[i]:
                    violating.add(where[i])
    return Seen(violating, latest)


class Watched(NamedTuple):
    report: Report
    seen: Seen
    nll: Tensor


def watched(run: Eval, tokens: Tensor) -> Watched:
    """The verdict, the violating positions, and the horizon of every row."""
    with causaltrace.watch(tokens) as trace:
        rows, positions = run(tokens)
        shadow = trace._tracer.memory.read(rows)
        cells = None if shadow is None else shadow.support
        with torch.no_grad():
            nll = F.cross_entropy(rows.float(), tokens[positions], reduction="none")
            total = nll.sum()
    if cells is None:
        latest = [-1] * len(positions)
    else:
        lane = cells.data[..., 0].expand(len(positions), -1) if cells.data.ndim == 3 else cells.data[..., 0]
        latest = (lane.amax(-1) >> 1).tolist()
    violating = {f.target for f in trace.report.violations}
    return Watched(trace.report, Seen(violating, latest), total)
