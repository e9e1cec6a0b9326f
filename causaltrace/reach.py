"""A recorder that judges nothing: for where a watch follows labels, and others look at what it found."""

from __future__ import annotations

from causaltrace.lattice.cells import Cells
from causaltrace.ledger import Ledger, Pending
from causaltrace.shadow import Shadow
from causaltrace.site import Site


class Reach:
    """What left torch may have decided anything since."""

    ledger: Ledger

    def __init__(self) -> None:
        self.opaque_ops: dict[str, Site] = {}

    def escaped(self, what: str, shadow: Shadow, site: Site) -> None:
        self.ledger.raise_watermark(self.ledger.depends(shadow, "possible"))

    def opaque(self, op: str, cells: Cells | None, site: Site) -> None:
        self.opaque_ops.setdefault(op, site)

    def scored(self, shadow: Shadow, site: Site) -> None: ...
    def picked(self, shadow: Shadow, site: Site) -> None: ...
    def candidate(self, pending: Pending, site: Site) -> None: ...
    def unwritten(self, op: str, site: Site) -> None: ...
    def declassify(self, shadow: Shadow | None, reason: str, site: Site) -> None: ...
    def updated(self, held: list[Cells], site: Site) -> None: ...
