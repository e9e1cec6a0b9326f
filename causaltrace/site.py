"""Where an operation happened: phase, module path, op, and the user's file and line."""

from __future__ import annotations

import linecache
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Site:
    """One place in the watched program.

    ``stored``: the source line of a site that was read from a file; the file of that name, if there is one
    here, may be another. It is no part of what makes two sites equal.
    """

    phase: str
    op: str
    file: str
    line: int
    function: str = ""
    module: str = ""
    stored: str | None = field(default=None, compare=False, repr=False)

    @property
    def source(self) -> str:
        """The stripped source line, or ``""`` when the file cannot be read."""
        if self.stored is not None:
            return self.stored
        try:
            return linecache.getline(self.file, self.line).strip()
        except ValueError:  # no file can have this name
            return ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"
