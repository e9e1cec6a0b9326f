"""Where values leave torch for Python, numpy and files, and where host data come in.

Scalar reads (``item``, ``bool``, ``float``) and value-made shapes are operations and seen by the tracer.
The rest never reaches the dispatcher: for the duration of a watch the methods of ``torch.Tensor`` that
hand out memory or values are replaced by ones that tell the watch first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from causaltrace.places import internal
from causaltrace.report.model import Notice
from causaltrace.shadow import Shadow
from causaltrace.tracer import Tracer

#: Methods that hand a tensor's values or memory to something that is not torch.
LEAVING = (
    "tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage", "__reduce_ex__",
    "__iter__" if False else "__cuda_array_interface__",
)  # fmt: skip
#: Functions that make tensors from host data.
ENTERING = ("tensor", "as_tensor", "asarray", "from_numpy", "frombuffer", "from_dlpack")


class Host:
    """Patches on enter, restores on exit."""

    def __init__(self, tracer: Tracer, find: bool, found: Callable[[Tensor], None]) -> None:
        self.tracer = tracer
        self.notes: list[Notice] = []
        self._undo: list[Callable[[], None]] = []
        self._find, self._found = find, found

    def stop_finding(self) -> None:
        self._find = False

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
