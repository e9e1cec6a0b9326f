"""Finding label streams that were not named, and copies of labels that were made too early.

Without tokens every integer tensor from outside that is not a module's buffer is a candidate, and the one
whose elements index a loss is the stream. With tokens, a table look-up by an unlabelled tensor that repeats
the labels is a blind spot, and said so.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace._compat import storage_of
from causaltrace.places import modules_running
from causaltrace.schema import Op
from causaltrace.tracer import Tracer

#: Labels in a row that an unlabelled tensor must share with the stream to be called a copy of it.
RUN = 8
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


class Finder:
    """Looks at integer inputs of operations that shadow memory knows nothing about."""

    def __init__(
        self,
        tracer: Tracer,
        given: list[tuple[str, Tensor]],
        add: Callable[[str, Tensor], object],
        note: Callable[[str, str, bool], None],
    ) -> None:
        self._tracer, self._add, self._note = tracer, add, note
        self._given = [t for _, t in given]
        self.searching = not given
        self._inside: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._found: list[Tensor] = []
        self._checked: set[tuple[object, ...]] = set()

    def stop(self) -> None:
        """Labels are declared by hand from now on."""
        self.searching = False

    def made(self, outs: list[Tensor]) -> None:
        """Integer tensors that the watched program makes itself are no candidates."""
        for t in outs:
            if t.dtype in INTEGERS:
                storage = storage_of(t)
                self._inside[id(storage)] = weakref.ref(storage)

    def look(self, op: Op, inputs: list[Tensor]) -> None:
        if self.searching:
            for t in inputs:
                if t.dtype in INTEGERS and t.ndim and t.numel() > 1:
                    self._candidate(t)
        elif op.name == "embedding":
            for t in inputs:
                if t.dtype in INTEGERS and id(storage_of(t)) not in self._tracer.memory.entries:
                    self._copy(t)

    def _candidate(self, t: Tensor) -> None:
        storage = storage_of(t)
        ref = self._inside.get(id(storage))
        if (
            id(storage_of(t)) in self._tracer.memory.entries
            or ref is not None
            and ref() is storage
            or _is_buffer(storage)
        ):
            return
        with torch.inference_mode(False), _disable_current_modes():
            whole = t if t._base is None else t._base
            self._add("labels" if not self._found else f"labels[{len(self._found)}]", whole)
        self._found.append(whole)
        if len(self._found) == 2:
            shapes = " and ".join(str(list(f.shape)) for f in self._found)
            self._note(
                f"several integer tensors from outside were used (shapes {shapes}), and which ones hold "
                "labels cannot be told",
                "pass the token stream: watch(tokens), and slice inputs and targets from it",
                True,
            )

    def _copy(self, t: Tensor) -> None:
        """Does an unlabelled tensor repeat a run of the labels?"""
        key = (id(storage_of(t)), t.storage_offset(), t.shape)
        if key in self._checked or t.shape[-1:].numel() < RUN or t.ndim == 0:
            return
        self._checked.add(key)
        with _disable_current_modes():
            head = t.reshape(-1, t.shape[-1])[0, :RUN].cpu()
            if bool((head == head[0]).all()):
                return
            for given in self._given:
                flat = given.flatten().cpu()
                if flat.numel() >= RUN and bool((flat.unfold(0, RUN, 1) == head).all(-1).any()):
                    self._note(
                        f"a table is read with a tensor of shape {list(t.shape)} that repeats the watched "
                        "labels but is not sliced from them: what it carries is not followed",
                        "slice inputs from the watched tokens inside the block, or declare the tensor with "
                        "causaltrace.label(t, positions=...)",
                        True,
                    )
                    return


def _is_buffer(storage: torch.UntypedStorage) -> bool:
    """Does a module that is running own this storage?"""
    outer = modules_running()[:1]
    return any(storage_of(b) is storage for m in outer for b in m.buffers())
