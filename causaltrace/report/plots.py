"""Plots of a report: which labels reached which scores, how far away they were, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from causaltrace.report import axes
from causaltrace.report.drawing import Drawing, Line, Point, Polygon, Rect, Shape, Text, to_svg, write_png
from causaltrace.report.influence import (
    AHEAD,
    ALL,
    BAD,
    BEFORE,
    FINDINGS,
    LATEST,
    ROLES,
    Band,
    influence,
    score_positions,
)
from causaltrace.report.model import Report
from causaltrace.report.timeline import timeline

_BANDS = 4_000  #: in a drawing; more are put together
_STAIRS = 64  #: a band of more scores has straight sides
_NOT_RECORDED = "this report does not say how far each score's latest label was: run the eval again"


def plot(report: Report, path: str | Path, kind: str = "influence") -> None:
    """Draw one of `KINDS` to a file; its name ends in ``.svg`` or ``.png`` (which needs Pillow).

    Raises:
        ValueError: another kind, another ending, or a report without the data.
        ImportError: a PNG without Pillow.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, not {kind!r}")
    ending = Path(path).suffix.lower()
    if ending not in (".svg", ".png"):
        raise ValueError(f"a plot's file ends in .svg or .png, not {Path(path).name!r}")
    drawing = KINDS[kind](report)
    if ending == ".png":
        write_png(drawing, path)
    else:
        Path(path).write_text(to_svg(drawing) + "\n", encoding="utf-8")


# -- the map ------------------------------------------------------------------------------------------


def influence_map(report: Report, width: int = 720) -> Drawing:
    """Labels across, scores down; what lies above the diagonal is not before its score."""
    found = influence(report, _BANDS)
    side = width - axes.LEFT - axes.RIGHT
    right, bottom = axes.LEFT + side, axes.TOP + side
    x = axes.linear(0, found.size, axes.LEFT, right)
    y = axes.linear(0, found.size, axes.TOP, bottom)
    drawing = Drawing(width, bottom + axes.BOTTOM, "Influence map", counts_text(report))
    marks = axes.ticks(found.size, 6)
    drawing.shapes += axes.up([(y(v), f"{v:,}") for v in marks], axes.LEFT, right, "score")
    drawing.shapes += axes.across(marks, x, axes.TOP, bottom, f"label ({_WHICH[found.known]})")
    drawing.shapes.append(Line(((axes.LEFT, axes.TOP), (right, bottom)), "axis"))
    pixel = found.size / side / found.unit
    for band in sorted(found.bands, key=lambda b: (BEFORE, AHEAD, BAD).index(b.kind)):
        drawing.shapes.append(_band(band, found.unit, x, y, pixel))
    entries = [("plain", "label before its score"), ("bad", "violation")]
    if any(b.kind == AHEAD for b in found.bands):
        entries.insert(1, ("caution", ahead_words(report)))
    drawing.shapes += axes.legend(entries, right)
    return drawing


_WHICH = {
    ALL: "all that reached the score",
    LATEST: "the latest that reached the score",
    FINDINGS: "findings only",
}


def ahead_words(report: Report) -> str:
    """What a label at or after its score is that no finding names."""
    return "may have reached it: not proved" if "stream" in report.orders else "later, no finding"


def _band(band: Band, unit: int, x: axes.Scale, y: axes.Scale, pixel: float) -> Shape:
    """One band as a polygon, at least two pixels thick if it is a finding."""
    score, count, first, stop, left, right, kind = band
    least = pixel * (2 if kind == BAD else 1.2)
    wide = max(stop - first, least)
    if not left and not right:
        height = max(count, least)
        start = x(first * unit), y(score * unit)
        return Rect(*start, x(wide * unit) - x(0), y(height * unit) - y(0), ROLES[kind])
    if count <= _STAIRS:
        rows = [(i, i + 1) for i in range(count)]
        ends = [(first + wide + right * i, score + j) for i, pair in enumerate(rows) for j in pair]
        starts = [(first + left * i, score + j) for i, pair in enumerate(rows) for j in pair]
    else:
        more = count - 1
        ends = [(first + wide, score), (first + wide + right * more, score + more)]
        ends.append((first + wide + right * more, score + count))
        starts = [(first, score), (first, score + 1), (first + left * more, score + count)]
    points: list[Point] = [(x(a * unit), y(b * unit)) for a, b in (*ends, *reversed(starts))]
    return Polygon(points, ROLES[kind])


# -- distances ----------------------------------------------------------------------------------------


def lag_counts(report: Report) -> list[tuple[int | None, str, int]]:
    """Scores by how far before them their latest label is: (least distance, words, how many).

    Labels that come later are first, furthest ahead first; scores that no label reached are last.
    """
    bins = Counter(None if lag is None else _bin(int(lag)) for lag in report.lags)
    known = sorted(b for b in bins if b is not None)
    rows: list[tuple[int | None, str, int]] = [(b, _bin_words(b), bins[b]) for b in known]
    if bins[None]:
        rows.append((None, "no label", bins[None]))
    return rows


def _bin(lag: int) -> int:
    """The power of two at or below a distance, with its sign."""
    size = 1 << abs(lag).bit_length() - 1 if lag else 0
    return -size if lag < 0 else size


def _bin_words(low: int) -> str:
    if low == 0:
        return "its own label"
    size = abs(low)
    span = f"{size:,}" if size == 1 else f"{size:,}-{2 * size - 1:,}"
    return f"{span} {'before' if low > 0 else 'ahead'}"


def counts_text(report: Report) -> str:
    """The histogram in a sentence, for those who do not see it."""
    rows = lag_counts(report)
    if not rows:
        return f"{len(report.violations):,} findings."
    return "Latest label of each score: " + ", ".join(f"{words}: {n:,}" for _, words, n in rows) + "."


def lag_histogram(report: Report, width: int = 720) -> Drawing:
    """A bar for each range of distances between a score and its latest label."""
    rows = lag_counts(report)
    if not rows:
        raise ValueError(_NOT_RECORDED)
    left, bar = 14 + axes.width_of(max((words for _, words, _ in rows), key=len)), 18
    height = axes.TOP + len(rows) * (bar + 6) + 8
    drawing = Drawing(width, height, "Distances", counts_text(report))
    x = axes.linear(0, max(n for *_, n in rows), 0, width - left - 110)
    total = len(report.lags)
    for i, (low, words, n) in enumerate(rows):
        y = axes.TOP + i * (bar + 6)
        drawing.shapes.append(Text(left - 8, y + 13, words, "ink", "end"))
        drawing.shapes.append(Rect(left, y, max(x(n), 1.5), bar, _late_role(report, low)))
        drawing.shapes.append(Text(left + max(x(n), 1.5) + 6, y + 13, f"{n:,}  ({_percent(n, total)})"))
    caption = "where the latest label of each score is" if width > 500 else "latest label of each score"
    drawing.shapes.append(Text(6, 14, caption, "ink"))
    return drawing


def _percent(n: int, total: int) -> str:
    share = 100 * n / total
    return "100%" if n == total else "<0.1%" if share < 0.1 else f"{min(share, 99.9):.1f}%"


def _late_role(report: Report, lag: int | None) -> str:
    if lag is None or lag > 0:
        return "plain"
    return "bad" if "stream" in report.orders else "caution"


def _distances(report: Report) -> list[tuple[int, int]]:
    """Scores, and how far ahead of each its latest label is."""
    pairs = zip(score_positions(report), report.lags, strict=False)
    return [(p, -int(lag)) for p, lag in pairs if p is not None and lag is not None]


def has_reach(report: Report) -> bool:
    """Is there more to see than in the histogram?"""
    return len({distance for _, distance in _distances(report)}) > 1


def reach_plot(report: Report, width: int = 720) -> Drawing:
    """Over the positions: how far each score's latest label is, before it (below) or ahead (above)."""
    points = _distances(report)
    if not points:
        raise ValueError(_NOT_RECORDED)
    height, right = 320, width - axes.RIGHT
    bottom = height - axes.BOTTOM
    low = min(-1, *(d for _, d in points))
    high = max(1, *(d for _, d in points))
    size = max(report.labels, max(p for p, _ in points) + 1)
    x = axes.linear(0, size, axes.LEFT, right)
    y = axes.linear(axes.signed_log(low), axes.signed_log(high), bottom - 6, axes.TOP + 6)
    drawing = Drawing(width, height, "Reach", counts_text(report))
    heights = [(y(axes.signed_log(v)), f"{v:+,}" if v else "own") for v in axes.distances(low, high)]
    drawing.shapes += axes.up(heights, axes.LEFT, right, "latest label, positions from its score")
    drawing.shapes += axes.across(axes.ticks(size, width // 120), x, axes.TOP, bottom, "score")
    drawing.shapes += _columns(report, points, x, y)
    if width > 500:
        drawing.shapes += axes.legend([("plain", "before"), (_late_role(report, 0), "own or ahead")], right)
    return drawing


def _columns(report: Report, points: list[tuple[int, int]], x: axes.Scale, y: axes.Scale) -> Iterator[Shape]:
    """The range of distances in each column of a pixel and a half; early and late ones apart."""
    ranges: dict[tuple[int, bool], tuple[int, int]] = {}
    for position, distance in points:
        key = (int(x(position) / 1.5), distance >= 0)
        low, high = ranges.get(key, (distance, distance))
        ranges[key] = (min(low, distance), max(high, distance))
    wide = max(1.5, x(1) - x(0))
    for (column, late), (low, high) in sorted(ranges.items()):
        top, end = y(axes.signed_log(high)), y(axes.signed_log(low))
        role = _late_role(report, 0 if late else 1)
        yield Rect(column * 1.5, top - 1, wide, end - top + 2, role)


KINDS: dict[str, Callable[[Report], Drawing]] = {
    "influence": influence_map,
    "lags": lag_histogram,
    "reach": reach_plot,
    "timeline": timeline,
}
