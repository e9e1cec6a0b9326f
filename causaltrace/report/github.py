"""Workflow commands that GitHub Actions turns into annotations at the lines of a pull request.

GitHub shows ten errors and ten warnings a step; so these are the worst, and the last one counts the others.
"""

from __future__ import annotations

from collections.abc import Sequence

from causaltrace.report import summary
from causaltrace.report.about import below, source_root
from causaltrace.report.model import KINDS, Report
from causaltrace.site import Site

_SHOWN, _STEPS = 10, 10


def to_github(reports: Sequence[Report]) -> str:
    """One line for each annotation: errors for findings, warnings for what stands in the way of a proof."""
    groups = summary.worst_first(g for report in reports for g in summary.group(report.violations))
    blocking = [n for report in reports for n in summary.notices(report) if n.blocking]
    blocking.sort(key=lambda n: (n.site is None, -n.count))
    errors = [(g.site, f"{g.kind} {KINDS.get(g.kind, '')}", _finding_text(g)) for g in groups]
    warnings = [
        (n.site, f"{n.kind} not proved", f"{n.message}\nRemedy: {n.remedy}" if n.remedy else n.message)
        for n in blocking
    ]
    return "".join([*_lines("error", errors), *_lines("warning", warnings)])


def _finding_text(group: summary.Group) -> str:
    text = (
        f"{summary.plural(len(group.targets), 'scored position')}: {summary.ranges(group.targets)}; "
        f"{summary.failing(group.orders)}"
    )
    if group.witness is None:
        return text
    head, left_out, tail = summary.abridge(summary.fold(group.witness.path), _STEPS)
    steps = [f"{summary.place(s.site)} {s.site.source}".rstrip() for s in (*head, *tail)]
    if left_out:
        steps.insert(len(head), f"... {summary.plural(left_out, 'step')} left out")
    return "\n".join([text, f"witness: {summary.witness(group.witness)}", *steps])


def _lines(level: str, items: Sequence[tuple[Site | None, str, str]]) -> list[str]:
    root = source_root()
    lines = []
    for i, (site, title, text) in enumerate(items[:_SHOWN]):
        more = len(items) - _SHOWN
        if i == _SHOWN - 1 and more > 0:
            text += f"\nand {summary.plural(more, 'more place', 'more places')}: see the report"
        where = []
        if site is not None and site.line > 0 and site.file and not site.file.startswith("<"):
            where = [f"file={_property(below(site.file, root) or site.file)}", f"line={site.line}"]
        properties = ",".join([*where, f"title={_property('causaltrace: ' + title.strip())}"])
        lines.append(f"::{level} {properties}::{_data(text)}\n")
    return lines


def _data(text: str) -> str:
    return "\n".join(text.splitlines()).replace("%", "%25").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
