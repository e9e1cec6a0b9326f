"""Exit codes of the command line."""

from __future__ import annotations

from collections.abc import Sequence

from causaltrace.report.model import EXIT_CODES, Report

ERROR = 2

#: The code that wins when one script ran several watches, first match first.
_WORST_FIRST = (EXIT_CODES["violation"], EXIT_CODES["unverified"], EXIT_CODES["clean"])


def exit_code(reports: Sequence[Report], failed: bool = False) -> int:
    """The code for these reports: an error beats a violation beats unverified beats clean."""
    if failed or not reports:
        return ERROR
    codes = {report.exit_code for report in reports}
    return next(code for code in _WORST_FIRST if code in codes)
