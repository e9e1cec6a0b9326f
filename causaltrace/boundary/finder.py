"""Finding label streams that were not named, and copies of labels that were made too early.

Without tokens every integer tensor from outside is a candidate once an operation reads it, or anything else
gets its values or memory, and the one whose elements index a loss is the stream. No candidates are buffers of
modules, bytes that torch copies, and tables: what labels pick from before it is used otherwise, and what is
never an index itself. With tokens, a table look-up by an unlabelled tensor that repeats the labels is a blind
spot, and said so.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace._compat import as_numpy, storage_of
from causaltrace.boundary.alive import tracked
from causaltrace.places import modules_running
from causaltrace.schema import Op, tensors
from causaltrace.stream import starts
from causaltrace.tracer import Tracer

#: Labels in a row that an unlabelled tensor must share with the stream to be called a copy of it.
RUN = 8
INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)
#: Operations that pick elements of their first argument.
LOOKUPS = ("index", "_unsafe_index", "index_select", "gather", "take", "embedding")
#: Arguments whose values are places in another tensor.
INDICES = ("index", "indices", "target")
_STORAGE = sys.modules[torch.UntypedStorage.__module__].__file__
_OURS = __name__.partition(".")[0]


class _Storages:
    """A set of storages that forgets those that are gone."""

    def __init__(self) -> None:
        self._refs: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def add(self, storage: torch.UntypedStorage) -> None:
        self._refs[id(storage)] = weakref.ref(storage)

    def __contains__(self, storage: torch.UntypedStorage) -> bool:
        ref = self._refs.get(id(storage))
        return ref is not None and ref() is storage


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
        self._settled = _Storages()  #: no candidates, or candidates already
        self._tables = _Storages()
        self._gone = _Storages()
        self._forked = ""  #: by what the process was copied
        self._found: list[Tensor] = []
        self._buffers: list[Tensor] = []  #: of modules
        self._checked: set[tuple[object, ...]] = set()

    def stop(self) -> None:
        """Labels are declared by hand from now on."""
        self.searching = False

    def made(self, outs: list[Tensor]) -> None:
        """Integer tensors that the watched program makes itself are no candidates."""
        for t in outs:
            if t.dtype in INTEGERS:
                self._settled.add(storage_of(t))

    def look(self, op: Op, bound: dict[str, Any], inputs: list[Tensor]) -> None:
        """An operation is about to run."""
        if self.searching:
            indices = [t for name in INDICES for t in tensors(bound.get(name))]
            source = inputs[0] if op.name in LOOKUPS and indices and inputs else None
            for t in inputs:
                if t is not source:
                    self._candidate(t, any(t is index for index in indices))
            if source is not None and not self._table(source, indices):
                self._candidate(source)
        elif op.name == "embedding":
            for t in inputs:
                if t.dtype in INTEGERS and id(storage_of(t)) not in self._tracer.memory.entries:
                    self._copy(t)

    def left(self, t: Tensor) -> None:
        """Something that is no operation is about to get values or memory of ``t``."""
        if self.searching:
            self._candidate(t)

    def lost(self, what: str, storage: torch.UntypedStorage | None = None) -> None:
        """Other processes get ``storage``, or all that there is."""
        if storage is not None:
            self._gone.add(storage)
        else:
            self._forked = what

    def _candidate(self, t: Tensor, index: bool = False) -> None:
        """``t`` may be labels, unless it is known not to be. ``index``: its values are places."""
        base = t if t._base is None else t._base
        if base.dtype not in INTEGERS or base.layout is not torch.strided:
            return
        try:
            storage = storage_of(t)
        except NotImplementedError:  # inside a vmap, whose operations are seen by what they are made of
            return
        if storage in self._settled or storage in self._tables and not index:
            return
        if storage.nbytes() <= base.itemsize or storage.device.type == "meta":  # a number, or no memory
            return
        memory = self._tracer.memory
        entry = memory.entry(t)
        if entry is not None and entry.shadow or _copied_by_torch(t):
            return
        self._settled.add(storage)
        if self._is_buffer(storage):
            self._buffers.append(base)
            self._compare(base, self._found)
            return
        with torch.inference_mode(False), _disable_current_modes():
            whole = base
            if base.numel() * base.itemsize != storage.nbytes():  # labels may lie all over the memory
                whole = torch.empty(0, dtype=base.dtype, device=base.device).set_(storage)
            self._add("labels" if not self._found else f"labels[{len(self._found)}]", whole)
        self._found.append(whole)
        for buffer in self._buffers:
            self._compare(buffer, [whole])
        if self._forked or storage in self._gone:
            self._note(
                f"an integer tensor of shape {list(whole.shape)} was first used after another process had "
                "got it: what comes back from there is not followed",
                "pass the token stream: watch(tokens)",
                True,
            )
        if len(self._found) == 2:
            shapes = " and ".join(str(list(f.shape)) for f in self._found)
            self._note(
                f"several integer tensors from outside were used (shapes {shapes}), and which ones hold "
                "labels cannot be told",
                "pass the token stream: watch(tokens), and slice inputs and targets from it",
                True,
            )

    def _compare(self, buffer: Tensor, streams: list[Tensor]) -> None:
        """Is a module's buffer a copy of the labels?"""
        if self._repeats(buffer, streams):
            self._note(
                f"a module's buffer of shape {list(buffer.shape)} repeats labels but is not sliced from "
                "them: what it carries is not followed",
                "slice inputs and targets from one tensor: watch(tokens)",
                True,
            )

    def _table(self, source: Tensor, indices: list[Tensor]) -> bool:
        """Is this a table with a row for each class? Only labels as they are pick from one: a mask or
        positions that were computed from labels may pick from anything."""
        if source.dtype not in INTEGERS:
            return False
        storage, memory = storage_of(source), self._tracer.memory
        if storage in self._tables:
            return True
        if storage in self._settled or memory.entry(source) is not None:
            return False
        picked = (memory.read(index) for index in indices)
        if not any(s is not None and s.label is not None for s in picked) or self._repeats(
            source, self._found
        ):
            return False
        self._tables.add(storage)
        return True

    def _is_buffer(self, storage: torch.UntypedStorage) -> bool:
        """Does a module own this storage? One that is running is found soon; all that there are matter only
        while everything is clear."""
        if _owned(storage, [m for outer in modules_running()[:1] for m in outer.modules()]):
            return True
        if len(self._found) > 1:
            return False
        return _owned(storage, [m for m in tracked() if issubclass(type(m), torch.nn.Module)])

    def _copy(self, t: Tensor) -> None:
        """Does an unlabelled tensor repeat a run of the labels?"""
        key = (id(storage_of(t)), t.storage_offset(), t.shape)
        if key in self._checked:
            return
        self._checked.add(key)
        if self._repeats(t, self._given):
            self._note(
                f"a table is read with a tensor of shape {list(t.shape)} that repeats the watched "
                "labels but is not sliced from them: what it carries is not followed",
                "slice inputs from the watched tokens inside the block, or declare the tensor with "
                "causaltrace.label(t, positions=...)",
                True,
            )

    def _repeats(self, t: Tensor, streams: list[Tensor]) -> bool:
        if t.ndim == 0 or t.shape[-1] < RUN:
            return False
        with _disable_current_modes():
            head = t.reshape(-1, t.shape[-1])[0, :RUN].cpu()
            if bool((head == head[0]).all()):
                return False
            flats = [stream.flatten().cpu() for stream in streams if stream.numel() >= RUN]
            return any(len(starts(as_numpy(head), as_numpy(flat))) for flat in flats)


def _owned(storage: torch.UntypedStorage, modules: list[torch.nn.Module]) -> bool:
    buffers = [b for m in modules for b in vars(m).get("_buffers", {}).values()]  # not all are whole yet
    return any(storage_of(b) is storage for b in buffers if b is not None and b.layout is torch.strided)


def _copied_by_torch(t: Tensor) -> bool:
    """Is this the view of a storage's bytes with which torch copies storages? Who asked for the copy has
    handed over a tensor."""
    if t.dtype is not torch.uint8:
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _OURS:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename == _STORAGE
