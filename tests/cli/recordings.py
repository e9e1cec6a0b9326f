"""Recordings for the tests of the commands that read them."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from causaltrace.cli import app
from causaltrace.report.model import Report
from causaltrace.report.recording import pack


def record(folder: Path, *reports: Report) -> str:
    path = folder / "eval.ctrace"
    path.write_bytes(pack(reports))
    return str(path)


def call(*args: object) -> Result:
    """A command of causaltrace; an exception of its own fails the test."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result
