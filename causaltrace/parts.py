"""What the tracer keeps for each thread, and the parts of the boundary that look at tensors with it."""

from __future__ import annotations

import threading
from typing import Protocol

from torch import Tensor

from causaltrace.schema import Op
from causaltrace.shadow import Entry


class Depth(threading.local):
    """A depth of calls, for each thread."""

    value = 0


class Finder(Protocol):
    """Looks at what no label is known of; ``boundary.finder`` implements it."""

    searching: bool

    def look(self, op: Op, inputs: list[Tensor]) -> None: ...
    def made(self, outs: list[Tensor]) -> None: ...


class Outside(Protocol):
    """Memory that no operation filled; ``boundary.outside`` implements it."""

    def adopted(self, t: Tensor) -> None: ...
    def unwritten(self, t: Tensor) -> None: ...
    def read(self, op: str, unwritten: list[Entry], outs: list[Tensor]) -> None: ...
