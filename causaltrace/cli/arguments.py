"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ScriptArgument = Annotated[
    str, typer.Argument(help="Script file, or with -m the name of a module.", metavar="SCRIPT")
]
Arguments = Annotated[list[str] | None, typer.Argument(help="Arguments of the script.", metavar="ARGS")]
ModuleOption = Annotated[bool, typer.Option("-m", help="SCRIPT is the name of a module.")]
RecordingArgument = Annotated[
    Path,
    typer.Argument(help='What "causaltrace run -o" recorded.', metavar="RECORDING", dir_okay=False),
]
