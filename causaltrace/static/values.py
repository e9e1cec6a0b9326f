"""What is known of values without data: constants are known, and so are zeros and masks made with them.

A float whose value is not known is NaN, which no comparison takes for a zero or a mask value. Integers
have no such number: a tensor of them is known as a whole or not at all. Known values belong to
storages, as shadows do, and are kept as small as they were made: one number for a whole dim along which
nothing varies. Bools are kept as 0, 1 and ``UNKNOWN``, and shown as bools only where all of them are known.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from causaltrace._compat import storage_of
from causaltrace.geometry import Geometry, assign, covers, geometry, natural, view_of
from causaltrace.shadow import Memory, Shadow

#: Elements of a tensor whose values are kept (and folded).
LIMIT = 1 << 25


#: Of a bool that is not known.
UNKNOWN = 2


class Seen(Memory):
    """Shadow memory that also knows stand-ins."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.originals: dict[int, Tensor] = {}

    def read(self, t: Tensor) -> Shadow | None:
        return super().read(self.originals.get(id(t), t))


class Known(NamedTuple):
    """``data [*sizes of base, each full or 1]``; ``whole``: no element of it is unknown."""

    base: Geometry
    data: Tensor
    whole: bool
    ref: weakref.ref[torch.UntypedStorage]


def narrow(t: Tensor) -> Tensor:
    """One element along dims that are expanded."""
    for d in range(t.ndim):
        if t.shape[d] > 1 and t.stride(d) == 0:
            t = t.narrow(d, 0, 1)
    return t


def unknown(t: Tensor) -> Tensor:
    """A tensor like the float ``t`` of which nothing is known."""
    return torch.full((), torch.nan, dtype=t.dtype).expand(t.shape)


def speaks(t: Tensor) -> bool:
    """Can a tensor of this type be unknown element by element?"""
    return t.dtype.is_floating_point or t.dtype.is_complex


def _kept_as(t: Tensor) -> torch.dtype:
    return torch.uint8 if t.dtype == torch.bool else t.dtype


class Values:
    """Known values by storage."""

    def __init__(self) -> None:
        self._entries: dict[int, Known] = {}

    def read(self, t: Tensor) -> tuple[Tensor | None, bool]:
        """What is known of ``t`` (None: nothing), and whether that is all of it; bools of which it is not are
        numbers."""
        data, whole = self._read(t)
        return (data.bool() if whole and data is not None and t.dtype == torch.bool else data), whole

    def _read(self, t: Tensor) -> tuple[Tensor | None, bool]:
        entry = self._entries.get(id(storage_of(t)))
        if entry is None or entry.data.dtype != _kept_as(t) or not t.numel():
            return None, False
        view = geometry(t)
        if view == entry.base:
            return entry.data.expand(t.shape), entry.whole
        try:
            data = view_of(entry.data.unsqueeze(-1), entry.base, view)[..., 0]
        except IndexError:
            return None, False
        return data.expand(t.shape), entry.whole

    def write(self, t: Tensor, data: Tensor | None, whole: bool) -> None:
        """The elements of ``t`` now have the values ``data``, which broadcasts to it."""
        storage = storage_of(t)
        key, view = id(storage), geometry(t)
        old = self._entries.get(key)
        if data is not None and data.numel() > LIMIT or not t.numel():
            data = None
        everything = covers(view, storage.nbytes()) or old is not None and old.base == view
        if data is not None and t.dtype == torch.bool:
            data = data.to(torch.uint8)
        if data is not None and whole and speaks(t) and bool(data.isnan().any()):
            whole = False
        if data is None and (everything or old is None):
            self._entries.pop(key, None)
            return
        if everything:
            assert data is not None
            self._keep(key, storage, view, data.reshape(_padded(data.shape, t.ndim)), whole)
            return
        apart = speaks(t) or t.dtype == torch.bool
        if not apart and (data is None or old is None) or old is not None and old.data.dtype != _kept_as(t):
            self._entries.pop(key, None)
            return
        base = old.base if old is not None else natural(view, storage.nbytes())
        fill = torch.nan if speaks(t) else UNKNOWN
        blank = torch.full((1,) * len(base.sizes), fill, dtype=_kept_as(t))
        before = old.data if old is not None else blank
        after = (
            torch.full((), fill, dtype=_kept_as(t)).expand(t.shape)
            if data is None
            else data.reshape(_padded(data.shape, t.ndim))
        )
        if torch.Size(base.sizes).numel() > LIMIT:
            self._entries.pop(key, None)
            return
        made = assign(before.unsqueeze(-1), base, view, narrow(after).unsqueeze(-1))[..., 0]
        self._keep(key, storage, base, made, old is not None and old.whole and whole and data is not None)

    def _keep(
        self, key: int, storage: torch.UntypedStorage, base: Geometry, data: Tensor, whole: bool
    ) -> None:
        ref = weakref.ref(storage, lambda _: self._entries.pop(key, None))
        self._entries[key] = Known(base, narrow(data), whole, ref)


def _padded(shape: Sequence[int], ndim: int) -> tuple[int, ...]:
    return (1,) * (ndim - len(shape)) + tuple(shape)
