"""The one error of the static audit."""

from __future__ import annotations

from causaltrace.site import Site

DYNAMIC = "audit what comes before and after it, or run it on data inside causaltrace.watch(tokens)"


class AuditError(RuntimeError):
    """What was to be audited cannot be followed without values. The text names the user's line and what to do
    instead."""

    def __init__(self, what: str, site: Site | None = None, remedy: str = DYNAMIC) -> None:
        where = "" if site is None else f"{site}: "
        super().__init__(f"{where}{what}; {remedy}")
        self.what, self.site = what, site
