"""Labels that Python got and that nothing was ever seen to score: there may be a score that only Python saw.

``p[y.item()]``, ``p.tolist()[y]`` or a number that is computed from them is no readout. In a run with other
scores it would be passed over in silence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.ledger import Ledger
from causaltrace.report.model import Notice


class Unscored:
    """Remembers which labels had no score when they went to Python."""

    def __init__(self) -> None:
        self._left: list[Tensor] = []

    def left(self, cells: Cells) -> None:
        """Values with these supports did."""
        unscored = cells.data[..., 1].reshape(-1) >> 1
        self._left.append(unscored.amax()[None] if unscored.numel() > 1 else unscored)

    def notice(self, ledger: Ledger) -> Notice | None:
        """What is said of those that have none at the end. Labels before the first score are context."""
        if not self._left or not ledger.order:
            return None
        scored = ledger.is_scored
        where = torch.cat([t.to(scored.device) for t in self._left]).unique().long()
        first = int(scored.int().argmax())
        lost = where[(where > first) & ~scored[where.clamp(min=0)]]
        if not lost.numel():
            return None
        return Notice(
            "CT101",
            "Python got labels that were never scored, or numbers that depend on them: a score that it read "
            "out of a row by itself is not seen",
            remedy="read rows at labels in torch or numpy (p[y], gather), or say what is scored: trace.score",
            count=int(lost.numel()),
            label=int(lost.max()),
            blocking=True,
        )
