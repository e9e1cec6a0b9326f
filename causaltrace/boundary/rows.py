"""numpy's functions that are followed as another operation: one row a function.

Where no operation of the rule table does the same, an array that is computed with followed operations stands
for the result: it has the same elements' labels (``seen``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy._core import _methods, einsumfunc

from causaltrace.boundary.arrays import arrays_in, bare
from causaltrace.boundary.call import Call, results
from causaltrace.boundary.tables import ALONG, MIXED, ORDERED, OVER, SHAPED
from causaltrace.boundary.ufuncs import BLOCKS, EACH_AND_ALL, FOLD, JOIN, PRODUCT, RUNNING, WHOLE, over_dims
from causaltrace.rules import LEAVE, Rule, reduce

_clip: Any = vars(_methods)["_clip"]
_parse: Any = vars(einsumfunc)["_parse_einsum_input"]
#: Products of two vectors that are spelt out.
PAIRS = 1 << 22


class Row(NamedTuple):
    """``follow(call)`` gives the result. ``names``: the arguments whose labels it follows; with labels in any
    other argument the call has no rule."""

    follow: Callable[[Call], Any]
    names: str


# -- along dims -------------------------------------------------------------------------------------------


def over(call: Call) -> Any:
    if call.get("overwrite_input"):
        return NotImplemented
    a, where = call.array("a"), call.get("where", True)
    if where is not True:  # what is left out is any constant
        a = np.where(call.as_array(where), a, np.zeros((), a.dtype))
    bound, rule = over_dims(a, call.get("axis"), bool(call.get("keepdims", False)), call.get("initial"))
    if call.name in ("argmax", "argmin"):
        rule = Rule(LEAVE, reduce.where)
    return call.into("sum", bound, rule)


def average(call: Call) -> Any:
    if call.get("returned"):
        return NotImplemented
    a, weights = call.array("a"), call.get("weights")
    weights = None if weights is None else call.as_array(weights)
    return call.into("sum", *over_dims(a, call.get("axis"), bool(call.get("keepdims", False)), weights))


def along(call: Call) -> Any:
    a, axis = call.array("a"), call.get("axis")
    if axis is None:
        a, axis = np.ravel(a), 0
    return call.into(call.name, {"self": a, "dim": axis}, RUNNING)


def ordered(call: Call) -> Any:
    a, axis = call.array("a"), call.get("axis", -1)
    if axis is None:
        a, axis = np.ravel(a), 0
    return call.into(call.full, {"self": a, "dim": axis}, Rule(LEAVE, reduce.one_dim))


def mixed(call: Call) -> Any:
    """Everything into everything; also how many results there are."""
    out = call.run()
    made = results(out)
    found = list(arrays_in(list(call.given.values())))
    shaped = call.name in SHAPED or isinstance(call.get("bins"), str)
    escapes = ("inputs",) if shaped else ()
    after = call.arrays.follow(call.full, call.full, {"inputs": found}, made, WHOLE, escapes)
    call.arrays.done(call.full, made, after)
    return out


def trace(call: Call) -> Any:
    names = ("offset", "axis1", "axis2")
    d = np.diagonal(call.array("a"), **{name: call.given[name] for name in names if name in call.given})
    return call.into("sum", {"self": d, "dim": [-1]}, FOLD)


# -- chosen -----------------------------------------------------------------------------------------------


def where(call: Call) -> Any:
    condition = call.array("condition")
    if call.get("x") is None:
        return np.nonzero(condition)
    bound = {"condition": condition.astype(bool), "self": call.array("x"), "other": call.array("y")}
    return call.into("where", bound)


def nonzero(call: Call) -> Any:
    out = call.run()
    bound = {"self": call.array("a")}
    after = call.arrays.follow(call.full, "nonzero", bound, list(out), escapes=("self",))
    call.arrays.done(call.full, list(out), after)
    return out


def _within(index: Any, n: int, mode: str) -> Any:
    """An index into ``n`` places, that numpy has not refused."""
    if mode == "wrap":
        return np.remainder(index, max(n, 1))
    return np.clip(index, 0 if mode == "clip" else -n, n - 1)


def take(call: Call) -> Any:
    a, index = call.array("a"), call.array("indices")
    axis, mode = call.get("axis"), call.get("mode", "raise")
    if axis is None:
        a, axis = np.ravel(a), 0
    axis %= max(a.ndim, 1)
    if not a.ndim or not a.size:
        return NotImplemented
    if mode != "raise":
        index = _within(index, a.shape[axis], mode)
    indices = [index.astype(np.int64) if d == axis else None for d in range(axis + 1)]
    return call.into("index", {"self": a, "indices": indices})


def choose(call: Call) -> Any:
    index, *choices = np.broadcast_arrays(call.array("a"), *map(call.as_array, call.given["choices"]))
    mode = call.get("mode", "raise")
    index = _within(index, len(choices), "clip" if mode == "raise" else mode).astype(np.int64)
    seen = np.stack(choices)[(index, *np.indices(index.shape, sparse=True))]
    return call.into("clone", {"self": seen})


def compress(call: Call) -> Any:
    a, axis = call.array("a"), call.get("axis")
    (index,) = np.nonzero(call.array("condition"))
    return call.into("clone", {"self": np.take(a, index, axis)})


def take_along_axis(call: Call) -> Any:
    a, axis = call.array("arr"), call.get("axis", -1)
    if axis is None:  # numpy's own would read through ``flat``
        a, axis = np.ravel(a), 0
    return call.func._implementation(a, call.array("indices"), axis)


def searchsorted(call: Call) -> Any:
    bound = {"sorted_sequence": call.array("a"), "self": call.array("v")}
    if call.get("sorter") is not None:
        bound["sorter"] = call.array("sorter")
    return call.into("searchsorted", bound)


# -- written ----------------------------------------------------------------------------------------------


def copyto(call: Call) -> Any:
    dst, src, chosen = call.given["dst"], call.array("src"), call.get("where", True)
    call.onto(dst, src if chosen is True else np.where(call.as_array(chosen), src, dst))


def putmask(call: Call) -> Any:
    a, values = call.given["a"], call.array("values")
    if not values.size:
        return NotImplemented
    return call.onto(a, np.where(call.array("mask"), np.resize(values, np.shape(a)), a))


def place(call: Call) -> Any:
    """The n-th value goes to the n-th place where the mask is true."""
    a, mask, values = call.given["arr"], call.array("mask").astype(bool), np.ravel(call.array("vals"))
    if not values.size or mask.shape != a.shape:
        return NotImplemented
    turn = np.remainder(np.maximum(np.cumsum(mask) - 1, 0), values.size)
    return call.onto(a, np.where(mask, values[turn].reshape(a.shape), a))


def fill_diagonal(call: Call) -> Any:
    a, values = call.given["a"], np.ravel(call.array("val"))
    if not values.size:
        return NotImplemented
    mask = np.zeros(a.shape, dtype=bool)
    call.arrays.plainly(call.func, (mask, True, call.get("wrap", False)), {})
    turn = (np.cumsum(mask) - 1) % values.size
    return call.onto(a, np.where(mask, values[turn].reshape(a.shape), a))


def put(call: Call) -> Any:
    a, index, values = call.given["a"], call.array("ind"), call.array("v")
    mode = call.get("mode", "raise")
    if not values.size or not index.size or not np.size(a):
        return NotImplemented
    if mode != "raise":
        index = _within(index, np.size(a), mode)
    target, values = bare(a), np.resize(values, index.shape)
    flat = target.reshape(-1)
    if np.shares_memory(flat, target):
        target, indices = flat, [index.astype(np.int64)]
    else:
        indices = list(np.unravel_index(np.remainder(index, target.size), target.shape))
    bound = {"self": target, "indices": indices, "values": values}
    after = call.arrays.follow(call.full, "index_put", bound, [target], early=True)
    call.run()
    call.arrays.written(call.full, [a], [target], after)


# -- products ---------------------------------------------------------------------------------------------


def _blocks(call: Call, operands: list[Any], cores: list[int]) -> Any:
    """Sums over the last ``cores`` dims of products of ``operands``, which broadcast along the others."""
    return call.into(call.full, {"operands": operands, "cores": cores, "made": [0]}, BLOCKS)


def dot(call: Call) -> Any:
    a, b = (call.as_array(call.given[name]) for name in list(call.given)[:2])
    if call.name == "vdot":
        a, b = np.ravel(a), np.ravel(b)
    if not a.ndim or not b.ndim:
        return call.into("mul", {"self": a, "other": b})
    if a.ndim < 3 and (b.ndim < 2 or b.ndim == 2 and call.name == "dot"):
        return call.into("matmul", {"self": a, "other": b}, PRODUCT)
    if call.name == "dot":
        b = np.swapaxes(b, -1, -2) if b.ndim > 1 else b
    return _blocks(call, [np.expand_dims(a, tuple(range(a.ndim - 1, a.ndim + b.ndim - 2))), b], [1, 1])


def einsum(call: Call) -> Any:
    subscripts, output, operands = _parse(call.given["operands"])
    views, cores = [], []
    for letters, operand in zip(subscripts.split(","), operands, strict=True):
        unique = "".join(dict.fromkeys(letters))
        a = bare(operand)
        if unique != letters:
            a = np.einsum(f"{letters}->{unique}", a)
        kept = [c for c in output if c in unique]
        summed = [c for c in unique if c not in output]
        a = a.transpose([unique.index(c) for c in kept + summed])
        views.append(a[tuple(slice(None) if c in unique else None for c in output)])
        cores.append(len(summed))
    return _blocks(call, views, cores)


def correlate(call: Call) -> Any:
    """Every result is of a window of each."""
    a, v = np.ravel(call.array("a")), np.ravel(call.array("v"))
    n, m = a.size, v.size
    if not n or not m or n * m > PAIRS:
        return mixed(call)
    mode = call.get("mode", "valid" if call.name == "correlate" else "full")
    mode = {"v": "valid", "s": "same", "f": "full", 0: "valid", 1: "same", 2: "full"}.get(mode, mode)
    if call.name == "correlate":
        v = v[::-1]
    windows = np.lib.stride_tricks.sliding_window_view
    sums = [np.sum(windows(np.pad(x, size - 1), size), axis=1) for x, size in ((a, m), (v, n))]
    seen = np.add(*sums)
    short, total = min(n, m), n + m - 1
    length = {"full": total, "same": max(n, m), "valid": max(n, m) - short + 1}[mode]
    start = {"full": 0, "same": short - 1 - short // 2, "valid": short - 1}[mode]
    if call.name == "correlate" and n < m:
        start = total - start - length
    return call.into("clone", {"self": seen[start : start + length]})


# -- element by element -----------------------------------------------------------------------------------


def clip(call: Call) -> Any:
    low, high = (call.get(old, call.get(new)) for old, new in (("a_min", "min"), ("a_max", "max")))
    return _clip(call.array("a"), low, high, out=call.get("out"), **call.get("kwargs", {}))


def rounded(call: Call) -> Any:
    return call.into("round", {"self": call.array("a")}, JOIN)


def joined(call: Call) -> Any:
    """Indices as places and places as indices."""
    given = call.given["indices" if "indices" in call.given else "multi_index"]
    operands = [given] if call.name == "unravel_index" else list(given)
    return call.into(call.name, {str(i): call.as_array(x) for i, x in enumerate(operands)}, JOIN)


def linspace(call: Call) -> Any:
    if call.get("retstep") or call.get("axis", 0) != 0:
        return NotImplemented
    return call.into("linspace", {"self": call.array("start"), "other": call.array("stop")}, JOIN)


def isin(call: Call) -> Any:
    return call.into(
        "isin", {"self": call.array("element"), "table": [call.array("test_elements")]}, EACH_AND_ALL
    )


def interp(call: Call) -> Any:
    table = [
        call.as_array(value)
        for name in ("xp", "fp", "left", "right", "period")
        if (value := call.get(name)) is not None
    ]
    return call.into("interp", {"self": call.array("x"), "table": table}, EACH_AND_ALL)


ROWS: dict[str, Row] = {
    **dict.fromkeys(OVER, Row(over, "a where initial out")),
    **dict.fromkeys(ALONG, Row(along, "a out")),
    **dict.fromkeys(ORDERED, Row(ordered, "a")),
    **dict.fromkeys(MIXED, Row(mixed, "ar x a keys sample y bins weights")),
    "average": Row(average, "a weights"),
    "trace": Row(trace, "a out"),
    "where": Row(where, "condition x y"),
    "nonzero": Row(nonzero, "a"),
    "take": Row(take, "a indices out"),
    "choose": Row(choose, "a choices out"),
    "compress": Row(compress, "a condition out"),
    "take_along_axis": Row(take_along_axis, "arr indices"),
    "isin": Row(isin, "element test_elements"),
    "searchsorted": Row(searchsorted, "a v sorter"),
    "copyto": Row(copyto, "dst src where"),
    "putmask": Row(putmask, "a mask values"),
    "place": Row(place, "arr mask vals"),
    "fill_diagonal": Row(fill_diagonal, "a val"),
    "put": Row(put, "a ind v"),
    "dot": Row(dot, "a b out"),
    "inner": Row(dot, "a b"),
    "vdot": Row(dot, "a b"),
    "einsum": Row(einsum, "operands out"),
    "convolve": Row(correlate, "a v"),
    "correlate": Row(correlate, "a v"),
    "clip": Row(clip, "a a_min a_max min max out kwargs"),
    "round": Row(rounded, "a out"),
    "around": Row(rounded, "a out"),
    "unravel_index": Row(joined, "indices"),
    "ravel_multi_index": Row(joined, "multi_index"),
    "linspace": Row(linspace, "start stop"),
    "interp": Row(interp, "x xp fp left right period"),
}
