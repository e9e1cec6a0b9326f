"""Tensors that torch makes of sequences: ``torch.LongTensor([t0, t1])``, ``p[[0], [y]]``.

Torch reads the tensors in a sequence one by one, where no operation is seen, and then lifts what it made
into the program: the one operation that is. What was read until then went into its result.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace import rules
from causaltrace._compat import modes, unseen_by_modes
from causaltrace.counts import storage
from causaltrace.schema import Op
from causaltrace.shadow import Shadow
from causaltrace.tracer import Tracer

#: How torch asks a tensor for its value.
READING = ("__index__", "__float__", "__complex__")


class Elements:
    """The tensors that were read on a thread and are not yet in a tensor."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self._read: dict[int, list[Tensor]] = {}
        self._stack = Op("stack", "torch.tensor", rules.TABLE["stack"])

    def reading(self, original: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        @functools.wraps(original)
        def wrapper(t: Tensor) -> Any:
            if self.tracer.counts:
                self.tracer.counts.asked(storage(t))
            if unseen_by_modes() and any(mode is self.tracer for mode in modes()):
                self._read.setdefault(threading.get_ident(), []).append(t)
            return original(t)

        return wrapper

    def made(self, out: Tensor) -> None:
        """``out`` is a new tensor. Where all its elements were tensors, each goes where it was put."""
        tracer, read = self.tracer, self._read.pop(threading.get_ident(), [])
        if not read or len(read) != out.numel():
            return tracer.host_data(out, read)
        for t in read:
            tracer.seek(t)
        with _disable_current_modes():
            known: dict[int, Shadow] = {id(t): s for t in read if (s := tracer.memory.read(t)) is not None}
            if known:
                flat, parts = out.detach().view(-1), [t.detach().view(()) for t in read]
                shadows = {id(p): known[id(t)] for p, t in zip(parts, read, strict=True) if id(t) in known}
                self._stack.calls += 1
                after = tracer.called(self._stack, {"tensors": parts}, [flat], shadows, early=False)
                tracer._write([flat], after)
