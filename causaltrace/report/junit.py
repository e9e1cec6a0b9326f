"""JUnit XML for test dashboards: a suite for each watch, a case for each condition and each order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from causaltrace.report import summary
from causaltrace.report.model import KINDS, Report
from causaltrace.report.text import path_text

#: What XML 1.0 cannot hold, escaped or not.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(reports: Sequence[Report]) -> str:
    """A failure is a violation, an error something that was not proved; what is not covered is skipped."""
    suites = ET.Element("testsuites", name="causaltrace")
    for i, report in enumerate(reports, 1):
        suites.append(_suite(report, f"watch {i}"))
    _count(suites)
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _suite(report: Report, name: str) -> ET.Element:
    suite = ET.Element("testsuite", name=_clean(name))
    if report.run.time:
        suite.set("timestamp", _clean(report.run.time.removesuffix("Z")))
    properties = ET.SubElement(suite, "properties")
    facts = {"command": report.run.command, "revision": report.run.revision, **dict(report.run.versions)}
    for key, value in facts.items():
        if value:
            ET.SubElement(properties, "property", name=_clean(key), value=_clean(value))
    groups = summary.group(report.violations)
    for condition, title, verdict, reason in summary.conditions(report, groups):
        case = _case(suite, "conditions", f"{condition} {title}")
        if verdict == "fail":
            broken = [g for g in groups if condition in summary.BREAKS.get(g.kind, ())]
            _fail(case, reason or "fails", broken)
        elif verdict != "pass":
            ET.SubElement(case, "skipped", message=_clean(f"{verdict}: {reason}"))
    for order, status in report.orders.items():
        case = _case(suite, "orders", f"{order} order")
        if status == "violation":
            _fail(case, summary.headline(report), [g for g in groups if order in g.orders])
        elif status != "clean":
            _error(case, report)
    _count(suite)
    return suite


def _case(suite: ET.Element, family: str, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=f"causaltrace.{family}", name=_clean(name))


def _fail(case: ET.Element, message: str, groups: Sequence[summary.Group]) -> None:
    kind = groups[0].kind if groups else "violation"
    failure = ET.SubElement(case, "failure", type=_clean(kind), message=_clean(message))
    failure.text = _clean("\n".join(_group_text(g) for g in groups))


def _group_text(group: summary.Group) -> str:
    where = f"{summary.plural(len(group.targets), 'scored position')}: {summary.ranges(group.targets)}"
    lines = f"{group.kind} {KINDS.get(group.kind, '')} at {summary.place(group.site)}; {where}\n"
    return lines + (path_text(group.witness) if group.witness is not None else "")


def _error(case: ET.Element, report: Report) -> None:
    blocking = [n for n in summary.notices(report) if n.blocking]
    error = ET.SubElement(case, "error", type="unverified", message=_clean(summary.headline(report)))
    error.text = _clean(
        "\n".join(f"{n.message} {summary.place(n.site)} {n.remedy}".strip() for n in blocking)
    )


def _count(element: ET.Element) -> None:
    counted = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
    for attribute, tag in counted.items():
        element.set(attribute, str(sum(1 for _ in element.iter(tag))))


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
