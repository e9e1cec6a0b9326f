"""Shadow memory: what each storage's elements may depend on.

A shadow belongs to a storage plus a geometry, never to a Python tensor, so views, ``detach``, ``.data``
and in-place writes through any of them need no rule: they read and write the same memory.
"""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from causaltrace._compat import data_ptr, is_fake, storage_of
from causaltrace.geometry import Geometry, assign, by_bytes, covers, geometry, natural, nested, view_of
from causaltrace.lattice.cells import Algebra, Cells
from causaltrace.order import Order, seen_through

#: Elements that a partial write may expand a shadow to; larger ones fall back to one joined value.
EXPAND_LIMIT = 1 << 26


class Shadow(NamedTuple):
    """The planes of a tensor. ``support``: labels that suffice for the value. ``possible``: support and
    what may also have flowed (None: the same as support). ``label``: the stream position that an element
    is a verbatim copy of. ``target``: the readout that an element is (see ``ledger.Readouts``). ``post``:
    labels that entered after the readout. ``onehot``: the label position whose one-hot row this is.
    ``match``: the label position that an element compares with a class (see ``readout.matched``). ``mass``:
    what all classes together are charged (see ``mass``). ``pending``: readouts that an objective sums.
    ``objective``: readouts that require grad. ``order``: the sorted order that the elements are in.
    ``tally``: a sum of scores, to which others are added. ``values``: of readouts that leave."""

    support: Cells | None = None
    possible: Cells | None = None
    label: Cells | None = None
    target: Cells | None = None
    post: Cells | None = None
    onehot: Cells | None = None
    match: Cells | None = None
    mass: Cells | None = None
    pending: tuple[object, ...] = ()
    objective: bool = False
    order: Order | None = None
    tally: bool = False
    values: Tensor | None = None

    def planes(self, fn: Callable[[Cells], Cells | None]) -> Shadow | None:
        """``fn`` on every plane, in no order; None when nothing is left."""
        if self.plain:
            support, possible = self[:2]
            out = Shadow(None if support is None else fn(support), None if possible is None else fn(possible))
        else:
            planes = [None if c is None else fn(c) for c in self[:8]]
            out = Shadow(*planes)._replace(  # type: ignore[arg-type]
                pending=self.pending, objective=self.objective, tally=self.tally
            )
        return out if out else None

    @property
    def plain(self) -> bool:
        """Nothing but supports: no labels, readouts, objectives or order."""
        return self[2:] == _PLAIN

    def __bool__(self) -> bool:
        return self != _NOTHING


_PLAIN: tuple[object, ...] = (None, None, None, None, None, None, (), False, None, False, None)
#: All of a shadow but its support, where there is nothing else.
UNHEDGED = (None, *_PLAIN)
_NOTHING = (None, None, *_PLAIN)


class Entry:
    """The shadow of one storage: its base geometry, and the views of it that were asked for. ``nbytes``: the
    size of memory that others may hold, too (numpy arrays, other storages); -1: nobody else does. ``plain``:
    they may read it unseen. ``rows``: the distributions that it holds, until something else is written (see
    ``mass.Rows``). ``dtype``: of what was written last."""

    __slots__ = ("base", "blank", "dtype", "nbytes", "ndim", "plain", "ref", "rows", "shadow", "views")

    def __init__(self, ref: weakref.ref[Any], base: Geometry, shadow: Shadow, nbytes: int = -1) -> None:
        self.ref, self.base, self.nbytes = ref, base, nbytes
        self.rows: object = None
        self.dtype: torch.dtype | None = None
        self.blank = False  #: is there memory in it that was not seen written?
        self.plain = False
        self.set(shadow)

    def set(self, shadow: Shadow) -> None:
        self.shadow = shadow
        self.views: dict[Geometry, Shadow | None] = {}
        cells = shadow.support
        #: dims of the one value that all elements share; -1 where elements differ
        self.ndim = len(cells.dims) if cells and cells.uniform and shadow[1:] == UNHEDGED else -1


def _settled(shadow: Shadow | None) -> bool:
    """Is nothing possible but what is in the support? Looked at on the host only."""
    if shadow is None or shadow.possible is None:
        return True
    possible = shadow.possible.data
    if possible.device.type != "cpu" or not shadow.plain:
        return False
    if shadow.support is None:
        return bool((possible < 0).all())
    return torch.equal(*torch.broadcast_tensors(possible, shadow.support.data))


def _lent(t: Tensor, storage: torch.UntypedStorage) -> bool:
    """May others have its memory? That of a device is all alike, and told of where it is handed out."""
    return not storage.resizable() or storage.is_shared() and not t.is_cuda


class Memory:
    """Shadows by storage. Entries die with their storage. The tracer's lock guards against other threads.

    Memory that numpy arrays share is known by its addresses, too: storages that torch makes over it
    (``from_numpy``) find the entry that is there and read it ``shifted`` by some bytes."""

    def __init__(self, algebra: Algebra) -> None:
        self._algebra = algebra
        self.entries: dict[int, Entry] = {}
        self.starts: list[int] = []  #: addresses of shared memory, ascending
        self._shared: list[tuple[int, int]] = []  #: where each ends, and the key of its entry
        self._shifted: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        #: Memory that was handed out; what others know, who may have written it there; and who is told of
        #: what operations write there.
        self._opened: dict[int, Entry] = {}
        self.mark: Callable[[], Cells | None] = lambda: None
        self.leaks: Callable[[Shadow], None] = lambda _: None
        #: Called before labels come to memory that others may read unseen.
        self.exposed: Callable[[torch.UntypedStorage], None] | None = None
        self.value: Callable[[Shadow], Shadow] = lambda shadow: shadow  #: without labels and readouts

    def open(self, owner: Any, start: int, nbytes: int) -> None:
        """Others can read and write the memory of ``owner`` (a storage or an array) from now on."""
        entry = self.share(owner, start, nbytes)
        self._opened[id(entry)] = entry
        if entry.blank:  # it is theirs to fill
            entry.blank = False
            entry.set(entry.shadow._replace(possible=None))

    def _hedged(self, shadow: Shadow, mark: Cells, ndim: int) -> Shadow:
        there = self._algebra.reshaped(mark, (1,) * ndim)
        return shadow._replace(possible=self._algebra.join(shadow.possible or shadow.support, there))

    def unwritten(self, t: Tensor, cells: Cells) -> None:
        """The elements of ``t`` are whatever was in memory before, of which ``cells`` are the labels."""
        self.write(t, Shadow(possible=self._algebra.reshaped(cells, (1,) * t.ndim)))
        entry = self.entries.get(id(storage_of(t)))
        if entry is not None:
            entry.blank = True

    def filled(self, bound: dict[str, Any]) -> bool:
        """Will a write at these indices reach all of memory that nobody has written? What it held is lost."""
        t, indices = bound["self"], bound["indices"]
        entry = self.entries.get(id(storage_of(t)))
        if entry is None or not entry.blank or bound.get("accumulate") or geometry(t) != entry.base:
            return False
        left = torch.ones(t.shape, dtype=torch.bool, device=t.device)
        left[tuple(slice(None) if i is None else i for i in indices)] = False
        if bool(left.any()):
            return False
        self.write(t, None)
        return True

    def copy(
        self, source: torch.UntypedStorage, target: torch.UntypedStorage, fn: Callable[[Shadow], Shadow]
    ) -> None:
        """``target`` holds the bytes of ``source``. ``fn``: on its shadow."""
        entry = self.entries.get(id(source))
        if entry is not None:
            self._insert(id(target), target, entry.base, fn(entry.shadow), entry.dtype)

    def read(self, t: Tensor) -> Shadow | None:
        entry = self.entry(t)
        return None if entry is None else self.seen(entry, t)

    def entry(self, t: Tensor) -> Entry | None:
        storage = storage_of(t)
        entry = self.entries.get(id(storage))
        return self._adopted(storage) if entry is None and self.starts else entry

    def known(self, t: Tensor) -> bool:
        """Is ``t`` over memory that is followed wherever it goes?"""
        entry = self.entry(t) if self.starts else None
        return entry is not None and entry.nbytes >= 0

    def place(self, t: Tensor) -> weakref.ref[Any]:
        """What holds the memory of ``t``: the same for everything that lies there."""
        entry = self.entry(t)
        return weakref.ref(storage_of(t)) if entry is None else entry.ref

    def share(self, owner: Any, start: int, nbytes: int) -> Entry:
        """``owner`` (a storage or an array) holds memory that others may hold, too."""
        key = id(owner)
        entry = self.entries.get(key)
        if entry is not None and entry.nbytes >= 0:
            return entry
        if (found := self.at(start)) is not None:
            return found[0]
        if entry is None:
            entry = Entry(self._watched(owner, key), Geometry(0, (nbytes,), (1,), 1), Shadow())
            self.entries[key] = entry
        entry.nbytes = nbytes
        place = bisect.bisect_right(self.starts, start)
        self.starts.insert(place, start)
        self._shared.insert(place, (start + nbytes, key))
        return entry

    def share_with(self, t: Tensor, owner: Any, start: int, nbytes: int) -> Entry:
        """``owner`` holds the memory that ``t`` was just made over."""
        key = id(storage_of(t))
        own = self.entries.get(key)
        if own is None or own.nbytes >= 0:
            return self.share(owner, start, nbytes)
        shadow = self.read(t)
        del self.entries[key]
        entry = self.share(owner, start, nbytes)
        self.write(t, shadow)
        return entry

    def at(self, address: int) -> tuple[Entry, int] | None:
        """The entry of shared memory, and the address that it starts at."""
        place = bisect.bisect_right(self.starts, address) - 1
        if place < 0 or address >= self._shared[place][0]:
            return None
        return self.entries[self._shared[place][1]], self.starts[place]

    def _adopted(self, storage: torch.UntypedStorage) -> Entry | None:
        """The entry of the memory that a storage was made over, by something that told nobody."""
        if storage.device.type == "meta":
            return None
        address = data_ptr(storage)
        found = self.at(address)
        if found is None:
            return None
        entry, start = found
        key = id(storage)

        def gone(_: object) -> None:
            self._shifted.pop(key, None)
            self.entries.pop(key, None)

        self._shifted[key] = (address - start, weakref.ref(storage, gone))
        self.entries[key] = entry
        return entry

    def _watched(self, owner: Any, key: int) -> weakref.ref[Any]:
        """A reference that forgets the owner's entry with it."""
        entries = self.entries

        def gone(_: object) -> None:
            entry = entries.pop(key, None)
            if entry is not None and entry.nbytes >= 0:
                self._opened.pop(id(entry), None)
                for place, (_, whose) in enumerate(self._shared):
                    if whose == key:
                        del self.starts[place], self._shared[place]
                        break

        return weakref.ref(owner, gone)

    def _geometry(self, t: Tensor) -> Geometry | None:
        """Where ``t`` lies in the memory of its entry; None: between two elements."""
        view = geometry(t)
        if self._shifted and (shifted := self._shifted.get(id(storage_of(t)))) is not None:
            if shifted[0] % view.itemsize:
                return None
            return view._replace(offset=view.offset + shifted[0] // view.itemsize)
        return view

    def seen(self, entry: Entry, t: Tensor) -> Shadow | None:
        """What ``t`` sees of the shadow of its storage, and of what others may have written there."""
        shadow = self._seen(entry, t)
        if self._opened and id(entry) in self._opened and (mark := self.mark()) is not None:
            return self._hedged(shadow or Shadow(), mark, t.ndim)
        return shadow

    def _seen(self, entry: Entry, t: Tensor) -> Shadow | None:
        if entry.ndim == t.ndim:  # one value for all elements is one value for any view with as many dims
            return entry.shadow
        view = self._geometry(t)
        if view is None:
            value = self.value(entry.shadow)
            return Shadow(possible=self._algebra.everything(value.possible or value.support, t.ndim)) or None
        if t.is_nested:
            bare = entry.shadow._replace(mass=None)
            return bare.planes(lambda cells: self._algebra.everything(cells, t.ndim))
        if view == entry.base:
            return entry.shadow
        if view not in entry.views:
            seen = entry.shadow.planes(lambda cells: self._view(cells, entry.base, view))
            order = entry.shadow.order
            if order is not None and seen is not None:
                seen = seen._replace(order=self._ordered(order, entry.base, view))
            entry.views[view] = seen
        return entry.views[view]

    def _ordered(self, order: Order, base: Geometry, view: Geometry) -> Order | None:
        """The order of a view."""
        seen = seen_through(order, base, view)
        return None if seen is None else seen.planes(lambda cells: self._view(cells, base, view))

    def arrange(self, t: Tensor, order: Order) -> None:
        """The elements of ``t`` are found to be in this order, until they are written to."""
        entry, view = self.entry(t), self._geometry(t)
        if entry is not None and view == entry.base:
            entry.set(entry.shadow._replace(order=order))
        elif entry is not None and view in entry.views:
            entry.views[view] = (entry.views[view] or Shadow())._replace(order=order)

    def _view(self, cells: Cells, base: Geometry, view: Geometry) -> Cells | None:
        if cells.uniform:
            return self._algebra.reshaped(cells, (1,) * len(view.sizes))
        key = (base, view)
        out = cells.moved.get(key)
        if out is None:
            try:
                out = self._algebra.viewed(cells, lambda data: view_of(data, base, view))
            except IndexError:  # the storage grew: what is new may have been written by anything seen before
                out = self._algebra.everything(cells, len(view.sizes))
                assert out is not None
            data = out.data
            # slices of what is the same all along are one value
            if storage_of(data) is storage_of(cells.data):
                place = (data.storage_offset(), data.shape, data.stride())
                out = cells.moved.setdefault(place, out)
            cells.moved[key] = out
        return out

    def declare(self, t: Tensor, shadow: Shadow) -> None:
        """The elements of ``t`` have had ``shadow`` since before anybody looked. Who has had its memory as
        long, like other processes, learns nothing now."""
        handed_out, leaks, self.leaks = set(self._opened), self.leaks, lambda _: None
        try:
            self.write(t, shadow)
        finally:
            self.leaks = leaks
        if id(self.entry(t)) in handed_out:
            leaks(shadow)

    def write(self, t: Tensor, shadow: Shadow | None) -> None:
        """The elements of ``t`` now have ``shadow`` (None: they depend on no label)."""
        storage = storage_of(t)
        key = id(storage)
        entry = self.entry(t)
        if t.numel() == 0 or entry is None and shadow is None:
            return
        if (
            shadow is not None
            and self.exposed is not None
            and (_lent(t, storage) if entry is None else entry.plain)
            and shadow._replace(possible=None)  # what is only possible has left before
        ):
            self.exposed(storage)
            entry = self.entry(t)
        if shadow is not None and t.is_cuda and not is_fake(t):
            shadow = self._beside(shadow, t.device)
        view = self._geometry(t)
        if view is None:
            assert entry is not None
            self.blur(entry, shadow)
            return
        if shadow is not None and entry is not None and id(entry) in self._opened:
            self.leaks(shadow)
        if shadow is not None:
            ndim = len(view.sizes)
            if t.is_nested:
                shadow = shadow._replace(mass=None).planes(lambda cells: self._algebra.everything(cells, 1))
            assert shadow is not None
            if shadow[0] is None or len(shadow[0].dims) != ndim or shadow[1:] != UNHEDGED:
                order = shadow.order
                shadow = shadow.planes(lambda cells: self._algebra.aligned(cells, ndim))
                if order is not None and shadow is not None:
                    order = order.planes(lambda cells: self._algebra.aligned(cells, ndim))
                    shadow = shadow._replace(order=order)
        size = storage.nbytes() if entry is None or entry.nbytes < 0 else entry.nbytes
        if entry is not None and entry.base == view or self._whole(t, size, view):
            if entry is not None:
                entry.blank = False
            self._insert(key, storage, view, shadow, t.dtype)
            return
        if entry is not None and entry.shadow and entry.base.itemsize != view.itemsize:
            view, shadow = self._finer(entry, view, shadow)
        base = entry.base if entry is not None and entry.shadow else natural(view, size)
        merged = self._merge(entry, base, view, shadow)
        if entry is not None and entry.blank and _settled(merged):  # the last of it has been written
            entry.blank = False
            merged = None if merged is None or merged.support is None else merged._replace(possible=None)
        self._insert(key, storage, base, merged, t.dtype)

    def nothing(self, t: Tensor, shadow: Shadow) -> None:
        """``t`` has no elements, but an order."""
        self._insert(id(storage_of(t)), storage_of(t), geometry(t), shadow, t.dtype)

    def _finer(self, entry: Entry, view: Geometry, shadow: Shadow | None) -> tuple[Geometry, Shadow | None]:
        """Elements of another size are written: all is known byte by byte from now on, but for scores."""
        if entry.shadow.target or shadow and shadow.target:
            return view, shadow

        def split(s: Shadow) -> Shadow | None:
            return self.value(s).planes(lambda cells: self._algebra.unsqueeze(cells, len(cells.dims)))

        if entry.base.itemsize > 1:
            entry.base = by_bytes(entry.base)
            entry.set(split(entry.shadow) or Shadow())
        return by_bytes(view), shadow and split(shadow)

    def _beside(self, shadow: Shadow, device: torch.device) -> Shadow:
        """On the device of its tensor: what was copied from the host is still there."""
        if all(c is None or c.data.device == device for c in shadow[:8]):
            return shadow
        moved = shadow.planes(lambda cells: self._algebra.move(cells, lambda data: data.to(device)))
        return moved or shadow

    def blur(self, entry: Entry, shadow: Shadow | None) -> None:
        """A write to some place in memory: all of it may hold the new value, or still the old one."""
        both = self.value(shadow or Shadow()), self.value(entry.shadow)
        everything = self._algebra.everything
        possible = self._algebra.join(*[everything(s.possible or s.support, 1) for s in both])
        entry.base = Geometry(0, (entry.nbytes,), (1,), 1)
        entry.set(Shadow(possible=possible))

    def _whole(self, t: Tensor, size: int, view: Geometry) -> bool:
        """Does ``t`` hold every byte of a storage of ``size`` bytes?"""
        if view.offset == 0 and t.is_contiguous() and t.numel() * view.itemsize == size:
            return True
        return covers(view, size)

    def _insert(self, key: int, owner: Any, base: Geometry, shadow: Shadow | None, dtype: Any) -> None:
        entry = self.entries.get(key)
        if shadow is None and (entry is None or entry.nbytes < 0):
            self.entries.pop(key, None)
            return
        if entry is None:
            entry = self.entries[key] = Entry(self._watched(owner, key), base, Shadow())
        entry.base, entry.rows, entry.dtype = base, None, dtype
        entry.set(shadow or Shadow())

    def _merge(
        self, entry: Entry | None, base: Geometry, view: Geometry, new: Shadow | None
    ) -> Shadow | None:
        """The base's shadow after a write to a part of it."""
        old = entry.shadow if entry is not None else Shadow()
        new = new if new is not None else Shadow()
        if new.possible is not None or old.possible is not None:  # None stands for "as support": spell it out
            new = new._replace(possible=new.possible or new.support)
            old = old._replace(possible=old.possible or old.support)
        elements = 1
        for n in base.sizes:
            elements *= n
        exact = view.itemsize == base.itemsize and nested(base) and elements <= EXPAND_LIMIT
        planes: list[Cells | None] = []
        for before, after in zip(old[:8], new[:8], strict=True):
            planes.append(
                self._overwrite(before, after, base, view) if exact else self._weak(before, after, base)
            )
        pending = tuple(dict.fromkeys(old.pending + new.pending))
        out = Shadow(*planes)._replace(pending=pending)  # type: ignore[arg-type]
        if not exact:  # nobody knows which of them an element is
            out = out._replace(mass=None)
        return out if out else None

    def _overwrite(
        self, old: Cells | None, new: Cells | None, base: Geometry, view: Geometry
    ) -> Cells | None:
        if old is None and new is None:
            return None
        some = old or new
        assert some is not None
        width, device, dtype = some.data.shape[-1], some.data.device, some.data.dtype
        empty = torch.full((1,) * len(base.sizes) + (width,), -1, device=device, dtype=dtype)
        blank = torch.full((1,) * len(view.sizes) + (width,), -1, device=device, dtype=dtype)
        parents = [c for c in (old, new) if c is not None]

        def fn(*data: Tensor) -> Tensor:
            before = data[0] if old is not None else empty
            after = data[-1] if new is not None else blank
            return assign(before, base, view, after)

        return self._algebra.make(fn, *parents, share=old is not None)

    def _weak(self, old: Cells | None, new: Cells | None, base: Geometry) -> Cells | None:
        """A write that cannot be placed: everything may hold the new value or still the old one."""
        lattice = self._algebra
        return lattice.join(old, lattice.everything(new, len(base.sizes)))

    def alive(self) -> Iterator[tuple[torch.UntypedStorage, Entry]]:
        for entry in {id(e): e for e in self.entries.values()}.values():
            if (storage := entry.ref()) is not None:
                yield storage, entry
