"""Which labels reached which scores, as bands that a map can draw.

Positions here are counted through all streams. Neighbouring scores whose labels shift alike are one band, so
that a causal eval of any length is one shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from causaltrace.report.model import Finding, Report

#: A label before its score; one up to that of a finding; one at or after its score that is none: it may have
#: reached the score, which is not proved, or no order that was judged forbids it.
BEFORE, BAD, AHEAD = 0, 1, 2
ROLES = ("plain", "bad", "caution")

#: What is known: all labels of each score, the latest of each, or the labels of findings only.
ALL, LATEST, FINDINGS = "all", "latest", "findings"

Piece = tuple[int, int, int]  #: first label, one past the last, BEFORE, BAD or AHEAD
Rows = Mapping[int, Sequence[Piece]]  #: by score


class Band(NamedTuple):
    """``scores`` of them from ``score`` on. Labels ``first`` to ``stop - 1`` reached the first of them; with
    every further score the two ends move by ``left`` and ``right`` (0 or 1)."""

    score: int
    scores: int
    first: int
    stop: int
    left: int
    right: int
    kind: int


@dataclass(frozen=True, slots=True)
class Influence:
    """``unit``: positions that one step of the bands stands for; above 1 where bands were put together."""

    size: int
    known: str
    unit: int
    bands: Sequence[Band]


def offsets(report: Report) -> dict[str, int]:
    """Where each stream starts in the numbering through all streams."""
    out: dict[str, int] = {}
    at = 0
    for name, size in report.streams:
        out[name] = at
        at += size
    return out


def score_positions(report: Report) -> list[int | None]:
    """The scores' positions through all streams; None where a report of several streams does not tell."""
    if len(report.streams) <= 1:
        return [int(p) for p in report.positions]
    reach = report.reach or [()] * len(report.positions)
    return [
        int(runs[-1]) - 1 + int(lag) if lag is not None and len(runs) else None
        for runs, lag in zip(reach, report.lags, strict=False)
    ]


def influence(report: Report, limit: int) -> Influence:
    """What is known of the pairs of labels and scores, in at most about ``limit`` bands."""
    known, rows = _rows(report)
    ends = (stop for score, pieces in rows.items() for stop in (score + 1, *(p[1] for p in pieces)))
    size = max(report.labels, *ends, 1)
    unit, found = 1, bands(rows)
    while len(found) > limit and unit < size:
        unit *= 2
        rows = _coarser(rows)
        found = bands(rows)
    return Influence(size, known, unit, found)


def _rows(report: Report) -> tuple[str, dict[int, list[Piece]]]:
    at = offsets(report)
    sources: dict[int, set[int]] = {}  #: the labels of findings, by score
    for f in report.violations:
        if f.kind != "CT006":  # scored twice: no label is at fault
            target, source = _place(f, at)
            sources.setdefault(target, set()).add(source)
    rows: dict[int, list[Piece]] = {}
    known = FINDINGS
    scores = score_positions(report)
    if len(report.lags) == len(scores) and any(s is not None for s in scores):
        known = LATEST if report.reach is None else ALL
        for i, score in enumerate(scores):
            if score is None:
                continue
            worst = max(sources.get(score, ()), default=-1)
            pieces = rows.setdefault(score, [])
            for first, stop in _labels(report, i, score):
                pieces += _split(score, first, stop, worst)
    for score, labels in sources.items():
        pieces = rows.setdefault(score, [])
        pieces += [(s, s + 1, BAD) for s in sorted(labels) if not _covered(pieces, s)]
    return known, rows


def _place(finding: Finding, at: Mapping[str, int]) -> tuple[int, int]:
    return finding.target + at.get(finding.stream, 0), finding.source + at.get(finding.source_stream, 0)


def _labels(report: Report, i: int, score: int) -> Iterable[tuple[int, int]]:
    """The labels known to have reached score number ``i``, as runs."""
    if report.reach is not None:
        runs = report.reach[i]
        return zip(runs[::2], runs[1::2], strict=True)
    lag = report.lags[i]
    return () if lag is None else ((score - lag, score - lag + 1),)


def _split(score: int, first: int, stop: int, worst: int) -> list[Piece]:
    """A run of labels parted at its score and at the latest label that a finding names."""
    bad = max(score, worst + 1)
    parts = [
        (first, min(stop, score), BEFORE),
        (max(first, score), min(stop, bad), BAD),
        (max(first, bad), stop, AHEAD),
    ]
    return [(a, b, kind) for a, b, kind in parts if a < b]


def _covered(pieces: Iterable[Piece], label: int) -> bool:
    return any(first <= label < stop for first, stop, _ in pieces)


def bands(rows: Rows) -> list[Band]:
    """Rows put together as long as the ends of their pieces move alike."""
    out: list[Band] = []
    open_: dict[tuple[int, int], int] = {}  #: which band the n-th piece of a kind in the row above belongs to
    above = -2
    for score in sorted(rows):
        now: dict[tuple[int, int], int] = {}
        count: Counter[int] = Counter()
        for first, stop, kind in sorted(rows[score]):
            key = (kind, count[kind])
            count[kind] += 1
            number = open_.get(key) if score == above + 1 else None
            longer = None if number is None else _longer(out[number], first, stop)
            if number is None or longer is None:
                now[key] = len(out)
                out.append(Band(score, 1, first, stop, 0, 0, kind))
            else:
                now[key] = number
                out[number] = longer
        open_, above = now, score
    return out


def _longer(band: Band, first: int, stop: int) -> Band | None:
    """The band with one more row, if that row goes on as the band does."""
    score, scores, begin, end, left, right, kind = band
    if scores == 1:
        left, right = first - begin, stop - end
    goes_on = first == begin + left * scores and stop == end + right * scores
    fits = goes_on and 0 <= left <= 1 and 0 <= right <= 1
    return Band(score, scores + 1, begin, end, left, right, kind) if fits else None


def _coarser(rows: Rows) -> dict[int, list[Piece]]:
    """Pairs of positions as one: what reached either of two scores, and either of two labels."""
    halved: dict[int, list[Piece]] = {}
    for score, pieces in rows.items():
        halved.setdefault(score // 2, []).extend(
            (first // 2, (stop - 1) // 2 + 1, kind) for first, stop, kind in pieces
        )
    return {score: _joined(pieces) for score, pieces in halved.items()}


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Overlapping and touching pieces of one kind as one."""
    out: list[Piece] = []
    for kind, group in groupby(sorted(pieces, key=lambda p: (p[2], p)), key=lambda p: p[2]):
        fresh = True
        for first, stop, _ in group:
            if not fresh and first <= out[-1][1]:
                out[-1] = (out[-1][0], max(stop, out[-1][1]), kind)
            else:
                out.append((first, stop, kind))
            fresh = False
    return out
