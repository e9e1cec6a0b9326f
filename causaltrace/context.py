"""What one operation's step is given by the tracer, and whom the tracer tells."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from torch import Tensor

from causaltrace.counts import Counts
from causaltrace.lattice.cells import Algebra, Cells
from causaltrace.ledger import Ledger, Pending
from causaltrace.shadow import Memory, Shadow
from causaltrace.site import Site


class Recorder(Protocol):
    """What the tracer tells about scores, escapes, opaque ops and updates; ``policy.Judge`` implements it."""

    def scored(self, shadow: Shadow, site: Site) -> None: ...
    def picked(self, shadow: Shadow, site: Site) -> None: ...
    def candidate(self, pending: Pending, site: Site) -> None: ...
    def escaped(self, what: str, shadow: Shadow, site: Site) -> None: ...
    def unwritten(self, op: str, site: Site) -> None: ...
    def declassify(self, shadow: Shadow | None, reason: str, site: Site) -> None: ...
    def opaque(self, op: str, cells: Cells | None, site: Site) -> None: ...
    def updated(self, held: list[Cells], site: Site) -> None: ...


class Context(Protocol):
    """What a step needs of the tracer."""

    algebra: Algebra
    memory: Memory
    ledger: Ledger
    recorder: Recorder
    strict: bool
    quiet: int
    backward: bool
    blind: bool
    counts: Counts

    @property
    def silent(self) -> bool: ...
    def objective(self, inputs: list[Tensor]) -> bool: ...
    def site(self, phase: str | None = None) -> Site: ...
    def represented(
        self, bound: dict[str, Any], orders: Collection[int]
    ) -> tuple[dict[str, Any], dict[int, int]]: ...
