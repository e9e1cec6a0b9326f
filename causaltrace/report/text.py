"""The terminal report: a verdict, the conditions, both orders, the worst findings with their path."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from causaltrace.report import summary
from causaltrace.report.model import KINDS, Finding, Hop, Notice, Report

STYLE = {
    "clean": "bold green",
    "violation": "bold red",
    "unverified": "bold yellow",
    "pass": "green",
    "fail": "bold red",
    "not covered": "yellow",
}
_GROUPS, _PATHS, _STEPS, _NOTICES = 5, 2, 10, 8


def render(report: Report, console: Console | None = None) -> None:
    """Print ``report`` to ``console`` (default: standard output)."""
    (console or Console(highlight=False)).print(renderable(report), highlight=False)


def to_text(report: Report, width: int = 100) -> str:
    """The terminal report as plain text, ``width`` columns wide."""
    buffer = io.StringIO()
    render(
        report, Console(file=buffer, width=width, color_system=None, force_terminal=False, highlight=False)
    )
    return _stripped(buffer)


def path_text(finding: Finding, width: int = 100) -> str:
    """The whole path of one finding as plain text, printed like a traceback."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, color_system=None, force_terminal=False, highlight=False)
    console.print(f"{finding.kind}: {summary.witness(finding)}", markup=False)
    console.print("path, the label first and the score last:" if finding.path else "no path was recorded")
    for line in _path(finding.path, limit=len(finding.path)):
        console.print(line)
    return _stripped(buffer)


def renderable(report: Report) -> RenderableType:
    """The report as something rich can print."""
    groups = summary.group(report.violations)
    return Group(
        *_headline(report),
        Text(),
        _conditions(report, groups),
        Text(),
        _orders(report),
        *_findings(groups),
        *notices("Opaque operations", report.opaque),
        *notices("Values that left torch", report.escapes),
        *notices("Notes", summary.other_notes(report)),
        Text(),
        Text(summary.scope(report), style="dim"),
    )


def _stripped(buffer: io.StringIO) -> str:
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _headline(report: Report) -> Iterator[RenderableType]:
    title = Text("causaltrace: ")
    title.append(report.status.upper(), style=STYLE[report.status])
    yield title
    yield Text(summary.headline(report))
    if report.run.command:
        yield Text(summary.about(report.run), style="dim")
    if judged := summary.judged(report):
        yield Text(judged)
    if report.error is not None:
        yield Text.assemble(("Partial: ", "bold red"), f"the watched block raised {report.error}")


def _table() -> Table:
    return Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)


def _conditions(report: Report, groups: Sequence[summary.Group]) -> RenderableType:
    table = _table()
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for condition, name, verdict, reason in summary.conditions(report, groups):
        table.add_row(condition, name, Text(verdict, style=STYLE.get(verdict, "")), Text(reason, style="dim"))
    return table


def _orders(report: Report) -> RenderableType:
    table = _table()
    for column in range(3):
        table.add_column(no_wrap=column < 2)
    for order, status in report.orders.items():
        table.add_row(
            Text(f"{order} order"),
            Text(status, style=STYLE.get(status, "")),
            Text(summary.ORDERS.get(order, ""), style="dim"),
        )
    return table


def _findings(groups: Sequence[summary.Group]) -> Iterator[RenderableType]:
    for i, group in enumerate(groups[:_GROUPS]):
        yield Text()
        yield Text.assemble((group.kind, "bold red"), "  ", (KINDS.get(group.kind, ""), "bold"))
        facts = [
            f"{summary.plural(len(group.targets), 'scored position')}: {summary.ranges(group.targets)}",
            summary.failing(group.orders),
        ]
        if group.kind != "CT006":
            facts.insert(1, f"labels: {summary.ranges(group.sources)}")
        yield _indent(Text("; ".join(facts)))
        yield _indent(Text.assemble("scored at ", (summary.place(group.site), "cyan")))
        if group.witness is None:
            continue
        yield _indent(Text.assemble(("witness: ", "bold"), summary.witness(group.witness)))
        if group.witness.path and i < _PATHS:
            yield _indent(Text("path, the label first and the score last:"))
            yield from _path(group.witness.path)
    rest = groups[_GROUPS:]
    if rest:
        yield Text()
        count = sum(g.count for g in rest)
        yield Text(f"and {summary.plural(count, 'finding')} at {summary.plural(len(rest), 'other site')}")


def _path(path: Sequence[Hop], limit: int = _STEPS) -> Iterator[RenderableType]:
    head, left_out, tail = summary.abridge(summary.fold(path), limit)
    for step in head:
        yield from _step(step)
    if left_out:
        yield _indent(Text(f"... {summary.plural(left_out, 'step')} left out", style="dim"), 4)
        for step in tail:
            yield from _step(step)


def _step(step: summary.Step) -> Iterator[RenderableType]:
    site = step.site
    line = Text.assemble("File ", (f'"{summary.short_file(site.file)}"', "cyan"), f", line {site.line}")
    if site.function:
        line.append(f", in {site.function}")
    yield _indent(line, 4)
    if site.source:
        source = Text(site.source, no_wrap=True, overflow="ellipsis", style="bold")
        yield _indent(source, 6)
    facts = f"{site.phase}: {summary.arrows(step.ops)}"
    if step.modules:
        facts += f"  in {summary.arrows(step.modules, 3)}"
    if step.detail:
        facts += f"  {step.detail}"
    yield _indent(Text(facts, style="dim"), 6)


def notices(title: str, notices: Sequence[Notice]) -> Iterator[RenderableType]:
    if not notices:
        return
    yield Text()
    yield Text(title, style="bold")
    ordered = sorted(notices, key=lambda n: (not n.blocking, -n.count))
    for notice in ordered[:_NOTICES]:
        line = Text(style="yellow" if notice.blocking else "")
        line.append(f"{notice.kind}  " if notice.kind.startswith("CT") else "")
        line.append(notice.message)
        if notice.count > 1:
            line.append(f" ({notice.count:,} times)")
        if notice.label is not None:
            line.append(f", latest label x_{notice.label}")
        if notice.blocking:
            line.append(" [blocks the proof]")
        if notice.site is not None:
            line.append(f"  {summary.place(notice.site)}", style="cyan")
        yield _indent(line)
        if notice.remedy:
            yield _indent(Text(f"remedy: {notice.remedy}"), 4)
    if len(ordered) > _NOTICES:
        yield _indent(Text(f"and {len(ordered) - _NOTICES:,} more", style="dim"))


def _indent(renderable: RenderableType, by: int = 2) -> Padding:
    return Padding(renderable, (0, 0, 0, by))
