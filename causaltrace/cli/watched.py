"""Run somebody's script, show what its watches found, and write the outputs: what "run" and "ops" share."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import typer

from causaltrace.cli.exits import exit_code
from causaltrace.cli.outputs import Outputs
from causaltrace.cli.progress import Progress
from causaltrace.cli.script import Script, format_error
from causaltrace.cli.show import show_all
from causaltrace.cli.watching import Watching
from causaltrace.report.about import made_now
from causaltrace.report.model import Report, Run
from causaltrace.watcher import ViolationError

NOTHING_WATCHED = (
    "causaltrace: the script opened no watch and labelled nothing. Put its scoring loop inside "
    "'with causaltrace.watch(tokens):', or call 'causaltrace.label(tokens)' before it."
)


def run_watched(script: Script, outputs: Outputs, show: Callable[[Report], None]) -> typer.Exit:
    """Run the script, ``show`` the report of each of its watches; the verdict as an exit."""
    run, process = _described(script), os.getpid()
    with Progress() as progress, Watching(progress) as watching:
        error = script.run()
        if os.getpid() != process:
            raise _ended(error)
        watching.close(error)
    reports = watching.reports
    for report in reports:
        report.run = replace(run, time=report.run.time or run.time)
    show_all(reports, show)
    failed = error is not None and not _is_verdict(error, reports)
    if error is not None and failed:
        typer.echo(format_error(error), err=True, nl=False)
    elif not reports:
        typer.echo(NOTHING_WATCHED, err=True)
    if reports:
        failed |= not outputs.write(reports)
    return typer.Exit(exit_code(reports, failed))


def _ended(error: BaseException | None) -> SystemExit:
    """The end of a copy of the process that the script made. The report is not its to write."""
    if isinstance(error, SystemExit):
        return error
    if error is not None:
        typer.echo(format_error(error), err=True, nl=False)
    return SystemExit(0 if error is None else 1)


def _described(script: Script) -> Run:
    """What is about to run, at the revision at which it starts."""
    name = ["-m", script.target] if script.module else [script.target]
    folder = Path.cwd() if script.module else Path(script.target).resolve().parent
    return made_now(shlex.join([*name, *script.args]), folder)


def _is_verdict(error: BaseException, reports: Sequence[Report]) -> bool:
    """Did the script end because it raised its own report (``trace.raise_if_violation()``)?"""
    return isinstance(error, ViolationError) and any(r.status == "violation" for r in reports)
