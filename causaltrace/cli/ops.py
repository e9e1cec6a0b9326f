"""``causaltrace ops``: run a script and list every operation that its watches saw, and how it was handled."""

from __future__ import annotations

from causaltrace.cli.arguments import Arguments, ModuleOption, ScriptArgument
from causaltrace.cli.outputs import JsonOption, Outputs
from causaltrace.cli.script import Script
from causaltrace.report.operations import render


def ops(
    script: ScriptArgument, args: Arguments = None, module: ModuleOption = False, json: JsonOption = None
) -> None:
    """Run a script as "causaltrace run" does, and list the operations that it used.

    Each has a rule, one derived from its schema, or one that you registered; is decomposed into others; or
    is conservative: all of its inputs may have reached all of its outputs. Exit codes as of "run".
    """
    from causaltrace.cli.watched import run_watched

    raise run_watched(Script(script, args or (), module), Outputs(json=json), render)
