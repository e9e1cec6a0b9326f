"""Read a recording for a command, or end with what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import typer

from causaltrace.cli.exits import ERROR
from causaltrace.report import recording
from causaltrace.report.model import Report


def reports_of(path: Path) -> list[Report]:
    """The reports recorded in ``path``; a file that cannot be read ends the command with code 2."""
    try:
        return recording.read(path)
    except recording.RecordingError as error:
        raise failure(f"cannot read {path}: {error}") from None


def failure(text: str) -> typer.Exit:
    """Say what is wrong; the error exit."""
    typer.echo(f"causaltrace: {text}", err=True)
    return typer.Exit(ERROR)
