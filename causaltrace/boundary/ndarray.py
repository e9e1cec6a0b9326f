"""``LabelArray``: the numpy array that a tensor with labels becomes. It is an ndarray; what is done with it
is followed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from causaltrace.boundary import functions, indexing, slots, ufuncs
from causaltrace.boundary.arrays import Arrays, bare, owner_of
from causaltrace.boundary.containers import listed
from causaltrace.boundary.number import number, told
from causaltrace.places import ours

#: Those of the watch that is open; without one, a LabelArray is an array like any other.
_open: list[Arrays] = []
_class = type
_view = np.ndarray.view  # before a watch patches it
_array = np.ndarray.__array__


def opened(arrays: Arrays) -> Callable[[], None]:
    """Arrays are followed by ``arrays`` until the function that it returns is called."""
    _open.append(arrays)
    return lambda: _open.remove(arrays)


def current() -> Arrays:
    return _open[-1]


def labelled(value: Any) -> Any:
    """Arrays as LabelArrays, also in lists and tuples."""
    if type(value) is np.ndarray:
        return value.view(LabelArray)
    if type(value) in (list, tuple):
        return type(value)(map(labelled, value))
    if isinstance(value, tuple):  # a named one
        return type(value)(*map(labelled, value))
    return value


class LabelArray(np.ndarray):
    """An ndarray whose elements' supports are known to the open watch."""

    __slots__ = ()
    __module__ = "numpy"  # by which data loaders know arrays

    @property
    def bare(self) -> np.ndarray:
        """The same memory as a plain array."""
        return _view(self, np.ndarray)

    # -- what numpy hands over ------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if not _open:
            return getattr(ufunc, method)(*bare(inputs), **bare(options))
        return labelled(ufuncs.called(_open[-1], ufunc, method, inputs, options))

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if not _open:
            return func(*bare(args), **bare(kwargs))
        return labelled(functions.called(_open[-1], func, args, kwargs))

    def __getitem__(self, key: Any) -> Any:
        if not _open:
            return self.bare[bare(key)]
        return read(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        if _open:
            indexing.write(_open[-1], self, key, value)
        else:
            self.bare[bare(key)] = bare(value)

    def __iter__(self) -> Iterator[Any]:
        if _open:
            _open[-1].tracer.counts.asked(owner_of(self))
        return (told(self[i]) for i in range(len(self)))

    def __contains__(self, value: object) -> bool:
        return bool((self == value).any())

    # -- views and copies -----------------------------------------------------------------------------

    def view(self, dtype: Any = None, type: Any = None) -> Any:
        """As numpy's. Another class reads and writes as it likes."""
        if isinstance(dtype, _class) and issubclass(dtype, np.ndarray):
            dtype, type = None, dtype
        out = self.bare if dtype is None else _view(self.bare, dtype)
        if type in (None, np.ndarray, LabelArray):
            return _view(out, LabelArray)
        if _open:
            _open[-1].lent(f"numpy view as {type.__name__}", self)
        return _view(out, type)

    def astype(self, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        out = self.bare.astype(dtype, *args, **kwargs)
        return self._moved("numpy.astype", out)

    def reshape(self, *shape: Any, **kwargs: Any) -> Any:
        return np.reshape(self, shape[0] if len(shape) == 1 else shape, **kwargs)

    def flatten(self, order: Any = "C") -> Any:
        return np.copy(np.ravel(self, order))

    def copy(self, order: Any = "C") -> Any:
        return np.copy(self, order)

    def compress(self, condition: Any, axis: Any = None, out: Any = None) -> Any:
        return np.compress(condition, self, axis, out)

    def clip(self, min: Any = None, max: Any = None, out: Any = None, **kwargs: Any) -> Any:
        return np.clip(self, min, max, out, **kwargs)

    def __copy__(self) -> Any:
        return np.copy(self)

    def __deepcopy__(self, memo: Any) -> Any:
        return np.copy(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        out = _array(self.bare, *(() if dtype is None else (dtype,)), copy=copy)
        return self._moved("numpy.array", out)

    def _moved(self, full: str, out: Any) -> Any:
        if _open and not np.shares_memory(out, self.bare):
            arrays = _open[-1]
            after = arrays.follow(full, "_to_copy", {"self": self}, [out])
            arrays.done(full, [out], after)
        return labelled(out)

    @property
    def base(self) -> Any:
        return labelled(self.bare.base)

    def conj(self) -> Any:
        return np.conjugate(self)

    conjugate = conj

    def byteswap(self, inplace: bool = False) -> Any:
        out = self.bare.byteswap(inplace)
        return self._filled("numpy.byteswap", self if inplace else out)

    def _filled(self, full: str, out: Any, *given: Any) -> Any:
        """``out`` may hold anything that this array or what was ``given`` holds."""
        if _open:
            _open[-1].opaque(full, [self, *given], [out])
        return labelled(out)

    # -- in place -------------------------------------------------------------------------------------

    def sort(self, axis: Any = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> None:
        self[...] = np.sort(self, axis, kind, order, stable=stable)

    def partition(self, kth: Any, axis: Any = -1, *args: Any, **kwargs: Any) -> None:
        self[...] = np.partition(self, kth, axis, *args, **kwargs)

    def fill(self, value: Any) -> None:
        self[...] = value

    def put(self, indices: Any, values: Any, mode: Any = "raise") -> None:
        np.put(self, indices, values, mode)

    def resize(self, *shape: Any, refcheck: bool = True) -> None:
        if _open:
            _open[-1].lent("numpy resize", self)
        np.ndarray.resize(self, *shape, refcheck=refcheck)

    def setfield(self, value: Any, dtype: Any, offset: Any = 0) -> None:
        self.getfield(dtype, offset)[...] = value


def read(a: np.ndarray, key: Any) -> Any:
    """``a[key]``: a label stays one, any other number goes to Python."""
    return labelled(indexing.read(_open[-1], a, key, number))


def _through_numpy(name: str) -> Callable[..., Any]:
    """A method that is numpy's function of the same name."""

    def method(self: LabelArray, *args: Any, **kwargs: Any) -> Any:
        if not _open:
            return getattr(self.bare, name)(*bare(args), **bare(kwargs))
        args, kwargs = listed(_open[-1], args), listed(_open[-1], kwargs)
        return self.__array_function__(getattr(np, name), (LabelArray,), (self, *args), kwargs)

    method.__name__ = name
    return method


#: Methods that numpy has as functions of the same name and arguments.
SAME = [
    "all",
    "any",
    "argmax",
    "argmin",
    "argpartition",
    "argsort",
    "choose",
    "cumprod",
    "cumsum",
    "diagonal",
    "dot",
    "max",
    "mean",
    "min",
    "nonzero",
    "prod",
    "ravel",
    "repeat",
    "round",
    "searchsorted",
    "squeeze",
    "std",
    "sum",
    "swapaxes",
    "take",
    "trace",
    "var",
]


def _told(name: str, handed_out: Callable[[Arrays], Any]) -> Any:
    """A method or an attribute that hands out values or memory: the watch is told."""
    original = getattr(np.ndarray, name)

    def tell(self: LabelArray) -> None:
        if _open:
            handed_out(_open[-1])(f"numpy {name.strip('_')}", self)

    if not callable(original):

        def get(self: LabelArray) -> Any:
            tell(self)
            return getattr(self.bare, name)

        def put(self: LabelArray, value: Any) -> None:
            setattr(self.bare, name, bare(value))
            self._filled(f"numpy.{name}", self, value)

        return property(get, put)

    def method(self: LabelArray, *args: Any, **kwargs: Any) -> Any:
        tell(self)
        return getattr(self.bare, name)(*bare(args), **bare(kwargs))

    method.__name__ = name
    return method


def _part(name: str) -> Any:
    """``real`` and ``imag``: views."""

    def get(self: LabelArray) -> Any:
        return labelled(getattr(self.bare, name))

    def put(self: LabelArray, value: Any) -> None:
        getattr(self, name)[...] = value

    return property(get, put)


def _asked(name: str) -> Any:
    """A size: how many elements a mask chose, perhaps."""
    original = getattr(np.ndarray, name)
    read = original if callable(original) else original.__get__

    def ask(self: LabelArray) -> None:
        if _open and (counts := _open[-1].tracer.counts) and not ours(sys._getframe(2)):
            counts.asked(owner_of(self))

    def get(self: LabelArray) -> Any:
        ask(self)
        return read(self)

    def put(self: LabelArray, value: Any) -> None:
        ask(self)
        original.__set__(self, value)

    return get if callable(original) else property(get, put)


#: What hands out values: numbers, text, bytes.
_VALUES = (
    "__bool__ __int__ __float__ __complex__ __index__ __str__ __repr__ __format__ __reduce__ __reduce_ex__ "
    "dump dumps item tobytes tofile tolist"
)
#: What sees no values, makes a view, or is a ufunc by another name.
_FREE = (
    "T mT shape ndim size dtype itemsize nbytes strides flags device to_device getfield setflags squeeze "
    "swapaxes transpose __len__ __sizeof__ __delitem__ __array_finalize__ __array_wrap__ __array_priority__ "
    "__array_namespace__ __dlpack_device__ __class_getitem__ __buffer__ __add__ __radd__ __iadd__ __sub__ "
    "__rsub__ __isub__ __mul__ __rmul__ __imul__ __truediv__ __rtruediv__ __itruediv__ __floordiv__ "
    "__rfloordiv__ __ifloordiv__ __mod__ __rmod__ __imod__ __divmod__ __rdivmod__ __pow__ __rpow__ __ipow__ "
    "__lshift__ __rlshift__ __ilshift__ __rshift__ __rrshift__ __irshift__ __and__ __rand__ __iand__ __or__ "
    "__ror__ __ior__ __xor__ __rxor__ __ixor__ __matmul__ __rmatmul__ __imatmul__ __neg__ __pos__ __abs__ "
    "__invert__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__"
)
VALUES = frozenset(_VALUES.split())
FREE = frozenset(_FREE.split()) | (frozenset(dir(object)) - VALUES)

for _name in ("shape", "size", "ndim", "nbytes", "strides", "flags", "__len__", "__sizeof__"):
    setattr(LabelArray, _name, _asked(_name))
for _name in ("real", "imag"):
    setattr(LabelArray, _name, _part(_name))
for _name in SAME:
    setattr(LabelArray, _name, _through_numpy(_name))
for _name in VALUES:
    setattr(LabelArray, _name, _told(_name, lambda arrays: arrays.told))
for _name in set(dir(np.ndarray)) - FREE - set(vars(LabelArray)):
    # memory, and what another numpy has: whoever gets it may read and write there
    setattr(LabelArray, _name, _told(_name, lambda arrays: arrays.lent))


def lent(a: Any, what: str = "numpy buffer") -> None:
    """The memory of an array went to something that reads and writes there itself."""
    if _open:
        _open[-1].lent(what, a)


slots.untracked(LabelArray)
slots.buffered(LabelArray, lent)
