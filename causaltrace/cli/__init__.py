"""The command line; one file per command."""

from __future__ import annotations

import typer

from causaltrace.cli.audit import audit
from causaltrace.cli.demo import demo
from causaltrace.cli.explain import explain
from causaltrace.cli.graph import graph
from causaltrace.cli.ops import ops
from causaltrace.cli.report import report
from causaltrace.cli.run import run

app = typer.Typer(
    name="causaltrace",
    help="Which labels did each score depend on?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run", context_settings={"allow_interspersed_args": False})(run)
app.command("audit")(audit)
app.command("report")(report)
app.command("explain")(explain)
app.command("graph")(graph)
app.command("ops", context_settings={"allow_interspersed_args": False})(ops)
app.command(
    "demo",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)(demo)


def main() -> None:
    """Entry point of the console script; exits with the codes of `causaltrace.cli.exits`."""
    app()
