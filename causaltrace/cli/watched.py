"""What the commands that run somebody's script share: their arguments, the run, and the report as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from causaltrace.cli.exits import exit_code
from causaltrace.cli.script import Script, format_error
from causaltrace.cli.watching import Watching
from causaltrace.report.json import reports_to_json
from causaltrace.report.model import Report
from causaltrace.watch import ViolationError

NOTHING_WATCHED = (
    "causaltrace: the script opened no watch and labelled nothing. Put its scoring loop inside "
    "'with causaltrace.watch(tokens):', or call 'causaltrace.label(tokens)' before it."
)

ScriptArgument = Annotated[
    str, typer.Argument(help="Script file, or with -m the name of a module.", metavar="SCRIPT")
]
Arguments = Annotated[list[str] | None, typer.Argument(help="Arguments of the script.", metavar="ARGS")]
ModuleOption = Annotated[bool, typer.Option("-m", help="SCRIPT is the name of a module.")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Also write the report here, as JSON.", dir_okay=False)
]


def run_watched(script: Script, json: Path | None, show: Callable[[Report], None]) -> typer.Exit:
    """Run the script, ``show`` the report of each of its watches; the verdict as an exit."""
    with Watching() as watching:
        error = script.run()
        watching.close(error)
    reports = watching.reports
    for i, report in enumerate(reports, 1):
        typer.echo()
        if len(reports) > 1:
            typer.echo(f"watch {i} of {len(reports)}")
        show(report)
    failed = error is not None and not _is_verdict(error, reports)
    if error is not None and failed:
        typer.echo(format_error(error), err=True, nl=False)
    elif not reports:
        typer.echo(NOTHING_WATCHED, err=True)
    if json is not None and reports:
        failed |= not _write(json, reports)
    return typer.Exit(exit_code(reports, failed))


def _is_verdict(error: BaseException, reports: Sequence[Report]) -> bool:
    """Did the script end because it raised its own report (``trace.raise_if_violation()``)?"""
    return isinstance(error, ViolationError) and any(r.status == "violation" for r in reports)


def _write(path: Path, reports: Sequence[Report]) -> bool:
    try:
        path.write_text(reports_to_json(reports) + "\n", encoding="utf-8")
    except OSError as error:
        typer.echo(f"causaltrace: cannot write {path}: {error.strerror}", err=True)
        return False
    return True
