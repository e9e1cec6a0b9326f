"""What a watch does to numpy: arrays with labels stay arrays with labels, whoever they are handed to."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causaltrace.boundary import compiled, hidden, indexing, slots, unbound, untold
from causaltrace.boundary.arrays import Arrays, arrays_in, as_array, bare, lies_in
from causaltrace.boundary.containers import PLAIN, listed, simple
from causaltrace.boundary.items import indexed
from causaltrace.boundary.ndarray import LabelArray, labelled, opened, read
from causaltrace.boundary.ndarray import current as current
from causaltrace.boundary.number import told
from causaltrace.boundary.plain import Plain
from causaltrace.tracer import Tracer

Found = tuple[Any, int, list[str]]
Replace = Callable[[Any, str, Callable[..., Any]], None]
#: By the ids of functions: where in installed modules, of what length, they were found.
_found: dict[frozenset[int], dict[int, Found]] = {}
NOWHERE: Found = (None, 0, [])

#: Where Python and packages live.
INSTALLED = tuple(
    path + os.sep
    for key, path in sysconfig.get_paths().items()
    if key in ("stdlib", "platstdlib", "purelib", "platlib")
)
#: Functions that make plain arrays of what they are given.
MAKING = ("array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray", "require", "frombuffer")
#: What they call what they are given.
DATA = ("object", "a", "buffer")
#: Functions that make arrays that labels may be written to.
FRESH = ("zeros", "ones", "empty", "full", "zeros_like", "ones_like", "empty_like", "full_like")
#: Their arguments that say nothing of the shape.
NO_SIZES = ("fill_value", "a", "prototype")
#: Those that leave in them what was in memory before.
BLANK = ("empty", "empty_like")
#: Methods of plain arrays that take other arrays.
TAKING = (
    "take",
    "put",
    "searchsorted",
    "repeat",
    "choose",
    "compress",
    "dot",
    "fill",
    "setfield",
    "partition",
)
#: Their attributes that may be set to other arrays.
SET = ("flat", "real", "imag")
#: Those that hand out their memory: to be kept, also if labels come there only later.
LENT = ("ctypes", "data")


def enter(
    tracer: Tracer, plain: Plain, replace: Replace, names: dict[int, Any], undo: list[Callable[[], None]]
) -> None:
    """Follow numpy's arrays; what ends it goes to ``undo``. ``replace`` restores by itself; ``names``: what
    takes the place of functions of modules, by their ids."""
    arrays = Arrays(tracer, labelled, plain.adopted)
    names.update(untold.functions(arrays))
    for name in MAKING:
        names[id(getattr(np, name))] = _making(arrays, name, getattr(np, name))
    for name in FRESH:
        names[id(getattr(np, name))] = _fresh(arrays, getattr(np, name))
    replace(Tensor, "numpy", _handed_out(arrays, Tensor.numpy))
    replace(Tensor, "__array__", _converted(arrays, Tensor.__array__))
    for name in ("__getitem__", "__setitem__"):
        replace(Tensor, name, indexed(arrays, getattr(Tensor, name)))
    slots.no_sequence(Tensor)
    bound = list(bound_to(names))
    for owner, name, original in bound:
        replace(owner, name, names[id(original)])
    before = set(sys.modules)
    taking = {name: _taking(arrays, name) for name in TAKING}
    setting = {name: _set(arrays, name) for name in SET}
    lending = {name: _lent(arrays, name) for name in LENT}
    own = unbound.methods() | _items(arrays) | taking | setting | lending
    restore = slots.patched(np.ndarray, own)

    tracer.memory.exposed = plain.labels

    def end() -> None:
        restore()
        tracer.memory.exposed = None
        for give_back in plain.undo:
            give_back()
        tracer.release()
        arrays.open = False
        _restore(names, [module for name, module in list(sys.modules.items()) if name not in before])

    @contextlib.contextmanager
    def as_they_were() -> Iterator[None]:
        ours = [
            (owner, name, original) for owner, name, original in bound if vars(owner)[name] is not original
        ]
        for owner, name, original in ours:
            setattr(owner, name, original)
        try:
            yield
        finally:
            for owner, name, original in ours:
                setattr(owner, name, names[id(original)])

    undo += [opened(arrays), end]
    undo.append(slots.constructing(np.ndarray, _constructed(arrays)))
    undo += hidden.enter(arrays)
    undo += untold.enter(arrays)
    undo += compiled.enter(arrays, as_they_were)


def bound_to(names: dict[int, Any]) -> Iterator[tuple[Any, str, Any]]:
    """Every module that has one of these functions, by whatever name it was imported. What is installed
    takes on names while it is imported, and hardly later: it is looked through once for each length."""
    found = _found.setdefault(frozenset(names), {})
    for path, module in list(sys.modules.items()):
        space = getattr(module, "__dict__", None)
        if not isinstance(space, dict):
            continue
        known, length, bound = found.get(id(module), NOWHERE)
        if known is not module or length != len(space):
            bound = (
                []
                if path.startswith("causaltrace")
                else [name for name, value in list(space.items()) if id(value) in names]
            )
            if _installed(module):
                found[id(module)] = module, len(space), bound
        for name in bound:
            if id(value := space.get(name)) in names:
                yield module, name, value


def _restore(names: dict[int, Any], modules: list[Any]) -> None:
    """Modules that were imported in the meantime have the functions themselves, as all others."""
    originals = {id(new): new.__wrapped__ for new in names.values() if hasattr(new, "__wrapped__")}
    for module in modules:
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if id(value) in originals:
                setattr(module, name, originals[id(value)])


def _installed(module: Any) -> bool:
    return str(getattr(module, "__file__", None) or "").startswith(INSTALLED)


def _is(a: np.ndarray, b: np.ndarray) -> bool:
    """Are they the same elements of memory?"""
    x, y = (bare(c).__array_interface__ for c in (a, b))
    return a.dtype == b.dtype and a.strides == b.strides and all(x[k] == y[k] for k in ("data", "shape"))


def _making(arrays: Arrays, name: str, original: Any) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if arrays.busy():
            return original(*args, **kwargs)
        out = made(*args, **kwargs)
        arrays.tells([args, kwargs], out)
        return out

    def made(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = listed(arrays, args), listed(arrays, kwargs)
        given = args[0] if args else next((kwargs[key] for key in DATA if key in kwargs), None)
        hiding = isinstance(given, (list, tuple)) and hidden.hides(arrays, given)
        if hiding:
            given = hidden.shown(arrays, given)
            args, kwargs = ((given, *args[1:]), kwargs) if args else (args, kwargs | {"object": given})
        out = arrays.plainly(original, args, kwargs)
        if type(out) is not np.ndarray:
            return out
        if hiding and out.dtype == object:  # arrays among its elements are themselves
            out = original(*args, **kwargs)
            whole = set(map(id, out.ravel().tolist()))
            arrays.told(f"numpy.{name}", [a for a in arrays_in(given) if id(a) not in whole])
            return out
        if isinstance(given, LabelArray) and _is(out, given):
            return given
        if arrays.memory.starts and arrays.known(out):
            return out.view(LabelArray)
        if isinstance(given, (np.ndarray, np.generic)):
            if (
                isinstance(given, LabelArray)
                or hasattr(given, "shadow")
                or arrays.known(as_array(bare(given)))
            ):
                arrays.done(name, [out], arrays.follow(f"numpy.{name}", "_to_copy", {"self": given}, [out]))
                return out.view(LabelArray)
            return out
        if isinstance(given, Tensor):
            shadow = arrays.read(torch.Tensor.detach(given).numpy()) if given.device.type == "cpu" else None
            if shadow:
                arrays.write(out, shadow)
                return out.view(LabelArray)
            return out
        if isinstance(given, (list, tuple)) and any(True for _ in arrays_in(given)):
            made = indexing.array(arrays, given)
            arrays.write(out, arrays.read(made))
            return out.view(LabelArray)
        return out

    return wrapper


def _fresh(arrays: Arrays, original: Any) -> Callable[..., Any]:
    full = f"numpy.{original.__name__}"
    values = ((0,) if full.endswith("_like") else ()) + ((1,) if "full" in full else ())

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if arrays.busy():
            return original(*args, **kwargs)
        args, kwargs = listed(arrays, told(args)), listed(arrays, {k: told(v) for k, v in kwargs.items()})
        arrays.tells([args, kwargs])
        sizes = [a for i, a in enumerate(args) if i not in values]
        arrays.told(full, sizes + [a for key, a in kwargs.items() if key not in NO_SIZES])
        out = arrays.plainly(original, args, kwargs)
        # packages fill what they make, many in C
        if original.__name__ in BLANK and not sys._getframe(1).f_code.co_filename.startswith(INSTALLED):
            arrays.unwritten(out)
        fill = kwargs.get("fill_value", args[1] if original.__name__.startswith("full") else None)
        if hidden.hides(arrays, fill):
            out = out.view(LabelArray)
            out[...] = hidden.shown(arrays, fill)
        return out.view(LabelArray) if arrays.memory.starts and type(out) is np.ndarray else out

    return wrapper


def _constructed(arrays: Arrays) -> Callable[..., Any]:
    """``np.ndarray(shape)``, without a buffer: as ``np.empty``."""

    def made(original: Any, cls: Any, args: Any, kwargs: Any) -> Any:
        by_others = sys._getframe(2).f_code.co_filename.startswith(INSTALLED)
        if cls is not np.ndarray or by_others or arrays.busy() or len(args) > 2 or "buffer" in kwargs:
            return original(cls, args, kwargs)
        args, kwargs = listed(arrays, told(args)), {k: told(v) for k, v in kwargs.items()}
        arrays.told("numpy.ndarray", [args, kwargs])
        out = original(cls, bare(args), bare(kwargs))
        arrays.unwritten(out)
        return labelled(out) if arrays.memory.starts else out

    return made


def _handed_out(arrays: Arrays, original: Any) -> Callable[..., Any]:
    """``tensor.numpy()``"""

    @functools.wraps(original)
    def wrapper(t: Tensor, *args: Any, **kwargs: Any) -> Any:
        arrays.tracer.seek(t)
        out = original(t, *args, **kwargs)
        if not isinstance(out, np.ndarray) or not out.size:
            return out
        plain = bare(out)
        if lies_in(t, plain):
            arrays.share(plain)
        elif arrays.memory.entry(t) is None:
            return out
        else:  # a copy, of another dtype
            arrays.write(plain, arrays.memory.read(t))
        return labelled(out)

    return wrapper


def _converted(arrays: Arrays, original: Any) -> Callable[..., Any]:
    """What numpy's C code asks a tensor for: unless that is run for a function that is followed, nobody sees
    what becomes of it."""
    handed_out = _handed_out(arrays, original)

    @functools.wraps(original)
    def wrapper(t: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not arrays.busy():
            arrays.told("__array__", t)
        return bare(handed_out(t, *args, **kwargs))

    return wrapper


def _items(arrays: Arrays) -> dict[str, Callable[..., Any]]:
    """The item methods of all arrays."""
    get, put = np.ndarray.__getitem__, np.ndarray.__setitem__

    def getitem(self: np.ndarray, key: Any) -> Any:
        if type(self) is LabelArray:  # of the class, ``np.ndarray.__getitem__(x, key)``
            return self[key]
        if type(key) in PLAIN or arrays.busy():
            return get(self, key)
        key = listed(arrays, key)
        if not hidden.hides(arrays, key):
            return get(self, key)
        return read(self, hidden.shown(arrays, key))

    def setitem(self: np.ndarray, key: Any, value: Any) -> None:
        if arrays.busy():
            return put(self, key, value)
        key = listed(arrays, key)
        if self.dtype != object or not indexing.one(self, key):
            value = listed(arrays, value)
        if not (hidden.hides(arrays, key) or hidden.hides(arrays, value)):
            put(self, key, value)
        else:
            indexing.write(arrays, self, hidden.shown(arrays, key), hidden.shown(arrays, value))

    return {"__getitem__": getitem, "__setitem__": setitem}


def _taking(arrays: Arrays, name: str) -> Callable[..., Any]:
    original = getattr(np.ndarray, name)

    def method(self: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        if type(self) is LabelArray:
            return getattr(LabelArray, name)(self, *args, **kwargs)
        if type(self) is not np.ndarray or simple(args, kwargs) or arrays.busy():
            return original(self, *args, **kwargs)
        args, kwargs = listed(arrays, args), listed(arrays, kwargs)
        if not hidden.hides(arrays, [args, kwargs]):
            return original(self, *args, **kwargs)
        args, kwargs = hidden.shown(arrays, [args, kwargs])
        out = getattr(self.view(LabelArray), name)(*args, **kwargs)
        if name in ("put", "fill", "setfield") and arrays.known(self):
            arrays.unseen(f"numpy {name}", self)
        return out

    return method


def _set(arrays: Arrays, name: str) -> Any:
    original = vars(np.ndarray)[name]

    def put(self: np.ndarray, value: Any) -> None:
        value = value if arrays.busy() else listed(arrays, value)
        if arrays.busy() or not hidden.hides(arrays, value):
            return original.__set__(self, value)
        (value,) = hidden.shown(arrays, [value])
        original.__set__(self, bare(value))
        arrays.opaque(f"numpy.{name}", [value], [self])
        arrays.unseen(f"numpy {name}", self)

    return property(original.__get__, put)


def _lent(arrays: Arrays, name: str) -> Any:
    original = vars(np.ndarray)[name]

    def get(self: np.ndarray) -> Any:
        if not arrays.inside:
            arrays.lent(f"numpy {name}", self)
        return original.__get__(self)

    return property(get, original.__set__)
