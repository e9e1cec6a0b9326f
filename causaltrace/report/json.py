"""The report as JSON: complete, versioned, and readable back.

Sites are written once, in ``sites``; findings, hops and notices name them by index. A finding also
has ``at`` (``"file:line"``) for people who read or grep the file; it is ignored when read back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from causaltrace.report.model import (
    Edge,
    Finding,
    Hop,
    Moment,
    Notice,
    OpUse,
    Provenance,
    Report,
    Run,
)
from causaltrace.site import Site

SCHEMA = "causaltrace-report/2"
#: Schemas that are read; what an older one lacks is empty.
READ = (SCHEMA, "causaltrace-report/1")
SCHEMA_MANY = "causaltrace-reports/1"


class _Sites:
    """Sites in the order of first use, each with its index."""

    def __init__(self) -> None:
        self.index: dict[Site, int] = {}

    def __call__(self, site: Site) -> int:
        return self.index.setdefault(site, len(self.index))

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "phase": s.phase,
                "op": s.op,
                "file": s.file,
                "line": s.line,
                "function": s.function,
                "module": s.module,
                "source": s.source,
            }
            for s in self.index
        ]


def to_dict(report: Report) -> dict[str, Any]:
    """The report as plain dicts, lists, strings and numbers."""
    site = _Sites()
    violations = [_finding(f, site) for f in report.violations]
    opaque = [_notice(n, site) for n in report.opaque]
    escapes = [_notice(n, site) for n in report.escapes]
    notes = [_notice(n, site) for n in report.notes]
    timeline = [_moment(m, site) for m in report.timeline]
    nodes = [site(s) for s in report.graph.sites]
    edges = [[e.source, e.target, e.flows, e.labels, e.lag, e.bad] for e in report.graph.edges]
    return {
        "schema": SCHEMA,
        "status": report.status,
        "orders": dict(report.orders),
        "conditions": dict(report.conditions),
        "labels": int(report.labels),
        "scored": report.scored,
        "error": report.error,
        "violations": violations,
        "opaque": opaque,
        "escapes": escapes,
        "notes": notes,
        "positions": [int(p) for p in report.positions],
        "ops": [[use.op, use.calls, use.handled, use.detail] for use in report.ops],
        "streams": [[name, size] for name, size in report.streams],
        "lags": list(report.lags),
        "reach": None if report.reach is None else [list(runs) for runs in report.reach],
        "timeline": timeline,
        "graph": {"nodes": nodes, "edges": edges},
        "run": {
            "command": report.run.command,
            "revision": report.run.revision,
            "time": report.run.time,
            "versions": dict(report.run.versions),
        },
        "sites": site.rows(),
    }


def to_json(report: Report, indent: int | None = None) -> str:
    """The report as one JSON document; one line unless ``indent`` is given."""
    return json.dumps(to_dict(report), indent=indent, ensure_ascii=False)


def reports_to_json(reports: Sequence[Report]) -> str:
    """One report as `to_json` writes it; several as an object with `SCHEMA_MANY` and a list, ``reports``."""
    if len(reports) == 1:
        return to_json(reports[0])
    return json.dumps({"schema": SCHEMA_MANY, "reports": [to_dict(r) for r in reports]}, ensure_ascii=False)


def from_dict(data: Mapping[str, Any]) -> Report:
    """The report that `to_dict` wrote.

    Raises ``ValueError`` for another schema or a malformed document.
    """
    if data.get("schema") not in READ:
        raise ValueError(f"expected schema {SCHEMA!r}, got {data.get('schema')!r}")
    try:
        return _read(data)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"malformed {SCHEMA} document: {error!r}") from error


def from_json(text: str) -> Report:
    """The report that `to_json` wrote; raises ``ValueError`` as `from_dict` does."""
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object with schema {SCHEMA!r}")
    return from_dict(data)


def _read(data: Mapping[str, Any]) -> Report:
    sites = [
        Site(s["phase"], s["op"], s["file"], s["line"], s["function"], s["module"]) for s in data["sites"]
    ]

    def notices(key: str) -> list[Notice]:
        return [
            Notice(
                kind=n["kind"],
                message=n["message"],
                remedy=n["remedy"],
                site=None if n["site"] is None else sites[n["site"]],
                count=n["count"],
                label=n["label"],
                blocking=n["blocking"],
            )
            for n in data[key]
        ]

    return Report(
        status=data["status"],
        orders=dict(data["orders"]),
        conditions=dict(data["conditions"]),
        violations=[
            Finding(
                kind=f["kind"],
                target=f["target"],
                source=f["source"],
                orders=tuple(f["orders"]),
                site=sites[f["site"]],
                path=tuple(Hop(sites[i], detail) for i, detail in f["path"]),
                stream=f["stream"],
                source_stream=f["source_stream"],
            )
            for f in data["violations"]
        ],
        positions=list(data["positions"]),
        opaque=notices("opaque"),
        escapes=notices("escapes"),
        notes=notices("notes"),
        labels=data["labels"],
        error=data["error"],
        ops=[OpUse(*use) for use in data["ops"]],
        streams=[(name, size) for name, size in data.get("streams", ())],
        lags=list(data.get("lags", ())),
        reach=data.get("reach"),
        timeline=[_read_moment(m, sites) for m in data.get("timeline", ())],
        graph=_read_graph(data.get("graph", {"nodes": (), "edges": ()}), sites),
        run=_read_run(data.get("run", {})),
    )


def _read_moment(m: Mapping[str, Any], sites: Sequence[Site]) -> Moment:
    return Moment(
        m["kind"], sites[m["site"]], m["count"], m["first"], m["last"], m["label"], m["scored"], m["findings"]
    )


def _read_graph(data: Mapping[str, Any], sites: Sequence[Site]) -> Provenance:
    def pair(value: Sequence[int] | None) -> tuple[int, int] | None:
        return None if value is None else (value[0], value[1])

    return Provenance(
        [sites[i] for i in data["nodes"]],
        [Edge(s, t, n, pair(labels), pair(lag), bad) for s, t, n, labels, lag, bad in data["edges"]],
    )


def _read_run(data: Mapping[str, Any]) -> Run:
    versions = tuple(data.get("versions", {}).items())
    return Run(data.get("command", ""), data.get("revision", ""), data.get("time", ""), versions)


def _moment(moment: Moment, site: _Sites) -> dict[str, Any]:
    return {
        "kind": moment.kind,
        "site": site(moment.site),
        "count": moment.count,
        "first": moment.first,
        "last": moment.last,
        "label": moment.label,
        "scored": moment.scored,
        "findings": moment.findings,
    }


def _finding(finding: Finding, site: _Sites) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "target": int(finding.target),
        "source": int(finding.source),
        "orders": list(finding.orders),
        "at": str(finding.site),
        "site": site(finding.site),
        "path": [[site(hop.site), hop.detail] for hop in finding.path],
        "stream": finding.stream,
        "source_stream": finding.source_stream,
    }


def _notice(notice: Notice, site: _Sites) -> dict[str, Any]:
    return {
        "kind": notice.kind,
        "message": notice.message,
        "remedy": notice.remedy,
        "site": None if notice.site is None else site(notice.site),
        "count": int(notice.count),
        "label": None if notice.label is None else int(notice.label),
        "blocking": notice.blocking,
    }
