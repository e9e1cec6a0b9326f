"""SARIF 2.1.0 for code scanning (OASIS standard, https://docs.oasis-open.org/sarif/sarif/v2.1.0/).

Code scanning shows one alert a result and takes 25,000 of them; an eval may have as many findings at a single
line. So there is one result for each kind, site and order: its message and properties name all positions, and
its code flow is the path of the witness. The complete list of findings is in the JSON report.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from causaltrace.report import summary
from causaltrace.report.about import below, source_root
from causaltrace.report.help import HELP
from causaltrace.report.json import dump
from causaltrace.report.model import KINDS, Finding, Hop, Notice, Report, Run
from causaltrace.site import Site

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_ROOT = "%SRCROOT%"
#: Results of a run that code scanning takes, and steps of a flow.
_RESULTS, _STEPS = 25_000, 1_000

Json = dict[str, Any]


def to_sarif(reports: Sequence[Report]) -> str:
    """One SARIF log, one run for each report."""
    runs = [_Run(report).data(f"causaltrace/{i}/") for i, report in enumerate(reports, 1)]
    return dump({"$schema": _SCHEMA, "version": "2.1.0", "runs": runs}) + "\n"


class _Run:
    """One report as a SARIF run."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.root = source_root()
        self.seen: dict[str, int] = {}

    def data(self, name: str) -> Json:
        report = self.report
        notices = sorted(summary.notices(report), key=lambda n: not n.blocking)
        results = [self._finding(g) for g in summary.group(report.violations)]
        results += [self._notice(n, n.site) for n in notices if n.site is not None]
        told = [_notification(n) for n in notices if n.site is None]
        if len(results) > _RESULTS:
            told.append(_left_out(len(results) - _RESULTS))
        return {
            "tool": {"driver": _driver(report.run)},
            "automationDetails": {"id": name},
            "invocations": [_invocation(report, told)],
            "originalUriBaseIds": {_ROOT: {"uri": self.root.as_uri().rstrip("/") + "/"}},
            "columnKind": "unicodeCodePoints",
            "results": results[:_RESULTS],
            "properties": {
                "status": report.status,
                "orders": report.orders,
                "conditions": report.conditions,
                "scored": report.scored,
                "labels": report.labels,
                "revision": report.run.revision,
            },
        }

    def _finding(self, group: summary.Group) -> Json:
        witness = group.witness
        assert witness is not None
        text = (
            f"{KINDS.get(group.kind, group.kind)}: {summary.witness(witness)}. "
            f"{summary.plural(len(group.targets), 'scored position')} ({summary.ranges(group.targets)}); "
            f"{summary.failing(group.orders)}."
        )
        place = _real(group.site, witness.path)
        result: Json = {
            **_rule(group.kind),
            "level": "error",
            "message": {"text": text},
            "locations": [self._location(place)],
            "partialFingerprints": self._fingerprint(group.kind, place, group.orders),
            "properties": {
                "orders": list(group.orders),
                "count": group.count,
                "target": witness.target,
                "source": witness.source,
                "targets": summary.runs(group.targets),
                "sources": summary.runs(group.sources),
                "stream": group.stream,
                "sourceStream": group.source_stream,
            },
        }
        if witness.path:
            result["codeFlows"] = [self._flow(witness)]
        return result

    def _notice(self, notice: Notice, site: Site) -> Json:
        return {
            **_rule(notice.kind),
            "level": "warning" if notice.blocking else "note",
            "message": {"text": _sentence(notice)},
            "locations": [self._location(site)],
            "partialFingerprints": self._fingerprint(notice.kind, site, ()),
            "properties": {"count": notice.count, "label": notice.label, "blocking": notice.blocking},
        }

    def _flow(self, finding: Finding) -> Json:
        head, left_out, tail = summary.abridge(finding.path, _STEPS)
        steps = [self._step(hop) for hop in (*head, *tail)]
        for i, step in enumerate(steps):
            step["importance"] = "essential" if i in (0, len(steps) - 1) else "important"
        text = "from the label to the score"
        if left_out:
            text += f"; {summary.plural(left_out, 'step')} in the middle left out"
        return {"message": {"text": text}, "threadFlows": [{"locations": steps}]}

    def _step(self, hop: Hop) -> Json:
        text = f"{hop.site.phase}: {summary.short_op(hop.site.op)} {hop.detail}".rstrip()
        return {"location": {**self._location(hop.site), "message": {"text": text}}, "kinds": ["taint"]}

    def _location(self, site: Site) -> Json:
        location: Json = {}
        if _is_real(site):
            region: Json = {"startLine": site.line}
            if site.source:
                region["snippet"] = {"text": site.source}
            location["physicalLocation"] = {"artifactLocation": self._artifact(site.file), "region": region}
        name = ".".join(part for part in (site.module, site.function) if part) or (site.file or site.op)
        location["logicalLocations"] = [{"fullyQualifiedName": name}]
        return location

    def _artifact(self, file: str) -> Json:
        inside = below(file, self.root)
        if inside is not None:
            return {"uri": quote(os.fsencode(inside)), "uriBaseId": _ROOT}
        return {"uri": ("file://" if file.startswith("/") else "") + quote(os.fsencode(file))}

    def _fingerprint(self, kind: str, site: Site, orders: Sequence[str]) -> dict[str, str]:
        """The same as long as the line reads the same, wherever it moves in its file."""
        file = below(site.file, self.root) or site.file
        key = "\0".join((kind, file, site.function, site.source, site.phase, site.op, *orders))
        number = self.seen[key] = self.seen.get(key, -1) + 1
        digest = hashlib.sha256(f"{key}\0{number}".encode("utf-8", "replace")).hexdigest()
        return {"causaltrace/v1": digest[:32]}


def _driver(run: Run) -> Json:
    version = dict(run.versions).get("causaltrace", "")
    return {
        "name": "causaltrace",
        **({"semanticVersion": version} if version else {}),
        "rules": [
            {
                "id": kind,
                "shortDescription": {"text": title},
                "fullDescription": {"text": HELP[kind].replace("`", "")},
                "help": {"text": HELP[kind].replace("`", ""), "markdown": HELP[kind]},
                "defaultConfiguration": {"level": "error" if kind < "CT09" else "warning"},
                "properties": {"tags": ["evaluation", "data-leakage"]},
            }
            for kind, title in KINDS.items()
        ],
    }


def _rule(kind: str) -> Json:
    """A rule by its number in the driver's list; a kind that has no rule keeps its name."""
    kinds = list(KINDS)
    return {"ruleId": kind, "ruleIndex": kinds.index(kind)} if kind in KINDS else {"ruleId": kind or "note"}


def _invocation(report: Report, told: list[Json]) -> Json:
    timed = re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", report.run.time)
    return {
        "executionSuccessful": report.error is None,
        "exitCode": report.exit_code if report.error is None else 2,
        **({"commandLine": report.run.command} if report.run.command else {}),
        **({"startTimeUtc": report.run.time} if timed else {}),
        "toolExecutionNotifications": told,
    }


def _notification(notice: Notice) -> Json:
    known = {"descriptor": {"id": notice.kind}} if notice.kind else {}
    return {
        **known,
        "level": "warning" if notice.blocking else "note",
        "message": {"text": _sentence(notice)},
    }


def _left_out(count: int) -> Json:
    text = f"{summary.plural(count, 'result')} left out: code scanning takes {_RESULTS:,}"
    return {"level": "warning", "message": {"text": text}}


def _sentence(notice: Notice) -> str:
    times = f" ({notice.count:,} times)" if notice.count > 1 else ""
    remedy = f" Remedy: {notice.remedy}." if notice.remedy else ""
    return f"{notice.message}{times}.{remedy}"


def _real(site: Site, path: Sequence[Hop]) -> Site:
    """The site, or the last step before it that has a line in a file."""
    places: Iterator[Site] = (s for s in (site, *(hop.site for hop in reversed(path))) if _is_real(s))
    return next(places, site)


def _is_real(site: Site) -> bool:
    return site.line > 0 and bool(site.file) and not site.file.startswith("<")
