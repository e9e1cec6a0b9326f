"""Shadows of numpy arrays: an array is a tensor over the same memory, so rules and shadow memory are torch's.

A numpy function is followed as the operation of the rule table that does the same. What numpy's own functions
are called in that table, ``ufuncs`` and ``functions`` say; ``ndarray`` hands every call over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace._compat import STRIDED, extent, storage_of
from causaltrace.after import After
from causaltrace.arranged import empty
from causaltrace.counts import Held, storage
from causaltrace.order import ITEMS
from causaltrace.parts import Depth
from causaltrace.rules import TABLE, UNKNOWN, Rule
from causaltrace.schema import Op, tensors
from causaltrace.shadow import Entry, Shadow
from causaltrace.tracer import Tracer

# what these names hold before a watch patches them
_as_tensor, as_array, a_copy = torch.from_numpy, np.asarray, np.array
_base_of, _interface = np.ndarray.base.__get__, np.ndarray.__array_interface__.__get__


_NUMBERS = (int, float, bool)
#: Whose code runs when an array function is called; numba's knows arrays by their class.
OWN = ("numpy", "causaltrace", "numba")


class _Writable:
    """The memory of a read-only array, for torch, which makes no tensor of one without a warning.
    ``described``: otherwise."""

    def __init__(self, a: np.ndarray, **described: Any) -> None:
        interface = _interface(a) | described
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def bare(value: Any) -> Any:
    """Without labels: arrays as plain ones, also in lists, tuples and dicts."""
    if isinstance(value, np.ndarray):
        return value if type(value) is np.ndarray else getattr(value, "bare", value)
    if isinstance(value, np.generic):
        return getattr(value, "bare", value)
    if type(value) in (list, tuple):
        return type(value)(map(bare, value))
    if type(value) is dict:
        return {key: bare(v) for key, v in value.items()}
    return value


def backwards(a: np.ndarray) -> list[int]:
    """The dims along which memory goes down."""
    return [d for d, stride in enumerate(a.strides) if stride < 0]


def forwards(a: np.ndarray) -> np.ndarray:
    """The same elements as they lie in memory."""
    return a[tuple(slice(None, None, -1 if s < 0 else 1) for s in a.strides)] if backwards(a) else a


def read_only(a: np.ndarray) -> bool:
    """``flags.writeable`` warns of some arrays."""
    return bool(_interface(a)["data"][1])


def _lies(a: np.ndarray) -> bool:
    """Can torch have a tensor over it?"""
    kinds = a.dtype.kind in "biuf" and a.itemsize <= 8 or a.dtype.kind == "c" and a.itemsize <= 16
    return kinds and a.dtype.isnative and all(s % a.itemsize == 0 and s >= 0 for s in a.strides)


def over(a: np.ndarray) -> Tensor | None:
    """A tensor over the memory of an array, if torch can have one."""
    if not _lies(a):
        return None
    return _as_tensor(as_array(_Writable(a) if a.size and read_only(a) else a))


def bytes_of(a: np.ndarray) -> Tensor:
    """A tensor over the memory of any array, with one more dim: the bytes of each element."""
    shape, strides = (*a.shape, a.itemsize), (*a.strides, 1)
    kind = {"typestr": "|u1", "descr": [("", "|u1")]}
    return _as_tensor(as_array(_Writable(a, shape=shape, strides=strides, **kind)))


def _base(a: np.ndarray) -> Any:
    """What an array is a view of, also if ``as_strided`` made it."""
    base = _base_of(a)
    return base.base if isinstance(base, STRIDED) else base


def owner_of(a: np.ndarray) -> Any:
    """What holds an array's memory: the array that it is a view of, or a tensor's storage."""
    while isinstance(base := _base(a), np.ndarray):
        a = base
    return storage_of(base) if isinstance(base, Tensor) else a


def _owner(x: Any) -> Any:
    """What holds the memory of an array or a tensor; None: a number, which has none."""
    return storage(x) if isinstance(x, Tensor) else owner_of(x) if isinstance(x, np.ndarray) else None


def borrowed(a: np.ndarray) -> bool:
    """Does an array lie in memory of some other object that Python can read? (A capsule it cannot.)"""
    owner = owner_of(a)
    base = _base(owner) if isinstance(owner, np.ndarray) else None
    return base is not None and type(base).__name__ != "PyCapsule"


def bounds(a: np.ndarray) -> tuple[int, int]:
    """The addresses that an array's elements lie between."""
    low, high = np.lib.array_utils.byte_bounds(bare(a))
    return int(low), int(high)


def memory_of(a: np.ndarray) -> tuple[Any, int, int]:
    """What holds an array's memory, its address, and its bytes."""
    owner = owner_of(a)
    if isinstance(owner, torch.UntypedStorage):
        return extent(owner)
    low, high = bounds(owner)
    return owner, low, high - low


def lies_in(t: Tensor, a: np.ndarray) -> bool:
    """Is the memory of ``a`` that of ``t``?"""
    _, start, size = extent(storage_of(t))
    return bool(start <= _interface(a)["data"][0] < start + size)


def _same(a: Any, b: Any) -> bool:
    """Are these keys made of the same objects?"""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a is b


class Arrays:
    """Reads, writes and follows the shadows of arrays for one tracer."""

    inside = Depth()  #: of calls, on this thread, of numpy's own code

    def __init__(
        self, tracer: Tracer, labelled: Callable[[Any], Any], adopted: Callable[[np.ndarray], bool]
    ) -> None:
        """``labelled``: makes plain arrays those that tell of what is done with them. ``adopted``: makes all
        who hold one hold those, if it can."""
        self.tracer, self.memory, self.labelled, self.adopted = tracer, tracer.memory, labelled, adopted
        self._ops: dict[tuple[Any, ...], Op] = {}
        self._back: tuple[np.ndarray, Any, Callable[[], None]]  #: what is held
        self.open = True

    # -- numpy's own code -----------------------------------------------------------------------------

    def busy(self, depth: int = 2) -> bool:
        """Is it numpy's own code that asks, within a call that is followed as a whole? A function of the
        program that numpy calls there is none. ``depth``: of the frame that asks."""
        if not self.inside:
            return False
        name = str(sys._getframe(depth).f_globals.get("__name__"))
        return name.partition(".")[0] in OWN

    def plainly(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call of numpy's own on plain arrays: what its code does inside is not followed."""
        return self.whole(fn, bare(args), bare(kwargs))

    def whole(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The same on arrays as they are."""
        self.inside += 1
        try:
            return fn(*args, **kwargs)
        finally:
            self.inside -= 1

    # -- arrays as tensors ----------------------------------------------------------------------------

    def tensor(self, x: Any) -> Tensor:
        """A tensor over the memory of an array, or one of its own with the same shadow."""
        if isinstance(x, Tensor):
            self.tracer.seek(x)
            return x
        shadow = getattr(x, "shadow", None)  # a label as a number
        a = as_array(bare(x))
        if backwards(a) and self._fits(forwards(a)):
            t, seen = _as_tensor(a.copy()), self.memory.read(self.tensor(forwards(a)))
            shadow = None if seen is None else self._flipped(seen, backwards(a))
        elif self._fits(a) and (found := over(a)) is not None:
            t = found
        else:  # NaN, in which no rule sees anything
            t = torch.full(a.shape, torch.nan)
            shadow = self._bytes(a)
        if shadow is not None:
            self.memory.write(t, shadow)
        return t

    def _flipped(self, shadow: Shadow, dims: list[int]) -> Shadow | None:
        move = self.tracer.algebra.move
        return shadow.planes(
            lambda c: move(c, lambda data: data.flip([d for d in dims if data.shape[d] > 1]))
        )

    def _fits(self, a: np.ndarray) -> bool:
        """Can torch have a tensor over it whose elements begin where others in that memory may?"""
        if not _lies(a) or a.flags.aligned or not a.size:
            return _lies(a)
        address = _interface(a)["data"][0]
        found = self.memory.at(address)
        return found is None or (address - found[1]) % a.itemsize == 0

    def _bytes(self, a: np.ndarray) -> Shadow | None:
        """What the elements of any array hold, by the bytes that they are."""
        if not a.nbytes or (seen := self.memory.read(bytes_of(forwards(a)))) is None:
            return None
        reduce = self.tracer.algebra.reduce
        value = self.memory.value(seen).planes(lambda cells: reduce(cells, [a.ndim], keepdim=False))
        return value and self._flipped(value, backwards(a))

    def read(self, x: Any) -> Shadow | None:
        with _disable_current_modes():
            return self.memory.read(self.tensor(x))

    def known(self, a: np.ndarray) -> bool:
        """Is the memory of this array followed?"""
        return bool(self.memory.starts) and self.memory.at(_interface(a)["data"][0]) is not None

    def unlabelled(self, operands: Sequence[Any]) -> bool:
        """Are these numbers, and arrays whose memory is not followed?"""
        return all(
            type(x) in _NUMBERS or isinstance(x, np.ndarray) and x.dtype != object and not self.known(bare(x))
            for x in operands
        ) and not (self.tracer.counts and self.sizes(operands))

    def sizes(self, given: Any) -> tuple[Held, ...]:
        """What the sizes of arrays and tensors in arguments tell of (see ``counts``)."""
        return self.tracer.counts.met(map(_owner, arrays_in(given)))

    def tells(self, given: Any, *made: Any) -> None:
        """What has a size that nobody has asked for went where somebody may see it, if there is anything
        but what was ``made`` of it, and has such a size, too."""
        if self.tracer.counts and self.sizes(given) and not (made and all(map(self.sizes, made))):
            self.tracer.counts.tell()

    def share(self, a: np.ndarray) -> None:
        """Follow the memory of this array."""
        self.memory.share(*memory_of(a))

    def lie_together(self, t: Tensor, a: np.ndarray) -> Entry | None:
        """Follow the memory of an array that a tensor lies in, if it does."""
        return self.memory.share_with(t, *memory_of(a)) if a.size and lies_in(t, bare(a)) else None

    def write(self, a: np.ndarray, shadow: Shadow | None) -> None:
        """The elements of ``a`` now have ``shadow``."""
        a = bare(a)
        if not a.nbytes:
            return
        if not self.known(a):
            if not shadow:
                return
            self.share(a)
        if (dims := backwards(a)) and shadow is not None:
            shadow = self._flipped(shadow, dims)
        if self._fits(a := forwards(a)):
            self.memory.write(self.tensor(a), shadow or None)
            return
        if shadow is not None:
            if shadow.target is not None:
                self.tracer.recorder.scored(shadow, self.tracer.site("score"))
            algebra = self.tracer.algebra
            shadow = self.memory.value(shadow).planes(
                lambda cells: algebra.unsqueeze(algebra.aligned(cells, a.ndim), a.ndim)
            )
        self.memory.write(bytes_of(a), shadow)

    # -- following ------------------------------------------------------------------------------------

    def op(self, full: str, name: str, rule: Rule | None, escapes: tuple[str, ...]) -> Op:
        key = (full, name, rule, escapes)
        op = self._ops.get(key)
        if op is None:
            rule = rule or TABLE[name]
            op = Op(name, full, rule, (), (), (), False, False, False, False, escapes, False, False)
            self._ops[key] = op
        op.calls += 1
        return op

    def follow(
        self,
        full: str,
        name: str,
        bound: dict[str, Any],
        results: Sequence[Any],
        rule: Rule | None = None,
        escapes: tuple[str, ...] = (),
        early: bool = False,
    ) -> After | None:
        """The shadows of ``results`` of a call, as if it were operation ``name`` with arguments ``bound``;
        None where no label is involved. ``early``: it has not written them yet."""
        counts, algebra = self.tracer.counts, self.tracer.algebra
        given = self.sizes(list(bound.values())) if counts else ()

        def run() -> After | None:
            after = self._follow(full, name, bound, results, rule, escapes, early)
            if after is not None and after.sized is not None:
                sized, after.sized = after.sized, None
                counts.hold(map(_owner, results), sized)
                for result, shadow in zip(results, after.shadows, strict=False):
                    if not np.size(bare(result)) and shadow.order is not None:
                        counts.none(_owner(result), empty(shadow.order, np.ndim(bare(result)), algebra))
            return after

        if not given:
            return run()
        return counts.follow(given, run, lambda _: [(_owner(r), np.size(bare(r))) for r in results])

    def _follow(
        self,
        full: str,
        name: str,
        bound: dict[str, Any],
        results: Sequence[Any],
        rule: Rule | None,
        escapes: tuple[str, ...],
        early: bool,
    ) -> After | None:
        with _disable_current_modes():
            seen: dict[int, Tensor] = {}
            given = list(arrays_in(list(bound.values())))
            bound = {key: self._mirrored(value, seen) for key, value in bound.items()}
            inputs = tensors(tuple(bound.values()))
            shadows = {id(t): s for t in inputs if (s := self.memory.read(t)) is not None}
            if self.tracer.counts:
                shadows |= {id(seen[id(a)]): s for a in given if (s := self._empty(a)) is not None}
            if not shadows:
                return None
            op = self.op(full, name, rule, escapes)
            outs = [self._made(r) for r in results]
            return self.tracer.called(op, bound, outs, shadows, early)

    def _empty(self, a: Any) -> Shadow | None:
        """Of an array without elements that has an order, its slots are on the dim that has none."""
        shadow = self.tracer.counts.shadow(_owner(a))
        if shadow is None or shadow.order is None or list(a.shape).count(0) != 1:
            return None
        order, ndim = shadow.order, np.ndim(bare(a))
        out = empty(order, ndim, self.tracer.algebra)
        moved = shadow.support is not None and len(shadow.support.dims) != ndim
        return out._replace(order=order._replace(dim=a.shape.index(0), role=ITEMS if moved else order.role))

    def _mirrored(self, value: Any, seen: dict[int, Tensor]) -> Any:
        if isinstance(value, np.ndarray) or hasattr(value, "shadow"):
            if id(value) not in seen:
                seen[id(value)] = self.tensor(value)
            return seen[id(value)]
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, (list, tuple)):
            return [self._mirrored(v, seen) for v in value]
        return value

    def _made(self, result: Any) -> Tensor:
        a = as_array(bare(result))
        if not _lies(forwards(a)):
            return torch.full(a.shape, torch.nan)
        return _as_tensor(a_copy(a) if backwards(a) or read_only(a) else a)

    def done(self, full: str, results: Sequence[Any], after: After | None) -> None:
        """Write what ``follow`` found; what is a number is in Python's hands."""
        with _disable_current_modes():
            shadows = [None] * len(results) if after is None else after.shadows
            pairs = list(zip(results, shadows, strict=False))
            for result, shadow in pairs:
                if isinstance(result, np.ndarray):
                    self.write(result, shadow)
                    if type(result) is not np.ndarray and shadow:
                        self.unseen(f"{full} gave a {type(result).__name__}: it", result)
            if after is not None:  # what is scored is scored before Python has it
                after.report(self.tracer)
            for result, shadow in pairs:
                if shadow and (not isinstance(result, np.ndarray) or result.dtype == object):
                    self.touch(full, shadow, result)

    def written(self, full: str, into: Sequence[Any], places: Sequence[Any], after: After | None) -> None:
        """As ``done``, for ``places`` in arrays."""
        self.done(full, places, after)
        if after is not None:
            for a in into:
                self.unseen(full, a)

    def unseen(self, full: str, a: np.ndarray) -> None:
        """``a`` was written to. Unless it is made an array that tells of what is done with it, whoever has it
        can read and write there unseen."""
        if not hasattr(a, "bare") and not self.adopted(a):
            self.lent(f"{full} into an array that was made before labels reached numpy", a)

    def opaque(self, full: str, given: Any, results: Sequence[Any], open_to: Sequence[Any] = ()) -> None:
        """No rule: all that went in may be in all that came out. ``open_to``: arrays that may have been
        written to, or not."""
        found = list(arrays_in(given))
        after = self.follow(full, full, {"inputs": found}, [*results, *open_to], UNKNOWN)
        self.done(full, results, after)
        for a, shadow in zip(open_to, after.shadows[len(results) :] if after else (), strict=False):
            old = self.read(a) or Shadow()
            parts = [old.possible or old.support, shadow.possible or shadow.support]
            with _disable_current_modes():
                self.write(a, old._replace(possible=self.tracer.algebra.join(*parts)))
            self.unseen(full, a)

    def told(self, what: str, given: Any) -> None:
        """The values of an array, or of all that there are in arguments, went to Python."""
        self.tells(given)
        for a in arrays_in(given):
            self.touch(what, self.read(a), a)

    def unwritten(self, a: Any, where: Any = False) -> None:
        """``a`` holds what was in memory before (numpy hands out what was just given back), but ``where`` it
        was written."""
        outside, plain, keep = self.tracer.outside, bare(a), self.tracer.algebra.keep
        if outside is None or type(plain) is not np.ndarray or not plain.nbytes or plain.dtype.hasobject:
            return
        with _disable_current_modes():
            self.share(plain)
            t = over(plain)
            outside.unwritten(bytes_of(plain) if t is None else t)
            if where is not False and (anything := self.read(plain)) is not None:
                left = _as_tensor(a_copy(np.broadcast_to(~as_array(where, dtype=bool), plain.shape)))
                self.write(plain, anything.planes(lambda cells: keep(cells, left)))

    def lent(self, what: str, a: np.ndarray) -> None:
        """The memory of an array went to something that reads and writes there itself."""
        self.tracer.counts.asked(_owner(a))
        with _disable_current_modes():
            owner, start, nbytes = memory_of(a)
            if nbytes:  # first: what nobody has written there is for others to fill
                self.memory.open(owner, start, nbytes)
            self.touch(what, self.memory.read(self.tensor(a)))

    def hold(self, a: np.ndarray, key: Any, shadow: Shadow, value: Any) -> None:
        """Python gets an element that was read at a label: a score, unless it is written back."""
        tracer, site = self.tracer, self.tracer.site("host")

        def tell(back: bool = False) -> None:
            with _disable_current_modes():
                seen = self.memory.value(shadow) if back else self._valued(shadow, value)
                tracer.recorder.escaped("a number read from an array", seen, site)

        if not tracer.alone:  # a copy of the process may end at any moment
            return tell(back=True)
        self._back = a, key, lambda: tell(back=True)
        tracer.held = tell

    def back(self, a: np.ndarray, key: Any) -> None:
        """An element of ``a`` is written. If it is the one that Python just got, as in
        ``counts[x, y] += 1``, that was an update and no score."""
        if self.tracer.held is not None:
            rows, place, tell = self._back
            if np.shares_memory(rows, a) and _same(place, key):
                self.tracer.held = tell
            self.tracer.release()

    def touch(self, what: str, shadow: Shadow | None, value: Any = None) -> None:
        """A value went to Python, or to something that reads memory itself."""
        if shadow is not None and shadow.target is not None and value is not None:
            shadow = self._valued(shadow, value)
        self.tracer.vanished(what, shadow)

    def _valued(self, shadow: Shadow, value: Any) -> Shadow:
        """The shadow of readouts that leave, with their values."""
        if not isinstance(value, Tensor):
            with _disable_current_modes():
                a = a_copy(bare(value))
                value = _as_tensor(a) if _lies(a) else None
        return shadow._replace(values=value)


def arrays_in(value: Any) -> Iterator[Any]:
    """Every array, label and tensor in arguments."""
    if isinstance(value, (np.ndarray, Tensor)) or hasattr(value, "shadow"):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from arrays_in(v)
    elif isinstance(value, dict):
        yield from arrays_in(list(value.values()))


def labels_in(value: Any) -> Iterator[Any]:
    """The arrays and numbers in ``value`` that are followed."""
    return (a for a in arrays_in(value) if type(a) is not np.ndarray)
