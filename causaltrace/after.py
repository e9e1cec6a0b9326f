"""What an operation leaves to be done once its results are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from causaltrace.ledger import Pending
from causaltrace.shadow import Shadow

if TYPE_CHECKING:
    from causaltrace.context import Context
    from causaltrace.counts import Held


class After:
    """What one op leaves to be done once its results are written."""

    __slots__ = ("candidates", "escapes", "leaving", "picked", "shadows", "sized")

    def __init__(self, shadows: list[Shadow] | None = None) -> None:
        self.shadows: list[Shadow] = shadows or []
        self.leaving: list[Shadow] = []
        self.picked: list[Shadow] = []
        self.candidates: list[Pending] = []
        self.escapes: list[tuple[str, Shadow]] = []
        self.sized: list[Held] | None = None  #: as many elements as masks chose; what that tells of

    def report(self, tracer: Context) -> None:
        if not (self.leaving or self.picked or self.candidates or self.escapes):
            return
        site = tracer.site("score")
        for shadow in self.picked:
            tracer.recorder.picked(shadow, site)
        for shadow in self.leaving:
            tracer.recorder.scored(shadow, site)
        for pending in self.candidates:
            tracer.recorder.candidate(pending, site)
        for what, shadow in self.escapes:
            tracer.recorder.escaped(what, shadow, tracer.site("host"))
