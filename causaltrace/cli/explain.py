"""``causaltrace explain``: the path of a finding, printed like a traceback."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import typer

from causaltrace.cli.arguments import RecordingArgument
from causaltrace.cli.recorded import failure, reports_of
from causaltrace.graph.explain import explain as told
from causaltrace.report import summary
from causaltrace.report.model import Finding, Report

FindingArgument = Annotated[
    str | None,
    typer.Argument(
        help='A kind ("CT003"), a scored position ("65"), or both ("CT003:65"). Without it, all are listed '
        "and the worst is explained.",
        metavar="FINDING",
    ),
]


def explain(recording: RecordingArgument, finding: FindingArgument = None) -> None:
    """Print the whole path of a recorded finding: from the label to the score that it must not reach."""
    reports = reports_of(recording)
    if not any(report.violations for report in reports):
        typer.echo(f"causaltrace: {summary.plural(len(reports), 'watch', 'watches')} without findings")
        return
    if finding is None:
        _list(reports)
    chosen = [(report, _chosen(report.violations, finding or "")) for report in reports]
    if not any(found for _, found in chosen):
        raise failure(f"no finding {finding}; see 'causaltrace explain {recording}' for those there are")
    groups = [(report, group) for report, found in chosen for group in summary.group(found)]
    for report, group in groups[: None if finding else 1]:
        assert group.witness is not None
        typer.echo(told(group.witness, report))


def _list(reports: Sequence[Report]) -> None:
    for i, report in enumerate(reports, 1):
        for group in summary.group(report.violations):
            assert group.witness is not None
            watch = f"watch {i}  " if len(reports) > 1 else ""
            typer.echo(
                f"{watch}{group.kind}:{group.witness.target}  {summary.witness(group.witness)}; "
                f"{summary.plural(group.count, 'finding')} at {summary.place(group.site)}"
            )
    typer.echo()


def _chosen(findings: Sequence[Finding], name: str) -> list[Finding]:
    """The findings of that name; all of them for ``""``."""
    parts = re.fullmatch(r"([A-Za-z]\w*)?:?(\d{1,16})?", name)
    if parts is None:
        return []
    kind, target = parts[1], parts[2]
    return [
        f
        for f in findings
        if (kind is None or f.kind == kind.upper()) and (target is None or f.target == int(target))
    ]
