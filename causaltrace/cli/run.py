"""``causaltrace run``: run a script under its own name and report what its watches found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from causaltrace.cli import outputs as o
from causaltrace.cli.arguments import Arguments, ModuleOption, ScriptArgument
from causaltrace.cli.script import Script
from causaltrace.report.text import render

RecordOption = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--record",
        help="Record here (eval.ctrace), for the commands report, explain and graph.",
        dir_okay=False,
        rich_help_panel="Outputs",
    ),
]


def run(
    script: ScriptArgument,
    args: Arguments = None,
    module: ModuleOption = False,
    record: RecordOption = None,
    html: o.HtmlOption = None,
    markdown: o.MarkdownOption = None,
    sarif: o.SarifOption = None,
    junit: o.JunitOption = None,
    json: o.JsonOption = None,
    github: o.GithubOption = False,
) -> None:
    """Run a script that calls causaltrace.watch or causaltrace.label, and print the report.

    Options of causaltrace come before SCRIPT, those of the script after it.
    Exit codes: 0 clean, 1 violation, 2 error, 3 unverified.
    """
    from causaltrace.cli.watched import run_watched

    outputs = o.Outputs(html, markdown, sarif, junit, json, github, record)
    raise run_watched(Script(script, args or (), module), outputs, render)
