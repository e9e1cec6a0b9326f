"""The report as JSON: complete, versioned, and readable back.

Sites are written once, in ``sites``; findings, hops and notices name them by index. A finding also
has ``at`` (``"file:line"``) for people who read or grep the file; it is ignored when read back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from causaltrace.report.model import (
    EXIT_CODES,
    Edge,
    Finding,
    Hop,
    Judged,
    Moment,
    Notice,
    OpUse,
    Provenance,
    Report,
    Run,
)
from causaltrace.report.shape import Map, Maybe, reader
from causaltrace.site import Site

SCHEMA = "causaltrace-report/2"
#: Schemas that are read; what an older one lacks is empty.
READ = (SCHEMA, "causaltrace-report/1")
SCHEMA_MANY = "causaltrace-reports/1"


class _Sites:
    """Sites in the order of first use, each with its index."""

    def __init__(self) -> None:
        self.index: dict[Site, int] = {}
        self._paths: dict[int, list[list[Any]]] = {}

    def __call__(self, site: Site) -> int:
        return self.index.setdefault(site, len(self.index))

    def path(self, hops: tuple[Hop, ...]) -> list[list[Any]]:
        """Findings of one score share their path: it is written out once."""
        known = self._paths.get(id(hops))
        if known is None:
            known = self._paths[id(hops)] = [[self(hop.site), hop.detail] for hop in hops]
        return known

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
        "judged": {"nats": report.judged.nats, "known": report.judged.known},
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
    return dump(to_dict(report), indent)


def dump(data: Any, indent: int | None = None) -> str:
    """JSON text that can be encoded: file names that are no text lose the characters that are none."""
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def reports_to_json(reports: Sequence[Report]) -> str:
    """One report as `to_json` writes it; several as an object with `SCHEMA_MANY` and a list, ``reports``."""
    if len(reports) == 1:
        return to_json(reports[0])
    return dump({"schema": SCHEMA_MANY, "reports": [to_dict(r) for r in reports]})


def from_dict(data: Mapping[str, Any]) -> Report:
    """The report that `to_dict` wrote.

    Raises ``ValueError`` for another schema or a malformed document; the text says what is wrong.
    """
    if data.get("schema") not in READ:
        raise ValueError(f"expected schema {SCHEMA!r}, got {ascii(data.get('schema'))[:60]}")
    if data["schema"] != SCHEMA:
        data = {**_LACKING, **data}
    try:
        return _read(_checked(data))
    except ValueError as error:
        raise ValueError(f"malformed {SCHEMA} document: {error}") from error


def from_json(text: str) -> Report:
    """The report that `to_json` wrote; raises ``ValueError`` as `from_dict` does."""
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object with schema {SCHEMA!r}")
    return from_dict(data)


#: The shape of a document (see `causaltrace.report.shape`).
_SITE = {"phase": str, "op": str, "file": str, "line": int, "function": str, "module": str, "source": str}
_NOTICE = {
    "kind": str,
    "message": str,
    "remedy": str,
    "site": Maybe(int),
    "count": int,
    "label": Maybe(int),
    "blocking": bool,
}
_FINDING = {
    "kind": str,
    "target": int,
    "source": int,
    "orders": [str],
    "site": int,
    "path": [(int, str)],
    "stream": str,
    "source_stream": str,
}
_MOMENT = {
    "kind": str,
    "site": int,
    "count": int,
    "first": int,
    "last": int,
    "label": int,
    "scored": int,
    "findings": int,
}
_EDGE = (int, int, int, Maybe((int, int)), Maybe((int, int)), bool)
_REPORT = {
    "status": str,
    "orders": Map(str),
    "conditions": Map(str),
    "labels": int,
    "judged": {"nats": Maybe(float), "known": int},
    "error": Maybe(str),
    "violations": [_FINDING],
    "opaque": [_NOTICE],
    "escapes": [_NOTICE],
    "notes": [_NOTICE],
    "positions": [int],
    "ops": [(str, int, str, str)],
    "streams": [(str, int)],
    "lags": [Maybe(int)],
    "reach": Maybe([[int]]),
    "timeline": [_MOMENT],
    "graph": {"nodes": [int], "edges": [_EDGE]},
    "run": {"command": str, "revision": str, "time": str, "versions": Map(str)},
    "sites": [_SITE],
}
_checked = reader(_REPORT)
#: What ``causaltrace-report/1`` does not have.
_LACKING: dict[str, Any] = {
    "streams": [],
    "lags": [],
    "reach": None,
    "timeline": [],
    "graph": {"nodes": [], "edges": []},
    "run": {"command": "", "revision": "", "time": "", "versions": {}},
    "judged": {"nats": None, "known": 0},
}


def _read(data: Mapping[str, Any]) -> Report:
    """The report of checked data."""
    if data["status"] not in EXIT_CODES:
        raise ValueError(f"status must be one of {', '.join(EXIT_CODES)}, not {data['status'][:40]!r}")
    sites = [
        Site(s["phase"], s["op"], s["file"], s["line"], s["function"], s["module"], stored=s["source"])
        for s in data["sites"]
    ]

    def site(index: int) -> Site:
        return sites[_within(index, len(sites), "sites")]

    @cache  # findings of one score share their path
    def path(hops: tuple[tuple[int, str], ...]) -> tuple[Hop, ...]:
        return tuple(Hop(site(index), detail) for index, detail in hops)

    def notices(key: str) -> list[Notice]:
        return [Notice(**{**n, "site": None if n["site"] is None else site(n["site"])}) for n in data[key]]

    return Report(
        status=data["status"],
        orders=data["orders"],
        conditions=data["conditions"],
        violations=[
            Finding(
                kind=f["kind"],
                target=f["target"],
                source=f["source"],
                orders=tuple(f["orders"]),
                site=site(f["site"]),
                path=path(tuple(f["path"])),
                stream=f["stream"],
                source_stream=f["source_stream"],
            )
            for f in data["violations"]
        ],
        positions=data["positions"],
        opaque=notices("opaque"),
        escapes=notices("escapes"),
        notes=notices("notes"),
        labels=data["labels"],
        error=data["error"],
        ops=[OpUse(*use) for use in data["ops"]],
        streams=data["streams"],
        lags=data["lags"],
        reach=data["reach"],
        timeline=[Moment(**{**m, "site": site(m["site"])}) for m in data["timeline"]],
        graph=Provenance([site(i) for i in data["graph"]["nodes"]], _read_edges(data["graph"])),
        judged=Judged(**data["judged"]),
        run=Run(**{**data["run"], "versions": tuple(data["run"]["versions"].items())}),
    )


def _read_edges(graph: Mapping[str, Any]) -> list[Edge]:
    def node(index: int) -> int:
        return _within(index, len(graph["nodes"]), "nodes of the graph")

    return [
        Edge(node(source), node(target), flows, labels, lag, bad)
        for source, target, flows, labels, lag, bad in graph["edges"]
    ]


def _within(index: int, size: int, what: str) -> int:
    if not 0 <= index < size:
        raise ValueError(f"there are {size} {what}, but number {index} is asked for")
    return index


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
        "path": site.path(finding.path),
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
