"""What the tracer keeps for each thread, and the parts of the boundary that look at tensors with it."""

from __future__ import annotations

import threading
from typing import Any, Protocol

import torch
from torch import Tensor

from causaltrace.schema import Op
from causaltrace.shadow import Entry


class Depth:
    """An attribute: a depth of calls, for each thread."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}_of_threads"

    def __get__(self, instance: object, owner: type) -> int:
        return getattr(self._of(instance), "depth", 0)

    def __set__(self, instance: object, depth: int) -> None:
        self._of(instance).depth = depth

    def _of(self, instance: object) -> threading.local:
        local: threading.local = vars(instance).setdefault(self._name, threading.local())
        return local


class Finder(Protocol):
    """Looks at what no label is known of; ``boundary.finder`` implements it."""

    searching: bool

    def look(self, op: Op, bound: dict[str, Any], inputs: list[Tensor]) -> None: ...
    def left(self, t: Tensor) -> None: ...
    def lost(self, what: str, storage: torch.UntypedStorage | None = None) -> None: ...
    def made(self, outs: list[Tensor]) -> None: ...


class Outside(Protocol):
    """Memory that no operation filled; ``boundary.outside`` implements it."""

    def adopted(self, t: Tensor) -> None: ...
    def unwritten(self, t: Tensor) -> None: ...
    def read(self, op: str, unwritten: list[Entry], outs: list[Tensor]) -> None: ...
