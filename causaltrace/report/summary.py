"""What the displays of a report share: findings folded into groups, ranges, witnesses, folded paths.

Everything here is abridgement for a reader; the complete data stay in the report and in its JSON.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from causaltrace.report.model import CONDITIONS, Finding, Hop, Notice, Report, Run
from causaltrace.site import Site

#: Which conditions a finding of each kind breaks.
BREAKS: dict[str, tuple[str, ...]] = {
    "CT001": ("C1",),
    "CT002": ("C1",),
    "CT003": ("C1", "C3"),
    "CT004": ("C2",),
    "CT005": ("C2",),
    "CT006": ("C4",),
}

ORDERS: dict[str, str] = {
    "stream": "a label may reach only later positions",
    "scored": "a label may be used anywhere once its own score is fixed",
}

#: What a proof by this tool is about; every display says it.
SCOPE = "The verdict is about this run: this program path, these weights, these tokens, eager execution."
#: The same, of a static audit.
AUDITED = (
    "The verdict is about this program path and the shapes that were tried, for any weights and tokens: "
    "docs/static.md."
)

_UNNAMED_STREAM = "labels"

T = TypeVar("T")


@dataclass(slots=True)
class Group:
    """All findings of one kind at one site in the same order(s)."""

    kind: str
    site: Site
    orders: tuple[str, ...]
    stream: str
    source_stream: str
    count: int = 0
    targets: set[int] = field(default_factory=set)
    sources: set[int] = field(default_factory=set)
    witness: Finding | None = None

    def add(self, finding: Finding) -> None:
        self.count += 1
        self.targets.add(finding.target)
        self.sources.add(finding.source)
        if self.witness is None or _rank(finding) < _rank(self.witness):
            self.witness = finding


def _rank(finding: Finding) -> tuple[bool, int, int]:
    """Witness order: one with a path, then the label furthest ahead, then the earliest score."""
    return (not finding.path, finding.target - finding.source, finding.target)


def group(findings: Iterable[Finding]) -> list[Group]:
    """Fold findings by kind, site, order and stream in one pass; the worst group comes first."""
    groups: dict[tuple[object, ...], Group] = {}
    for finding in findings:
        key = (finding.kind, finding.site, finding.orders, finding.stream, finding.source_stream)
        found = groups.get(key)
        if found is None:
            found = groups[key] = Group(*key)
        found.add(finding)
    return worst_first(groups.values())


def worst_first(groups: Iterable[Group]) -> list[Group]:
    return sorted(groups, key=lambda g: (-len(g.orders), -g.count, g.kind, str(g.site)))


def runs(positions: Iterable[int]) -> list[tuple[int, int]]:
    """``{1, 2, 3, 7}`` as ``[(1, 3), (7, 7)]``."""
    found: list[tuple[int, int]] = []
    for p in sorted(positions):
        if found and p <= found[-1][1] + 1:
            found[-1] = (found[-1][0], p)
        else:
            found.append((p, p))
    return found


def ranges(positions: Iterable[int], limit: int = 4) -> str:
    """``{1, 2, 3, 7}`` as ``"1-3, 7"``; after ``limit`` runs only the last position is given."""
    found = runs(positions)
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in found[:limit]]
    if len(found) > limit:
        shown.append(f"... up to {found[-1][1]}")
    return ", ".join(shown)


def plural(n: int, noun: str, nouns: str = "") -> str:
    return f"{n:,} {noun if n == 1 else nouns or noun + 's'}"


def stream_prefix(stream: str) -> str:
    """What stands before a position in a stream that has a name of its own."""
    return "" if stream == _UNNAMED_STREAM else f"{stream}:"


def label_name(finding: Finding) -> str:
    return f"{stream_prefix(finding.source_stream)}x_{finding.source}"


def score_name(finding: Finding) -> str:
    return f"{stream_prefix(finding.stream)}{finding.target}"


def witness(finding: Finding) -> str:
    """One line a reader can check: ``label x_100 → score of 37 (63 positions ahead)``."""
    if finding.kind == "CT006":
        return f"position {score_name(finding)} has two scores from different readouts"
    line = f"label {label_name(finding)} → score of {score_name(finding)}"
    if finding.stream != finding.source_stream:
        return line
    lead = finding.source - finding.target
    if lead > 0:
        return f"{line} ({plural(lead, 'position')} ahead)"
    return f"{line} (its own label)" if lead == 0 else f"{line} ({plural(-lead, 'position')} back)"


def headline(report: Report) -> str:
    """How much was judged, in one sentence."""
    text = f"{plural(report.scored, 'position')} scored of {plural(report.labels, 'label')}"
    bad: dict[str, set[tuple[str, int]]] = {}
    for f in report.violations:
        for order in f.orders:
            bad.setdefault(order, set()).add((f.stream, f.target))
    counts = {order: len(bad.get(order, ())) for order in report.orders}
    if bad and len(set(counts.values())) == 1:
        text += f"; {next(iter(counts.values())):,} of them violate"
    elif bad:
        text += "; " + " and ".join(f"{n:,} violate {order} order" for order, n in counts.items())
    elif report.status == "clean":
        text += "; no label reached a score that it must not reach"
    blocking = sum(n.blocking for n in notices(report))
    if report.status == "unverified" and blocking:
        text += f"; {plural(blocking, 'thing stands', 'things stand')} in the way of a proof"
    return text + "."


def judged(report: Report) -> str:
    """Which number the verdict is about, in one sentence; ``""`` where there is none."""
    nats, known = report.judged.nats, report.judged.known
    if not report.scored or any(n.kind == "CT097" for n in report.notes):  # an audit has no values
        return ""
    if nats is None:
        return f"Judged: what the {plural(report.scored, 'score')} charge is not known."
    over = (
        plural(known, "label") if known >= report.scored else f"{known:,} of {report.scored:,} scored labels"
    )
    mean = f"{nats:.4f} nats ({nats / math.log(2):.4f} bits) per label"
    return f"Judged: mean {mean} over {over}, and no other number."


def about(run: Run) -> str:
    """What was run, as far as it is known, on one line."""
    revision = f"revision {run.revision}" if run.revision else ""
    versions = (f"{name} {version}" for name, version in run.versions)
    return ", ".join(filter(None, (run.command, revision, *versions, run.time)))


def notices(report: Report) -> list[Notice]:
    return [*report.opaque, *report.escapes, *report.notes]


def reason(report: Report, condition: str, groups: Sequence[Group]) -> str:
    """Why a condition has its verdict; ``""`` when it passed."""
    verdict = report.conditions.get(condition, "not covered")
    if verdict == "fail":
        counts: dict[str, set[tuple[str, int]]] = {}
        for g in groups:
            if condition in BREAKS.get(g.kind, ()):
                counts.setdefault(g.kind, set()).update((g.stream, t) for t in g.targets)
        return ", ".join(f"{k} at {plural(len(t), 'position')}" for k, t in sorted(counts.items()))
    for notice in report.notes:
        if notice.kind == condition:
            return notice.message
    if verdict == "pass":
        return ""
    if len(report.positions) == 0:
        return "nothing was scored"
    if condition == "C2" and (hidden := [n for n in report.notes if n.kind == "CT100"]):
        return f"normalisation not shown for {plural(sum(n.count for n in hidden), 'score')}, see below"
    audited = any(n.kind == "CT097" for n in report.notes)
    if not (condition == "C2" and audited) and any(n.blocking for n in notices(report)):
        return "blocked, see below"
    return "not checked by this watch"


def failing(orders: Sequence[str]) -> str:
    return "fails in both orders" if len(orders) > 1 else f"fails in {' '.join(orders)} order"


def conditions(report: Report, groups: Sequence[Group]) -> list[tuple[str, str, str, str]]:
    """Rows (id, name, verdict, reason) of the conditions table."""
    return [
        (c, name, report.conditions.get(c, "not covered"), reason(report, c, groups))
        for c, name in CONDITIONS.items()
    ]


def other_notes(report: Report) -> list[Notice]:
    """The notes that the conditions table has not already said."""
    return [n for n in report.notes if n.kind not in CONDITIONS]


@dataclass(frozen=True, slots=True)
class Step:
    """Consecutive hops of a path at one source line."""

    site: Site
    ops: tuple[str, ...]
    modules: tuple[str, ...]
    detail: str
    hops: tuple[Hop, ...] = ()


def fold(path: Iterable[Hop]) -> list[Step]:
    """A path with the hops of one source line (and phase) put together."""
    runs: list[list[Hop]] = []
    for hop in path:
        if runs and _line(runs[-1][-1]) == _line(hop):
            runs[-1].append(hop)
        else:
            runs.append([hop])
    return [
        Step(
            site=run[0].site,
            ops=_distinct(short_op(h.site.op) for h in run),
            modules=_distinct(h.site.module for h in run),
            detail=next((h.detail for h in reversed(run) if h.detail), ""),
            hops=tuple(run),
        )
        for run in runs
    ]


def abridge(steps: Sequence[T], limit: int) -> tuple[Sequence[T], int, Sequence[T]]:
    """First steps, how many are left out, last steps: at most ``limit`` steps in all."""
    if len(steps) <= limit:
        return steps, 0, ()
    head = (limit + 1) // 2
    tail = limit - head
    return steps[:head], len(steps) - limit, steps[len(steps) - tail :]


def _line(hop: Hop) -> tuple[str, int, str, str]:
    return (hop.site.file, hop.site.line, hop.site.function, hop.site.phase)


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Names without blanks and without immediate repeats."""
    kept: list[str] = []
    for name in names:
        if name and (not kept or kept[-1] != name):
            kept.append(name)
    return tuple(kept)


def arrows(names: Sequence[str], limit: int = 5) -> str:
    if len(names) > limit:
        names = [*names[: limit - 2], "...", *names[-1:]]
    return " → ".join(names)


def short_op(op: str) -> str:
    """``aten.roll.default`` as ``roll``; other namespaces stay."""
    return op.removeprefix("aten.").removesuffix(".default")


def short_file(file: str) -> str:
    """A file below the working directory relative to it, any other as it is."""
    try:
        return str(Path(file).relative_to(os.getcwd()))
    except (ValueError, OSError):
        return file


def place(site: Site | None) -> str:
    return "" if site is None else f"{short_file(site.file)}:{site.line}"


def scope(report: Report) -> str:
    """What the verdict of this report is about: also which numbers it takes for the scores."""
    if any(n.kind == "CT097" for n in report.notes):
        return AUDITED
    read = Counter[str]()
    for moment in report.timeline:
        if moment.kind == "score":
            read[place(moment.site)] += moment.count
    if not read:
        return SCOPE
    lines = read.most_common(1)[0][0]
    if len(read) > 1:
        lines += f" and at {plural(len(read) - 1, 'other line')}"
    return f"{SCOPE} Its scores are the numbers that were taken at {lines}, whatever is made of them later."
