"""The files that a command makes of reports: the options, and how each is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from causaltrace.report.github import to_github
from causaltrace.report.json import reports_to_json
from causaltrace.report.junit import to_junit
from causaltrace.report.markdown import reports_to_markdown
from causaltrace.report.model import Report
from causaltrace.report.recording import RecordingError, pack
from causaltrace.report.sarif import to_sarif


def _option(flag: str, what: str) -> typer.models.OptionInfo:
    return typer.Option(flag, help=f"Write {what} here.", dir_okay=False, rich_help_panel="Outputs")


HtmlOption = Annotated[Path | None, _option("--html", "a page that shows everything")]
MarkdownOption = Annotated[Path | None, _option("--markdown", "a comment for a pull request")]
SarifOption = Annotated[Path | None, _option("--sarif", "SARIF 2.1.0 for code scanning")]
JunitOption = Annotated[Path | None, _option("--junit", "JUnit XML for test dashboards")]
JsonOption = Annotated[Path | None, _option("--json", "the complete report as JSON")]
GithubOption = Annotated[
    bool,
    typer.Option("--github", help="Also print annotations for GitHub Actions.", rich_help_panel="Outputs"),
]


@dataclass(frozen=True, slots=True)
class Outputs:
    """What is to be made of the reports besides showing them; None: not asked for."""

    html: Path | None = None
    markdown: Path | None = None
    sarif: Path | None = None
    junit: Path | None = None
    json: Path | None = None
    github: bool = False
    recording: Path | None = None

    def write(self, reports: Sequence[Report]) -> bool:
        """Write all of them, and say which could not be written; True if all were."""
        made: list[tuple[Path | None, Callable[[Sequence[Report]], str | bytes]]] = [
            (self.recording, pack),
            (self.html, _html),
            (self.markdown, reports_to_markdown),
            (self.sarif, to_sarif),
            (self.junit, to_junit),
            (self.json, lambda reports: reports_to_json(reports) + "\n"),
        ]
        failed = [path for path, make in made if path is not None and not _written(path, make, reports)]
        if self.github:
            typer.echo(to_github(reports).encode("utf-8", "replace"), nl=False)
        return not failed


def _html(reports: Sequence[Report]) -> str:
    from causaltrace.report.html import to_html  # takes its time to load

    return to_html(reports)


def _written(path: Path, make: Callable[[Sequence[Report]], str | bytes], reports: Sequence[Report]) -> bool:
    try:
        content = make(reports)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    except (OSError, RecordingError) as error:
        typer.echo(f"causaltrace: cannot write {path}: {getattr(error, 'strerror', None) or error}", err=True)
        return False
    return True
