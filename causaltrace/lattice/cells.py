"""Supports with a memory of how they came about.

``Cells`` is an immutable lattice value. Every operation that makes a new one remembers its parents and
the pure function used, so a finding can be walked back, element by element, to the label it came from.
``Algebra`` makes them: it shares results (join of a value with itself is itself), and it bounds the
history so that memory stays flat however long the eval runs. What stays for good is the number of the site
(``node``), so that the folded graph of a whole run can be recorded while its history is forgotten.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from causaltrace.lattice.base import Lattice
from causaltrace.site import Site

MEMO_ENTRIES = 256
HISTORY_BYTES = 256 << 20
HISTORY_ENTRIES = 20_000
#: Forward and backward passes that a path can be followed through: flat memory, however long the eval.
HISTORY_PASSES = 96
#: Numbers that are looked through for dims that need not be kept apart.
COMPRESS_LIMIT = 1 << 16


class Origin:
    """``data = fn(*[p.data for p in parents])``, at ``site`` (None: a view, which is at no line of its own)
    after ``step`` optimizer steps had begun."""

    __slots__ = ("fn", "parents", "site", "step")

    def __init__(
        self, fn: Callable[..., Tensor], parents: tuple[Cells, ...], site: Site | None, step: int = 0
    ) -> None:
        self.fn, self.parents, self.site, self.step = fn, parents, site, step


#: The node of the labels themselves.
LABELS = 0


class Cells:
    """One lattice value: ``data [*dims, width]``, each dim full or 1. Never modified."""

    __slots__ = (
        "__weakref__",
        "_moved",
        "bounds",
        "data",
        "dims",
        "node",
        "origin",
        "passed",
        "root",
        "route",
        "uniform",
        "written",
    )

    def __init__(self, data: Tensor, origin: Origin | None = None, node: int = -1) -> None:
        self.data = data
        self.origin = origin
        self.node = node  #: the site that made it, as the recorder numbers sites; -1: unknown
        self.route: object = None  #: how its latest label came to it, for when ``origin`` is forgotten
        self.written = False  #: was it left in memory by an optimizer step?
        self.root: Cells | None = None  #: the value that this one repeats at another site
        self.dims: tuple[int, ...] = tuple(data.shape[:-1])
        self.uniform = data.numel() == data.shape[-1]  #: one value for the whole tensor
        parents = () if origin is None else origin.parents
        #: has all of it been through a backward pass?
        self.passed: bool = bool(parents) and all(p.passed for p in parents)
        self.bounds: tuple[tuple[int, ...], tuple[int, ...]] | None = None  #: below, above every element
        self._moved: weakref.WeakValueDictionary[object, Cells] | None = None

    @property
    def moved(self) -> weakref.WeakValueDictionary[object, Cells]:
        """Views of this value that are in use."""
        if self._moved is None:
            self._moved = weakref.WeakValueDictionary()
        return self._moved


def _same(data: Tensor) -> Tensor:
    return data


def _unrecorded(site: Site, made: Cells, parents: tuple[Cells, ...]) -> int:
    return -1


class Algebra:
    """Operations on ``Cells | None``, where None is bottom. ``record`` is told of every value that is made,
    and gives the number of its site; ``forgetting`` of every one in use whose history ends."""

    def __init__(
        self,
        site: Callable[[], Site],
        lattice: Lattice,
        record: Callable[[Site, Cells, tuple[Cells, ...]], int] = _unrecorded,
        forgetting: Callable[[Cells], None] = lambda _: None,
    ) -> None:
        self.lattice = lattice
        self.site = site
        self._record = record
        self._forgetting = forgetting
        self._memo: OrderedDict[tuple[object, ...], tuple[Cells | None, tuple[Cells, ...]]] = OrderedDict()
        self._history: deque[tuple[weakref.ref[Cells], int, int]] = deque()
        self._passes = 0
        self.steps = 0  #: optimizer steps that have begun
        self.history_bytes = 0  #: what the remembered supports hold at most
        self._interned: weakref.WeakValueDictionary[object, Cells] = weakref.WeakValueDictionary()

    # -- making ---------------------------------------------------------------------------------------

    def make(
        self,
        fn: Callable[..., Tensor],
        *parents: Cells,
        held: int = 0,
        share: bool = True,
        data: Tensor | None = None,
        site: Site | None = None,
    ) -> Cells:
        """``fn`` over the parents' data (``data``, if known), at ``site`` (None: where we are). ``held``:
        bytes that ``fn`` keeps alive."""
        if data is None:
            data = fn(*[p.data for p in parents])
        if share and data.device.type == "cpu":  # comparing is free where no device must be waited for
            for parent in parents:
                if parent.data.shape == data.shape and torch.equal(parent.data, data):
                    return parent
        if (
            data.shape[-1] == 1 or data.dtype == torch.int64
        ):  # labels and readouts are moved, and no support is made
            cells = Cells(data, Origin(fn, parents, None), parents[0].node)
            self._remember(cells, data.numel() * data.element_size() + held)
            return cells
        site = site or self.site()
        cells = Cells(data, Origin(fn, parents, site, self.steps))
        if cells.uniform and data.device.type == "cpu":
            bounds = self.bounds(cells)
            cells.node = self._record(site, cells, parents)
            key = (bounds, data.ndim, cells.node, *[p.node for p in parents])
            known = self._interned.get(key)
            if known is not None and known.origin is not None:
                return known
            self._interned[key] = cells
        else:
            cells.node = self._record(site, cells, parents)
        self._remember(cells, data.numel() * data.element_size() + held)
        return cells

    def _remember(self, cells: Cells, size: int) -> None:
        history = self._history
        history.append((weakref.ref(cells), size, self._passes))
        self.history_bytes += size
        oldest = self._passes - HISTORY_PASSES
        while history and (
            self.history_bytes > HISTORY_BYTES or len(history) > HISTORY_ENTRIES or history[0][2] < oldest
        ):
            old, size, _ = history.popleft()
            self.history_bytes -= size
            if (value := old()) is not None:
                self._forgetting(value)
                value.origin = None

    def _cached(
        self, key: tuple[object, ...], made: Callable[[], Cells | None], *parents: Cells
    ) -> Cells | None:
        """Results by identity of the parents, which the entry keeps alive so that no id is reused."""
        hit = self._memo.get(key)
        if hit is not None:
            return hit[0]
        result = made()
        self._memo[key] = (result, parents)
        if len(self._memo) > MEMO_ENTRIES:
            self._memo.popitem(last=False)
        return result

    def forget(self) -> None:
        """A new pass: share no results across this point, so that a path names the lines of its own pass."""
        self._memo.clear()
        self._passes += 1

    # -- lattice operations ---------------------------------------------------------------------------

    def join(self, *xs: Cells | None) -> Cells | None:
        """Least upper bound with broadcasting; dims are aligned from the right."""
        out: Cells | None = None
        for x in xs:
            if x is None or x is out:
                continue
            out = x if out is None else self._join2(out, x)
        return out

    def _join2(self, a: Cells, b: Cells) -> Cells:
        ndim = max(len(a.dims), len(b.dims))
        if (a.root or a) is (b.root or b):
            return self.aligned(a, ndim)
        if self.within(b, a):
            return self.aligned(a, ndim)
        if self.within(a, b):
            return self.aligned(b, ndim)
        if a.data.device != b.data.device:
            b = self.to(b, a.data.device) if b.uniform else b
            a = self.to(a, b.data.device)
        result = self._cached(("join", id(a), id(b)), lambda: self.make(self.lattice.join, a, b), a, b)
        assert result is not None
        return result

    def bounds(self, x: Cells) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A value below, and one above, every element."""
        if x.bounds is None:
            x.bounds = self.lattice.bounds(x.data)
        return x.bounds

    def within(self, x: Cells, y: Cells | None) -> bool:
        """Is every element of ``x`` contained in every element of ``y``? Looked at on the host only."""
        if y is None or x.data.device.type != "cpu" or y.data.device.type != "cpu":
            return False
        if x.data.dtype == torch.int64:  # no supports
            return False
        return self.lattice.below(self.bounds(x)[1], self.bounds(y)[0])

    def to(self, x: Cells, device: torch.device) -> Cells:
        return self.move(x, lambda data: data.to(device))

    def reduce(self, x: Cells | None, dims: Sequence[int], keepdim: bool = True) -> Cells | None:
        """Join over ``dims`` (non-negative)."""
        if x is None or not x.data.numel():
            return None
        full = tuple(d for d in dims if x.data.shape[d] != 1)
        out = x
        if full:
            lattice = self.lattice
            made = self._cached(
                ("reduce", id(x), full),
                lambda: self.compressed(lambda data: lattice.reduce(data, full), x),
                x,
            )
            assert made is not None
            out = made
        return out if keepdim or not dims else self.squeeze(out, dims)

    def compressed(self, fn: Callable[[Tensor], Tensor], x: Cells, held: int = 0) -> Cells:
        """``fn`` over the data, without the dims along which the result turns out to be the same; looked at
        on the host only."""
        data = fn(x.data)
        same: list[int] = []
        if data.device.type == "cpu" and data.shape[-1] < data.numel() <= COMPRESS_LIMIT:
            dims = [d for d in range(data.ndim - 1) if data.shape[d] != 1]
            first = data[(slice(0, 1),) * (data.ndim - 1)]
            if bool((data == first).all()):
                same = dims
            elif len(dims) > 1:
                same = [d for d in dims if bool((data == data.narrow(d, 0, 1)).all())]
        if not same:
            return self.make(fn, x, held=held, data=data)
        cut = tuple(slice(0, 1) if d in same else slice(None) for d in range(data.ndim))
        return self.make(lambda data: fn(data)[cut], x, held=held, data=data[cut])

    def everything(self, x: Cells | None, ndim: int = 0) -> Cells | None:
        """Join over all elements, as one value for a tensor of ``ndim`` dims."""
        if x is None:
            return None
        out = self.reduce(x, range(x.data.ndim - 1))
        return None if out is None else self.reshaped(out, (1,) * ndim)

    def running(self, x: Cells | None, dim: int, reverse: bool = False) -> Cells | None:
        if x is None or x.data.shape[dim] == 1:
            return x
        lattice = self.lattice

        def made() -> Cells:
            out = self.make(lambda data: lattice.running(data, dim, reverse), x)
            self._memo[("running", id(out), dim, reverse)] = (out, (out,))  # idempotent
            return out

        return self._cached(("running", id(x), dim, reverse), made, x)

    def keep(self, x: Cells | None, mask: Tensor) -> Cells | None:
        """``x`` where ``mask`` is true, else bottom. On the host an all-true mask is ``x`` itself."""
        if x is None:
            return None
        if mask.device.type == "cpu":
            if bool(mask.all()):
                return x
            if not bool(mask.any()):
                return None
        lattice = self.lattice
        return self.make(lambda data: lattice.keep(data, mask), x, held=mask.numel())

    def contract(self, mask: Tensor, x: Cells | None) -> Cells | None:
        if x is None:
            return None
        if x.data.shape[-3] == 1:  # the same for every key: bottom only where no key is kept
            return self.keep(x, mask.any(-1, keepdim=True))
        lattice = self.lattice
        return self.compressed(lambda data: lattice.contract(mask, data), x, held=mask.numel())

    def indirect(self, x: Cells | None) -> Cells | None:
        """``x`` after a backward pass."""
        if x is None or x.passed:
            return x
        lattice = self.lattice

        def made() -> Cells:
            out = self.make(lattice.indirect, x)
            out.passed = True
            return out

        return self._cached(("indirect", id(x)), made, x)

    def stamp(self, x: Cells | None) -> Cells | None:
        """``x`` with the current site as one more step of its history."""
        if x is None:
            return None

        def made() -> Cells:
            out = self.make(_same, x, share=False)
            out.root = x.root or x
            return out

        return self._cached(("stamp", id(x), self.site()), made, x)

    # -- movement -------------------------------------------------------------------------------------

    def move(self, x: Cells, fn: Callable[[Tensor], Tensor], held: int = 0) -> Cells:
        """``fn`` over the data, for movements of elements."""
        return self.make(fn, x, held=held, share=False)

    def viewed(self, x: Cells, fn: Callable[[Tensor], Tensor]) -> Cells:
        """``fn`` over the data, for a view: no line of the program moved anything, so there is no site."""
        out = Cells(fn(x.data), Origin(fn, (x,), None), x.node)
        out.written = x.written
        return out

    def reshaped(self, x: Cells, dims: tuple[int, ...]) -> Cells:
        """A view of the data with other dims of size 1."""
        if x.dims == dims:
            return x
        key = ("reshaped", dims)
        out = x.moved.get(key)
        if out is None:
            shape = (*dims, x.data.shape[-1])
            origin = x.origin if x.uniform else Origin(lambda data: data.reshape(shape), (x,), None)
            out = Cells(x.data.reshape(shape), origin, x.node)
            out.passed, out.written = x.passed, x.written
            out.root = None if x.root is None else self.reshaped(x.root, dims)
            x.moved[key] = out
        return out

    def squeeze(self, x: Cells, dims: Sequence[int]) -> Cells:
        drop = set(dims)
        return self.reshaped(x, tuple(n for d, n in enumerate(x.dims) if d not in drop))

    def unsqueeze(self, x: Cells, dim: int) -> Cells:
        return self.reshaped(x, (*x.dims[:dim], 1, *x.dims[dim:]))

    def aligned(self, x: Cells, ndim: int) -> Cells:
        """Leading dims of size 1 added up to ``ndim``."""
        missing = ndim - (x.data.ndim - 1)
        return x if missing <= 0 else self.reshaped(x, (1,) * missing + x.dims)
