"""Where an operation happened: phase, module path, op, and the user's file and line."""

from __future__ import annotations

import linecache
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Site:
    """One place in the watched program."""

    phase: str
    op: str
    file: str
    line: int
    function: str = ""
    module: str = ""

    @property
    def source(self) -> str:
        """The stripped source line, or ``""`` when the file cannot be read."""
        try:
            return linecache.getline(self.file, self.line).strip()
        except ValueError:  # no name of a file: a stored report may say anything
            return ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"
