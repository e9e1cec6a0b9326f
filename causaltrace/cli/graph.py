"""``causaltrace graph``: the provenance graph of a recording, drawn or exported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from causaltrace.cli.arguments import RecordingArgument
from causaltrace.cli.recorded import failure, reports_of
from causaltrace.report.model import Provenance

#: Suffixes that graphviz draws, and those that are text, with what writes them.
DRAWN = (".svg", ".png", ".pdf")
EXPORTED = {".dot": "to_dot", ".graphml": "to_graphml", ".mmd": "to_mermaid", ".json": "to_json"}

OutOption = Annotated[
    Path,
    typer.Option("-o", "--out", help=f"The file: {', '.join((*DRAWN, *EXPORTED))}.", dir_okay=False),
]
WatchOption = Annotated[int | None, typer.Option("--watch", help="Which watch, if there are several.", min=1)]
ExpandOption = Annotated[bool, typer.Option("--expand", help="Draw every site, not modules and steps.")]


def graph(
    recording: RecordingArgument, out: OutOption, watch: WatchOption = None, expand: ExpandOption = False
) -> None:
    """Draw the recorded provenance graph, or export it; the suffix of the file says how."""
    kind = out.suffix.lower()
    if kind not in (*DRAWN, *EXPORTED):
        raise failure(f"{out} must end in one of {', '.join((*DRAWN, *EXPORTED))}")
    reports = reports_of(recording)
    if watch is None and len(reports) > 1:
        raise failure(f"there are {len(reports)} watches: choose one with --watch")
    if (watch or 1) > len(reports):
        raise failure(f"there is no watch {watch}, only {len(reports)}")
    provenance = reports[(watch or 1) - 1].graph
    if not provenance.sites:
        raise failure("the recording has no graph")
    try:
        _write(provenance, out, kind, expand)
    except OSError as error:
        raise failure(f"cannot write {out}: {error.strerror or error}") from None


def _write(provenance: Provenance, out: Path, kind: str, expand: bool) -> None:
    from causaltrace.graph import export, render  # they take their time to load

    if kind in DRAWN:
        render.render(provenance, out, expand=expand)
    else:
        out.write_text(getattr(export, EXPORTED[kind])(provenance), encoding="utf-8")
