"""One report of the audits of a program at several sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from causaltrace.report.model import Finding, Notice, Report
from causaltrace.site import Site
from causaltrace.static.capture import Dynamic
from causaltrace.static.errors import AuditError

#: From the worst to the best.
STATUS = ("violation", "unverified", "clean")
CONDITION = ("fail", "not covered", "pass")
#: Characters of a reason why a size cannot be audited.
REASON = 120

Audited = tuple[Report, dict[str, Site]]


@dataclass
class _Audit:
    sizes: dict[str, int]
    text: str
    report: Report
    constants: dict[str, Site]


class Tried:
    """Audits of one program, that of the export's own sizes first."""

    def __init__(self, dynamic: Dynamic, report: Report, constants: dict[str, Site]) -> None:
        self._dynamic, self._failed = dynamic, dict[str, str]()
        self._audits = [_Audit({}, dynamic.sizes.text({}), report, constants)]

    def first(self, plan: Iterable[dict[str, int]], audited: Callable[[dict[str, Any]], Audited]) -> None:
        """Audit the program at the first of these sizes at which it runs."""
        for values in plan:
            text = self._dynamic.sizes.text(values)
            if condition := self._dynamic.sizes.denied(values):
                self._failed[text] = f"the export asks for {condition}"
                continue
            try:
                report, constants = audited(self._dynamic.given(values))
            except Exception as error:  # whatever a program does at sizes that are not meant
                what = error.what if isinstance(error, AuditError) else f"{type(error).__name__}: {error}"
                self._failed[text] = what.partition("\n")[0][:REASON]
                continue
            if report.positions or not self._audits[0].report.positions:
                self._audits.append(_Audit(values, text, report, constants))
                return
            self._failed[text] = "nothing is scored"

    def joined(self) -> tuple[Report, dict[str, Site], str]:
        """The report, the constants that it rests on, and the sizes that it holds for."""
        sizes = self._dynamic.sizes
        if not sizes.ranges:
            audit = self._audits[0]
            return audit.report, audit.constants, "; ".join(["of these shapes", *sizes.held])
        ordered = sorted(self._audits, key=lambda a: list((sizes.hints | a.sizes).values()))
        only = " only" if len(ordered) == 1 else ""
        where = f"at {sizes.names()} = {', '.join(a.text for a in ordered)}{only}, of {sizes.span()}"
        reasons = list(dict.fromkeys(self._failed.values()))
        at = {r: ", ".join(text for text, why in self._failed.items() if why == r) for r in reasons}
        failed = [f"not at {at[r]} ({r})" for r in reasons]
        worst = min(self._audits, key=lambda a: STATUS.index(a.report.status))
        report = worst.report
        report.listing = self._audits[0].report.listing
        statuses = {s: [a.text for a in ordered if a.report.status == s] for s in STATUS}
        if len(statuses[report.status]) < len(ordered):
            listed = ", ".join(f"{s} at {', '.join(texts)}" for s, texts in statuses.items() if texts)
            message = f"{sizes.names()}: {listed}; positions and paths are those at {worst.text}"
            report.notes.insert(0, Notice("CT095", message))
        for other in self._audits:
            if other is not worst:
                _add(report, other)
        constants: dict[str, Site] = {}
        for audit in self._audits:
            known = {(s.file, s.line) for s in constants.values()}
            constants |= {n: s for n, s in audit.constants.items() if (s.file, s.line) not in known}
        return report, constants, "; ".join([where, *failed, *sizes.held])


def _add(report: Report, other: _Audit) -> None:
    """What another size shows beside it: each finding and notice once, and the worst of every verdict."""
    more = other.report
    for verdicts, others, order in (
        (report.orders, more.orders, STATUS),
        (report.conditions, more.conditions, CONDITION),
    ):
        verdicts.update({n: min(v, others[n], key=order.index) for n, v in verdicts.items()})
    known = {_way(f) for f in report.violations}
    for f in more.violations:
        if _way(f) not in known:
            known.add(_way(f))
            at = f" at {other.text}"
            report.violations.append(replace(f, stream=f.stream + at, source_stream=f.source_stream + at))
    for notices, new in (
        (report.opaque, more.opaque),
        (report.escapes, more.escapes),
        (report.notes, more.notes),
    ):
        said = {_said(n) for n in notices}
        notices += [replace(n, message=f"at {other.text}: {n.message}") for n in new if _said(n) not in said]
    ops = {use.op for use in report.ops}
    report.ops += [use for use in more.ops if use.op not in ops]


def _way(finding: Finding) -> tuple[object, ...]:
    """Two findings of other positions that came the same way are one."""
    return (finding.kind, finding.orders, finding.site, *(hop.site for hop in finding.path))


def _said(notice: Notice) -> tuple[object, ...]:
    """What a notice is about, whatever its numbers."""
    return notice.kind, notice.site, re.sub(r"\d+", "", notice.message)
