"""A finding told to people: the way of its label, line by line, and the state that was shared on it.

Made from a report alone, so that a stored one can be explained too. Every step is looked up in the graph that
was recorded, and one that is not in it is marked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from causaltrace.report import summary
from causaltrace.report.model import Edge, Finding, Hop, Moment, Report
from causaltrace.report.summary import Step
from causaltrace.site import Site

_STEP = re.compile(r"^(\[.*\])?(?: step (\d+))?$")


def explain(finding: Finding, report: Report) -> str:
    """The path of a finding as text, printed like a traceback: the label first, the score last."""
    lines = [f"{finding.kind}: {summary.witness(finding)}", f"  {summary.failing(finding.orders)}"]
    if not finding.path:
        return "\n".join([*lines, "no path was recorded"]) + "\n"
    if finding.kind != "CT006":
        lines.append("Path, the label first and the score last:")
        lines.append(f"  label {summary.label_name(finding)}")
    lines += _path(finding, report)
    lines += _shared(finding, report)
    lines += _when(finding, report)
    return "\n".join(lines) + "\n"


def _path(finding: Finding, report: Report) -> Iterator[str]:
    """The steps, one a source line, each with what went along the same edges."""
    edges = {(report.graph.sites[e.source], report.graph.sites[e.target]): e for e in report.graph.edges}
    path = finding.path
    if finding.kind != "CT006" and edges and not _begins(path[0].site, edges):
        yield "  ... how it came here was too long ago to be kept"
    before: Site | None = None
    for step in summary.fold(path):
        yield from _step(step)
        yield from _along([*([before] if before else []), *(hop.site for hop in step.hops)], edges, report)
        before = step.hops[-1].site


def _step(step: Step) -> Iterator[str]:
    site = step.site
    line = f'  File "{summary.short_file(site.file)}", line {site.line}'
    yield line + (f", in {site.function}" if site.function else "")
    if site.source:
        yield f"    {site.source}"
    facts = f"    {site.phase}: {summary.arrows(step.ops)}"
    if step.modules:
        facts += f"  in {summary.arrows(step.modules, 3)}"
    element, number = _detail(step.hops[-1])
    if element:
        facts += f"  element {element}"
    if number:
        facts += f"  of optimizer step {number}"
    yield facts


def _detail(hop: Hop) -> tuple[str, str]:
    """The element that carried the label, and the number of the optimizer step, as ``walk`` writes them."""
    match = _STEP.match(hop.detail)
    return (match[1] or "", match[2] or "") if match else (hop.detail, "")


def _along(sites: Sequence[Site], edges: dict[tuple[Site, Site], Edge], report: Report) -> Iterator[str]:
    """The latest labels of all that went this way, as far as they are known."""
    known = [edges.get(pair) for pair in pairwise(sites)] if edges else []
    if None in known:
        yield "    (not in the recorded graph)"
    spans = [edge.labels for edge in known if edge is not None and edge.labels is not None]
    if spans and len(report.streams) < 2:
        first, last = min(a for a, _ in spans), max(b for _, b in spans)
        yield f"    latest labels that came this way: x_{first}" + (f" to x_{last}" if last > first else "")


def _begins(first: Site, edges: dict[tuple[Site, Site], Edge]) -> bool:
    return any(a.phase == "input" and b == first for a, b in edges)


def _shared(finding: Finding, report: Report) -> Iterator[str]:
    """Where state that holds the label is written and read again, and which scores read it."""
    path = finding.path
    updates = [i for i, hop in enumerate(path) if hop.site.phase == "update"]
    if not updates or updates[-1] + 1 == len(path):
        return
    written, read = path[updates[-1]], path[updates[-1] + 1]
    sites = [hop.site for hop in path]
    alike = [
        f
        for f in report.violations
        if (f.kind, f.source, f.source_stream) == (finding.kind, finding.source, finding.source_stream)
        and [hop.site for hop in f.path] == sites
    ]
    number = _detail(written)[1]
    yield "Shared state:"
    yield f"  written at {summary.place(written.site)}" + (f" (step {number})" if number else "")
    yield f"    {written.site.source}"
    yield f"  read again at {summary.place(read.site)}"
    yield f"    {read.site.source}"
    targets = summary.ranges({f.target for f in alike})
    label = summary.label_name(finding)
    yield f"  it was fitted on {label}, which the scores of {targets} must not know, and they read it"


def _when(finding: Finding, report: Report) -> Iterator[str]:
    """Whether the label had been scored when it reached the score, and where it is."""
    if finding.kind == "CT006" or (finding.source_stream, finding.source) == (finding.stream, finding.target):
        return
    label, own = summary.label_name(finding), _scored(report, finding.source_stream, finding.source)
    if "scored" not in finding.orders:
        yield f"{label} had been scored by then, but stands later in the stream."
    elif own is None:
        yield f"{label} is never scored itself."
    else:
        yield (
            f"{label} had yet to be scored: its own score is one of positions {own.first}-{own.last} "
            f"at {summary.place(own.site)}."
        )


def _scored(report: Report, stream: str, position: int) -> Moment | None:
    """The moment at which a position of a stream was first scored."""
    sizes = dict(report.streams)
    names = list(sizes)
    offset = sum(sizes[name] for name in names[: names.index(stream)]) if stream in sizes else 0
    at = position + offset
    return next((m for m in report.timeline if m.kind == "score" and m.first <= at <= m.last), None)
