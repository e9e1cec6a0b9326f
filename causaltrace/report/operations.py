"""The table of operations: how often each ran, and how it was handled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from causaltrace.report import summary
from causaltrace.report.model import Report
from causaltrace.report.text import STYLE, notices

_HANDLED = {
    "conservative": ("bold yellow", "all inputs may reach all outputs"),
    "registered": ("bold", ""),
}


def render(report: Report, console: Console | None = None) -> None:
    """Print the operations of ``report`` to ``console`` (default: standard output)."""
    (console or Console(highlight=False)).print(renderable(report), highlight=False)


def renderable(report: Report) -> RenderableType:
    return Group(*_headline(report), Text(), _table(report), *_conservative(report))


def _headline(report: Report) -> Iterator[RenderableType]:
    counts = Counter(use.handled for use in report.ops)
    total = sum(use.calls for use in report.ops)
    parts = ", ".join(f"{n} {handled}" for handled, n in counts.items())
    yield Text.assemble("causaltrace: ", (report.status.upper(), STYLE[report.status]))
    yield Text(f"{summary.plural(len(report.ops), 'operation')}, {summary.plural(total, 'call')}: {parts}.")


def _table(report: Report) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("calls", justify="right", no_wrap=True)
    table.add_column("operation", overflow="fold")
    table.add_column("handled", no_wrap=True)
    table.add_column("", overflow="fold", style="dim")
    for use in report.ops:
        style, detail = _HANDLED.get(use.handled, ("", ""))
        table.add_row(
            f"{use.calls:,}",
            Text(summary.short_op(use.op)),
            Text(use.handled, style=style),
            Text(use.detail or detail),
        )
    return table


def _conservative(report: Report) -> Iterator[RenderableType]:
    """Where labels went into operations without a rule, and what to do."""
    if report.opaque:
        yield from notices("Conservative, where labels reached them", report.opaque)
    elif any(use.handled == "conservative" for use in report.ops):
        yield Text()
        yield Text("No label reached a conservative operation.")
