"""``causaltrace report``: show a recording, and make other outputs of it."""

from __future__ import annotations

import typer

from causaltrace.cli import outputs as o
from causaltrace.cli.arguments import RecordingArgument
from causaltrace.cli.exits import exit_code
from causaltrace.cli.recorded import reports_of
from causaltrace.cli.show import show_all
from causaltrace.report.text import render


def report(
    recording: RecordingArgument,
    html: o.HtmlOption = None,
    markdown: o.MarkdownOption = None,
    sarif: o.SarifOption = None,
    junit: o.JunitOption = None,
    json: o.JsonOption = None,
    github: o.GithubOption = False,
) -> None:
    """Print the report that "causaltrace run -o" recorded, and write others. Nothing is run.

    Exit codes: those of the recorded verdict, 0 clean, 1 violation, 3 unverified; 2 for an error.
    """
    reports = reports_of(recording)
    show_all(reports, render)
    written = o.Outputs(html, markdown, sarif, junit, json, github).write(reports)
    raise typer.Exit(exit_code(reports, failed=not written))
