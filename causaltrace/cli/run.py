"""``causaltrace run``: run a script under its own name and report what its watches found."""

from __future__ import annotations

from causaltrace.cli.script import Script
from causaltrace.cli.watched import Arguments, JsonOption, ModuleOption, ScriptArgument, run_watched
from causaltrace.report.text import render


def run(
    script: ScriptArgument, args: Arguments = None, module: ModuleOption = False, json: JsonOption = None
) -> None:
    """Run a script that calls causaltrace.watch or causaltrace.label, and print the report.

    Options of causaltrace come before SCRIPT, those of the script after it.
    Exit codes: 0 clean, 1 violation, 2 error, 3 unverified.
    """
    raise run_watched(Script(script, args or (), module), json, render)
