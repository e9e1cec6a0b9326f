"""What happened in which order: scores, optimizer steps and escapes, folded so that long runs stay short."""

from __future__ import annotations

from causaltrace.report.model import Moment
from causaltrace.site import Site

#: Moments that are kept; over it, neighbours are put together.
LIMIT = 2_000


class Timeline:
    """Consecutive events of one kind and site are one moment."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []

    def add(self, moment: Moment) -> None:
        moments = self.moments
        if moments and _alike(moments[-1], moment):
            moments[-1] = _merged(moments[-1], moment)
            return
        moments.append(moment)
        if len(moments) > LIMIT:
            self._shorten()

    def _shorten(self) -> None:
        """Half as many, by runs of neighbours in which those of one kind and site are put together: within a
        run the order is that of the first ones."""
        run, short = 4, self.moments
        while len(short) > LIMIT // 2 and run <= 2 * LIMIT:
            short = [m for i in range(0, len(self.moments), run) for m in _folded(self.moments[i : i + run])]
            run *= 2
        self.moments = short

    def forget_scores(self) -> None:
        """Explicit scores replace what was taken for scores."""
        kept, self.moments = self.moments, []
        for moment in kept:
            if moment.kind != "score":
                self.add(moment)


def _alike(a: Moment, b: Moment) -> bool:
    return a.kind == b.kind and a.site == b.site


def _merged(a: Moment, b: Moment) -> Moment:
    """``b`` came after ``a``."""
    known = [p for p in (a.first, b.first) if p >= 0]
    return Moment(
        a.kind,
        a.site,
        a.count + b.count,
        min(known, default=-1),
        max(a.last, b.last),
        max(a.label, b.label),
        b.scored,
        a.findings + b.findings,
    )


def _folded(run: list[Moment]) -> list[Moment]:
    out: dict[tuple[str, Site], Moment] = {}
    for moment in run:
        key = (moment.kind, moment.site)
        out[key] = _merged(out[key], moment) if key in out else moment
    return list(out.values())
