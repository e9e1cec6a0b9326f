"""``causaltrace demo``: run ``examples/demo.py`` of a source checkout."""

from __future__ import annotations

from pathlib import Path

import typer

import causaltrace
from causaltrace.cli.exits import ERROR
from causaltrace.cli.script import Script, format_error

_MISSING = (
    "causaltrace: the demo needs the example evals, which are not installed with the package. "
    "Run 'make demo' in a source checkout."
)


def demo(context: typer.Context) -> None:
    """Judge the example evals and show what each may claim. Takes the arguments of that script."""
    file = Path(causaltrace.__file__).resolve().parents[1] / "examples" / "demo.py"
    if not file.is_file():
        typer.echo(_MISSING, err=True)
        raise typer.Exit(ERROR)
    error = Script("examples.demo", context.args, module=True, folder=file.parents[1]).run()
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        raise typer.Exit(error.code)
    if error is not None:
        typer.echo(format_error(error), err=True, nl=False)
        raise typer.Exit(ERROR)
