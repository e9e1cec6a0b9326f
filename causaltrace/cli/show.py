"""Show reports on the terminal, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import typer

from causaltrace.report.model import Report


def show_all(reports: Sequence[Report], show: Callable[[Report], None]) -> None:
    """``show`` each report, with its number if there are several."""
    for i, report in enumerate(reports, 1):
        typer.echo()
        if len(reports) > 1:
            typer.echo(f"watch {i} of {len(reports)}")
        show(report)
