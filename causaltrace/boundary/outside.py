"""Memory that no operation filled: uninitialised, loaded from bytes, or open to other code and processes.

Saved tensors are remembered by the bytes of their storage: memory that comes back with the same bytes has
the support that they had, since equal bytes are equal values. Which bytes came back may depend on anything
that had left torch by then, so that stays possible.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace._compat import as_numpy, extent, storage_of
from causaltrace.lattice.cells import Cells
from causaltrace.parts import Depth
from causaltrace.shadow import Entry, Shadow
from causaltrace.tracer import Tracer

#: Fewer bytes than this, or bytes that are all the same, are no evidence that two values are one.
EVIDENCE = 16
#: Saved storages that are remembered.
REMEMBERED = 1 << 14


class Outside:
    """Told of memory whose contents the watch has not seen written."""

    filling = Depth()  #: of calls, on this thread, that fill the memory that they make

    def __init__(self, tracer: Tracer) -> None:
        self._tracer, self._memory = tracer, tracer.memory
        self._met: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        #: By contents: an empty storage that has the shadow, so that it is kept up to date like any other.
        self._saved: OrderedDict[bytes, torch.UntypedStorage] = OrderedDict()
        self._sizes: set[int] = set()
        self._memory.leaks = self._written

    # -- unwritten ------------------------------------------------------------------------------------

    def unwritten(self, t: Tensor) -> None:
        """``t`` holds what was in memory before: values of any tensor that is gone."""
        if type(t) is not Tensor or t.layout is not torch.strided or t.is_meta or not t.numel():
            return
        if self.filling:
            return self._tracer.host_data(t, [])
        with self._tracer._lock, _disable_current_modes():
            anything = self._tracer.ledger.anything()
            if anything is not None:
                self._memory.unwritten(t, anything)

    def read(self, op: str, unwritten: list[Entry], outs: list[Tensor]) -> None:
        """An operation met memory that nobody has written: does it go on from there?"""
        own = {id(entry) for entry in unwritten}
        last = self._tracer.ledger.is_scored.numel() - 1
        for t in outs:
            entry = self._memory.entries.get(id(storage_of(t)))
            if entry is not None and id(entry) not in own and _holds(entry.shadow, last):
                self._tracer.recorder.unwritten(op, self._tracer.site())
                return

    # -- open to others -------------------------------------------------------------------------------

    def opened(self, t: Tensor) -> None:
        """Other code has the address of ``t``: it may read and write there from now on."""
        if t.layout is torch.strided and not t.is_meta and not self._tracer.quiet:
            with self._tracer._lock, _disable_current_modes():
                self._open(storage_of(t))

    def shared(self, what: str, storage: torch.UntypedStorage) -> None:
        """Other processes get ``storage``."""
        if self._tracer.finder is not None:
            self._tracer.finder.lost(what, storage)
        entry = self._memory.entries.get(id(storage))
        self._tracer.vanished(what, None if entry is None else entry.shadow)
        with self._tracer._lock, _disable_current_modes():
            self._open(storage)

    def aliased(self, t: Tensor, out: Tensor) -> None:
        """``out`` has the memory of ``t``, in a storage of its own."""
        self._tracer.seek(t)
        shadow = self._memory.read(t)
        self._tracer.vanished("a second storage over its memory", shadow)
        with self._tracer._lock, _disable_current_modes():
            self._open(storage_of(t))
            if not self._memory.known(out):
                self._memory.write(out, shadow)
                self._open(storage_of(out))

    def _open(self, storage: torch.UntypedStorage) -> None:
        self._memory.open(*extent(storage))

    def _written(self, shadow: Shadow) -> None:
        """An operation wrote to memory that others can read."""
        self._tracer.vanished("memory whose address was handed out", shadow)

    # -- files and bytes ------------------------------------------------------------------------------

    def saved(self, t: Tensor) -> None:
        """``t`` is turned into bytes, with all of its storage."""
        tracer = self._tracer
        if t.layout is not torch.strided or id(storage_of(t)) not in self._memory.entries:
            return
        with tracer._lock, _disable_current_modes():
            storage = storage_of(t)
            key = _contents(storage)
            if key is None:
                return
            kept = self._saved[key] = torch.UntypedStorage(0)
            self._memory.copy(storage, kept, self._without_roles)
            self._sizes.add(storage.nbytes())
            if len(self._saved) > REMEMBERED:
                self._saved.popitem(last=False)

    def adopted(self, t: Tensor) -> None:
        """``t`` has memory that came from elsewhere, filled by no operation."""
        if t.layout is not torch.strided or t.is_meta:
            return
        storage = storage_of(t)
        key = id(storage)
        known = self._met.get(key)
        if key in self._memory.entries or known is not None and known() is storage:
            return
        self._met[key] = weakref.ref(storage, lambda _: self._met.pop(key, None))
        with self._tracer._lock, _disable_current_modes():
            if storage.nbytes() in self._sizes and (contents := _contents(storage)) in self._saved:
                assert contents is not None
                self._tracer._op_name = "load"
                self._memory.copy(self._saved[contents], storage, self._loaded)
            elif storage.nbytes():
                everything = torch.empty(0, dtype=torch.uint8, device=t.device).set_(storage)
                if not self._memory.known(everything):  # else it was handed out, and what is there is known
                    self._tracer.host_data(everything, [])

    def copied(self, t: Tensor, out: Tensor) -> None:
        """``out`` is a copy of ``t`` with all of its storage."""
        if t.layout is torch.strided and id(storage_of(t)) in self._memory.entries:
            with self._tracer._lock, _disable_current_modes():
                self._memory.copy(storage_of(t), storage_of(out), lambda shadow: shadow)

    def _without_roles(self, shadow: Shadow) -> Shadow:
        """The value alone: readouts have been scored, objectives are no longer any."""
        if shadow._replace(label=None, order=None).plain:
            return shadow._replace(order=None)
        return self._tracer.ledger.value(shadow)

    def _loaded(self, shadow: Shadow) -> Shadow:
        algebra, mark = self._tracer.algebra, self._tracer.ledger.watermark
        support = algebra.stamp(shadow.support)
        base = shadow.possible or support
        possible: Cells | None = algebra.join(base, mark) if base is not None else mark
        return shadow._replace(support=support, possible=possible)


def _holds(shadow: Shadow, last: int) -> bool:
    """May the last of all labels have flowed, as it may from unwritten memory, and did not otherwise?"""
    did, may = (
        -1 if c is None else int(c.data[..., 0].max()) >> 1 for c in (shadow.support, shadow.possible)
    )
    return did < last <= may


def _contents(storage: torch.UntypedStorage) -> bytes | None:
    """A name for the bytes of a storage; None where equal bytes would be no evidence."""
    if storage.nbytes() < EVIDENCE or storage.device.type == "meta":
        return None
    raw = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).cpu()
    if bool((raw == raw[0]).all()):
        return None
    contents: Any = as_numpy(raw)  # is a buffer, which not all of numpy's stubs say
    return hashlib.blake2b(contents, digest_size=16).digest()
