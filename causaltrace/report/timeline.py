"""The steps of a run: the latest label that the state has seen against the positions scored so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from causaltrace.report import axes
from causaltrace.report.drawing import Drawing, Line, Point, Rect, Shape
from causaltrace.report.model import Moment, Report


class Step(NamedTuple):
    """After a moment: the latest label in the ``state``, the last position scored (``front``); -1: none.
    ``findings`` and ``escapes`` it brought, and how many ``moments`` it stands for."""

    state: int
    front: int
    findings: int
    escapes: int
    moments: int = 1

    @property
    def ahead(self) -> int:
        """How far the state is past everything scored; above 0 it has seen labels that were not."""
        return self.state - self.front


def steps(timeline: Sequence[Moment]) -> list[Step]:
    """One step a moment. An update replaces what the state is said to know: it may have been reset."""
    out: list[Step] = []
    state = front = -1
    for m in timeline:
        if m.kind == "update":
            state = m.label
        elif m.kind == "score":
            front = max(front, m.last)
        out.append(Step(state, front, m.findings, m.count if m.kind == "escape" else 0))
    return out


def abridged(steps: Sequence[Step], limit: int) -> list[Step]:
    """At most ``limit`` steps; each is the worst of those that it stands for."""
    size = -(-len(steps) // limit) or 1
    out = []
    for i in range(0, len(steps), size):
        part = steps[i : i + size]
        worst = max(part, key=lambda s: s.ahead)
        shown = worst if worst.ahead > 0 else part[-1]
        findings, escapes = sum(s.findings for s in part), sum(s.escapes for s in part)
        out.append(Step(shown.state, shown.front, findings, escapes, len(part)))
    return out


def summary(report: Report) -> str:
    """What the drawing shows, in a sentence."""
    all_steps = steps(report.timeline)
    ahead = sum(s.ahead > 0 for m, s in zip(report.timeline, all_steps, strict=True) if m.kind == "update")
    updates = sum(m.kind == "update" for m in report.timeline)
    if not updates:
        return "No state was updated from labels."
    if not ahead:
        return "No update used a label past the last scored position."
    worst = max(s.ahead for s in all_steps)
    return f"{ahead:,} of {updates:,} updates used labels up to {worst:,} past the last scored position."


def timeline(report: Report, width: int = 1080) -> Drawing:
    """The drawing; raises ``ValueError`` when the report has no timeline."""
    if not report.timeline:
        raise ValueError("this report has no timeline: run the eval again with this version")
    height, right = 260, width - axes.RIGHT
    bottom = height - axes.BOTTOM
    shown = abridged(steps(report.timeline), (right - axes.LEFT) // 3)
    top = max(1, *(max(s.state, s.front) for s in shown))
    x = axes.linear(0, len(shown), axes.LEFT, right)
    y = axes.linear(-1, top, bottom, axes.TOP)
    per = shown[0].moments
    caption = "step of the run" if per == 1 else f"step of the run (a column is {per:,} steps)"
    drawing = Drawing(width, height, "Timeline", summary(report))
    heights = [(y(v), f"{v:,}") for v in axes.ticks(top, 4)]
    drawing.shapes += axes.up(heights, axes.LEFT, right, "position")
    numbers = axes.ticks(len(report.timeline), width // 120)
    drawing.shapes += axes.across(numbers, lambda v: x(v / per), axes.TOP, bottom, caption)
    drawing.shapes += _curves(shown, x, y, bottom)
    words = [("front", "scored so far"), ("state", "latest label in the state"), ("bad", "not yet scored")]
    if width < 500:
        words = [("front", "scored"), ("state", "state")]
    drawing.shapes += axes.legend(words if any(s.state >= 0 for s in shown) else words[:1], right)
    return drawing


def _curves(shown: Sequence[Step], x: axes.Scale, y: axes.Scale, bottom: float) -> list[Shape]:
    front: list[Point] = []
    state: list[Point] = []
    shade: list[Shape] = []
    marks: list[Shape] = []
    for i, s in enumerate(shown):
        left, width = x(i), x(i + 1) - x(i)
        front += [(left, y(s.front)), (left + width, y(s.front))]
        state += [(left, y(s.state)), (left + width, y(s.state))]
        if s.ahead > 0:
            shade.append(Rect(left, y(s.state), width, y(s.front) - y(s.state), "shade"))
            shade.append(Rect(left, y(s.state) - 2, max(width, 2), 4, "bad"))
        if s.findings:
            marks.append(Rect(left, bottom - 8, max(width, 2), 8, "bad"))
        elif s.escapes:
            marks.append(Rect(left, bottom - 5, max(width, 2), 5, "caution"))
    return [
        *(r for r in shade if isinstance(r, Rect) and r.role == "shade"),
        Line(front, "front", 1.5),
        *([Line(state, "state", 1.5)] if any(s.state >= 0 for s in shown) else []),
        *(r for r in shade if isinstance(r, Rect) and r.role == "bad"),
        *marks,
    ]
