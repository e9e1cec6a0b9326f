"""``a[key]`` and ``a[key] = value``: views by their memory, everything else as torch's index operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from causaltrace.boundary.arrays import Arrays, arrays_in, as_array, bare, owner_of
from causaltrace.boundary.containers import listed

Numbered = Callable[[Arrays, Any, Any], Any]
REFUSED = "an index that numpy refused"


def read(arrays: Arrays, a: np.ndarray, key: Any, number: Numbered) -> Any:
    """``a[key]``, bare; of an element what ``number`` makes of it."""
    key = listed(arrays, key)
    try:
        return _read(arrays, a, key, number)
    except Exception:  # whoever catches it knows something about the key, and the size
        arrays.told(REFUSED, key)
        arrays.tracer.counts.asked(owner_of(a))
        raise


def write(arrays: Arrays, a: np.ndarray, key: Any, value: Any) -> None:
    """``a[key] = value``."""
    key = listed(arrays, key)
    if a.dtype != object or not one(a, key):
        value = listed(arrays, value)
    try:
        _write(arrays, a, key, value)
    except Exception:
        arrays.told(REFUSED, [key, value])
        raise


def _read(arrays: Arrays, a: np.ndarray, key: Any, number: Numbered) -> Any:
    plain = bare(a)
    out = plain[bare(key)]
    if arrays.unlabelled([plain, *arrays_in(key)]):
        return out
    if basic(key):
        if isinstance(out, np.ndarray):
            return out
        where = (*(key if isinstance(key, tuple) else (key,)), Ellipsis)
        if isinstance(out, np.void) and out.dtype.names:  # a view
            arrays.lent("an element read from an array", plain[where])
            return out
        if isinstance(out, np.void) or not isinstance(out, np.generic):
            arrays.touch("an element read from an array", arrays.read(plain[where]))
            return out
        return number(arrays, out, arrays.read(plain[where]))
    if plain.size:  # known by its address, should the element be written back
        arrays.share(plain)
    x, indices = advanced(arrays, plain, key)
    after = arrays.follow(
        "numpy.getitem", "index", {"self": x, "indices": indices}, [out], escapes=("indices",)
    )
    if isinstance(out, np.ndarray):
        arrays.done("numpy.getitem", [out], after)
        return out
    arrays.done("numpy.getitem", [], after)
    if after is not None and after.shadows[0].target is not None:
        arrays.hold(plain, key, after.shadows[0], out)
        return out
    return out if after is None else number(arrays, out, after.shadows[0])


def _write(arrays: Arrays, a: np.ndarray, key: Any, value: Any) -> None:
    plain = bare(a)
    arrays.back(plain, key)
    if plain.dtype == object and one(plain, key):
        arrays.whole(np.ndarray.__setitem__, (plain, key, value), {})  # the object itself
        return
    if arrays.unlabelled([plain, *arrays_in([key, value])]):
        arrays.plainly(np.ndarray.__setitem__, (plain, key, value), {})
        return
    if plain.dtype.names and isinstance(value, tuple) and basic(key):
        arrays.plainly(np.ndarray.__setitem__, (plain, key, value), {})
        for name, v in zip(plain.dtype.names, value, strict=True):
            _write(arrays, a[name], key, v)
        return
    if isinstance(value, np.ndarray) and value.dtype == object and plain.dtype != object:
        arrays.told("numpy.setitem", value.tolist())  # numbers are made of what it holds
    value = array(arrays, value)
    if basic(key):
        place = plain[key] if isinstance(key, str) else plain[whole(key)]
        after = arrays.follow("numpy.setitem", "copy", {"self": place, "src": value}, [place], early=True)
    else:
        place, indices = advanced(arrays, plain, key)
        bound = {"self": place, "indices": indices, "values": value}
        after = arrays.follow("numpy.setitem", "index_put", bound, [place], early=True)
    arrays.plainly(np.ndarray.__setitem__, (plain, key, value), {})
    arrays.written("numpy.setitem", [a], [place], after)


def array(arrays: Arrays, value: Any) -> Any:
    """A value as an array: lists of labels and arrays, too."""
    if isinstance(value, np.ndarray) or hasattr(value, "shadow"):
        return value
    if isinstance(value, Tensor):
        return np.asarray(value)
    if not isinstance(value, (list, tuple)) or not any(True for _ in arrays_in(value)):
        return as_array(bare(value))
    parts = [array(arrays, v) for v in value]
    out = arrays.plainly(as_array, (value,), {})
    if len({np.shape(bare(v)) for v in parts}) == 1:
        after = arrays.follow("numpy.array", "stack", {"tensors": parts}, [out])
        arrays.done("numpy.array", [out], after)
    else:
        arrays.opaque("numpy.array", value, [out])
    return out


def basic(key: Any) -> bool:
    """Does the key select a view or an element, and no label chooses it?"""
    if isinstance(key, tuple):
        return all(map(basic, key))
    if isinstance(key, (bool, np.bool_)) or hasattr(key, "shadow"):
        return False
    return key is None or key is Ellipsis or isinstance(key, (slice, int, np.integer, str))


def one(a: np.ndarray, key: Any) -> bool:
    """Does the key select one element, and no label chooses it?"""
    keys = key if isinstance(key, tuple) else (key,)
    return basic(key) and len(keys) == a.ndim and all(isinstance(k, (int, np.integer)) for k in keys)


def whole(key: Any) -> tuple[Any, ...]:
    """The key of a view, also of a single element."""
    keys = key if isinstance(key, tuple) else (key,)
    return keys if any(k is Ellipsis for k in keys) else (*keys, Ellipsis)


def advanced(arrays: Arrays, a: np.ndarray, key: Any) -> tuple[np.ndarray, list[Any]]:
    """What is left of ``a`` once slices and new axes are taken, and the index of each of its dims
    (None: all)."""
    keys = list(key) if isinstance(key, tuple) else [key]
    keys = [k if basic(k) else array(arrays, k) for k in keys]
    taken = sum(_dims(k) for k in keys)
    if not any(k is Ellipsis for k in keys):
        keys.append(Ellipsis)
    at = next(i for i, k in enumerate(keys) if k is Ellipsis)
    keys[at : at + 1] = [slice(None)] * (a.ndim - taken)
    view: list[Any] = []
    indices: list[Any] = []
    for k in keys:
        if k is None or isinstance(k, slice):
            view.append(k)
            indices.append(None)
        else:
            view += [slice(None)] * _dims(k)
            indices.append(_whole_numbers(arrays, k))
    return a[tuple(view)], indices


def _whole_numbers(arrays: Arrays, k: Any) -> Any:
    """An index as torch takes it: of other types it takes none, or for masks."""
    if isinstance(k, np.ndarray):
        return k if k.dtype in (np.int64, bool) else arrays.labelled(k).astype(np.int64)
    out = as_array(bare(k)).astype(np.int64)
    arrays.write(out, getattr(k, "shadow", None))
    return out


def _dims(k: Any) -> int:
    """How many dims a part of a key takes."""
    if k is None or k is Ellipsis:
        return 0
    return k.ndim if isinstance(k, np.ndarray) and k.dtype == bool else 1
