"""numpy's functions as operations of the rule table: one row a function.

MOVED run on the numbers of the elements to learn where each goes; PARTS are Python code of numpy's own, which
calls what is followed; FREE see no values; the other tables say which operation does the same. What is in
none of them is named in the report: all that went in may have come out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy._core import umath

from causaltrace.boundary import indexing
from causaltrace.boundary.arrays import Arrays, arrays_in, as_array, bare
from causaltrace.boundary.ufuncs import FOLD, PRODUCT, RUNNING, WHOLE
from causaltrace.lattice.cells import Cells
from causaltrace.rules import LEAVE, MOVE, Rule, reduce
from causaltrace.rules.call import OpCall, Result

_CLIP: Any = vars(umath)["clip"]  #: the ufunc, of which numpy tells in no other place

MOVED = frozenset(
    [
        "concatenate",
        "stack",
        "vstack",
        "hstack",
        "dstack",
        "column_stack",
        "roll",
        "flip",
        "fliplr",
        "flipud",
        "rot90",
        "tile",
        "repeat",
        "reshape",
        "ravel",
        "transpose",
        "swapaxes",
        "moveaxis",
        "rollaxis",
        "squeeze",
        "expand_dims",
        "broadcast_to",
        "broadcast_arrays",
        "atleast_1d",
        "atleast_2d",
        "atleast_3d",
        "split",
        "array_split",
        "hsplit",
        "vsplit",
        "dsplit",
        "diag",
        "diagonal",
        "diagflat",
        "tril",
        "triu",
        "copy",
        "permute_dims",
        "matrix_transpose",
        "unstack",
        "sliding_window_view",
        "pad",
        "resize",
    ]
)
#: Of these, those whose first argument is a list of arrays.
SEVERAL = ("concatenate", "stack", "vstack", "hstack", "dstack", "column_stack", "broadcast_arrays")
PARTS = frozenset(
    [
        "average",
        "diff",
        "gradient",
        "ediff1d",
        "outer",
        "kron",
        "cross",
        "isclose",
        "allclose",
        "array_equal",
        "array_equiv",
        "flatnonzero",
        "argwhere",
        "take_along_axis",
        "put_along_axis",
        "ptp",
        "angle",
        "real",
        "imag",
        "trapezoid",
        "unwrap",
        "meshgrid",
        "ix_",
        "select",
        "append",
        "insert",
        "delete",
        "median",
        "percentile",
        "quantile",
        "nansum",
        "nanmean",
        "nanmax",
        "nanmin",
        "nanprod",
        "fix",
        "digitize",
        "apply_along_axis",
        "apply_over_axes",
        "isin",
        "tensordot",
        "linalg.norm",
        "cov",
        "corrcoef",
        "vander",
    ]
)
FREE = frozenset(
    [
        "zeros_like",
        "ones_like",
        "empty_like",
        "result_type",
        "can_cast",
        "min_scalar_type",
        "shares_memory",
        "may_share_memory",
        "shape",
        "ndim",
        "size",
        "iscomplexobj",
        "isrealobj",
        "common_type",
    ]
)
#: Over the dims ``axis`` (None: all).
OVER = frozenset(
    [
        "sum",
        "prod",
        "max",
        "min",
        "amax",
        "amin",
        "all",
        "any",
        "mean",
        "std",
        "var",
        "count_nonzero",
        "argmax",
        "argmin",
    ]
)
#: Along ``axis`` (None: of the flattened array).
ALONG = {"cumsum": "cumsum", "cumprod": "cumprod", "cumulative_sum": "cumsum", "cumulative_prod": "cumprod"}
#: Another order of what lies along ``axis``.
ORDERED = {"sort": "sort", "argsort": "argsort", "partition": "sort", "argpartition": "argsort"}
#: Everything into everything, exactly.
MIXED = frozenset(
    [
        "unique",
        "unique_values",
        "unique_counts",
        "unique_inverse",
        "unique_all",
        "histogram",
        "bincount",
        "lexsort",
    ]
)


def called(arrays: Arrays, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``func(*args, **kwargs)``, bare or labelled."""
    if arrays.unlabelled(list(arrays_in([args, kwargs]))):
        return arrays.plainly(func, args, kwargs)
    name = f"{func.__module__}.{func.__name__}".removeprefix("numpy.")
    name = name.removeprefix("lib.stride_tricks.").removeprefix("lib._stride_tricks_impl.")
    if name in FREE:
        return arrays.plainly(func, args, kwargs)
    if name in PARTS:
        out = func._implementation(*args, **kwargs)
        stripped = [r for r in _results(out) if type(r) is np.ndarray and not arrays.known(r)]
        if stripped:
            arrays.opaque(f"numpy.{name}", [args, kwargs], stripped)
        return out
    given = _given(func, args, kwargs)
    row = ROWS.get(name)
    if row is None and name in MOVED:
        row = _moved
    if given is None or row is None:
        return _opaque(arrays, func, name, args, kwargs)
    return row(arrays, func, name, given)


def _given(func: Any, args: Any, kwargs: Any) -> dict[str, Any] | None:
    """Arguments by name, as far as they were given."""
    try:
        return dict(inspect.signature(func).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        return None


def _results(out: Any) -> list[Any]:
    if isinstance(out, (list, tuple)):
        return [r for o in out for r in _results(o)]
    return [] if out is None else [out]


def _plain(arrays: Arrays, func: Any, given: dict[str, Any]) -> Any:
    """The call itself."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    by_name = False
    for name, p in inspect.signature(func).parameters.items():
        if name not in given:
            by_name = True
        elif p.kind is p.VAR_POSITIONAL:
            args += given[name]
        elif p.kind is p.VAR_KEYWORD:
            kwargs |= given[name]
        elif p.kind is p.KEYWORD_ONLY or by_name and p.kind is not p.POSITIONAL_ONLY:
            kwargs[name] = given[name]
        else:
            args.append(given[name])
    return arrays.plainly(func, args, kwargs)


def _opaque(arrays: Arrays, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """No row: named in the report. What it writes to, it may write anything to."""
    for a in arrays_in([args, kwargs]):  # shapes may come of it, or files, or what functions do that it calls
        arrays.told(f"numpy.{name}", a)
    out = arrays.plainly(func, args, kwargs)
    arrays.opaque(f"numpy.{name}", [args, kwargs], _results(out))
    for a in arrays_in([args, kwargs]):
        if isinstance(a, np.ndarray) and name in ("place", "fill_diagonal", "put_along_axis"):
            arrays.opaque(f"numpy.{name}", [args, kwargs, a], [a])
    return out


def _into(
    arrays: Arrays, func: Any, name: str, given: dict[str, Any], op: str, bound: Any, rule: Rule | None
) -> Any:
    """Run a function, into ``out=`` if there is one, and follow it as ``op``."""
    full, target = f"numpy.{name}", given.get("out")
    if isinstance(target, np.ndarray):
        after = arrays.follow(full, op, bound, [target], rule, early=True)
        _plain(arrays, func, given)
        arrays.written(full, target, [target], after)
        return target
    out = _plain(arrays, func, given)
    results = _results(out)
    arrays.done(full, results, arrays.follow(full, op, bound, results, rule))
    return out


# -- movement ---------------------------------------------------------------------------------------------


def _placed(op: OpCall) -> Result:
    """Each result element is one of the inputs' (numbered from 1; 0: none of them)."""
    inputs, lattice = op.args["inputs"], op.lattice
    cells = [op.of(t) for t in inputs]
    present = [c for c in cells if c is not None]
    if not present:
        return None
    out: list[Cells | None] = []
    for numbers in op.args["numbers"]:

        def fn(*data: Any, numbers: Any = numbers) -> Any:
            rest = iter(data)
            width = data[0].shape[-1]
            flat = [data[0].new_full((1, width), lattice.lattice.bottom)]
            for t, c in zip(inputs, cells, strict=True):
                part = flat[0].expand(t.numel(), width) if c is None else next(rest)
                flat.append(part if c is None else part.expand(*t.shape, width).reshape(-1, width))
            return torch.cat(flat)[numbers]

        out.append(lattice.make(fn, *present, share=False, held=numbers.numel() * 8))
    return out if isinstance(op.out, (list, tuple)) else out[0]


PLACED = Rule(MOVE, _placed)


def _moved(arrays: Arrays, func: Any, name: str, given: dict[str, Any]) -> Any:
    """What only moves elements: the same on their numbers."""
    first = next(iter(given))
    several = name in SEVERAL or name.startswith("atleast")
    moved = given[first]
    parts = [indexing.array(arrays, m) for m in moved] if several else [indexing.array(arrays, moved)]
    if name == "broadcast_arrays" or name.startswith("atleast"):
        given[first] = tuple(parts)
    else:
        given[first] = parts if several else parts[0]
    rest = {k: v for k, v in given.items() if k != first}
    strange = rest.get("mode", "constant") not in ("constant", "edge", "wrap", "reflect", "symmetric")
    if (
        any(True for _ in arrays_in(list(rest.values())))
        or name == "pad"
        and strange
        or rest.get("out") is not None
    ):
        out = _plain(arrays, func, given)
        results = _results(out)
        if isinstance(rest.get("out"), np.ndarray):
            results = [rest["out"]]
        for a in arrays_in(list(rest.values())):
            arrays.told(f"numpy.{name}", a)
        arrays.opaque(f"numpy.{name}", [parts, rest], results)
        return out
    out = _plain(arrays, func, given)
    results = _results(out)
    if results and all(
        isinstance(r, np.ndarray) and np.shares_memory(r, bare(parts[0])) for r in results if r.size
    ):
        return out
    numbers, start = [], 1
    for part in parts:
        numbers.append(np.arange(start, start + part.size).reshape(part.shape))
        start += part.size
    numbered = dict(given)
    numbered[first] = (
        (tuple(numbers) if isinstance(given[first], tuple) else numbers) if several else numbers[0]
    )
    for key in ("dtype", "casting"):
        numbered.pop(key, None)
    if name == "pad" and "kwargs" in numbered:
        numbered["kwargs"] = {k: v for k, v in numbered["kwargs"].items() if k != "constant_values"}
    places = [np.ascontiguousarray(n) for n in _results(_plain(arrays, func, numbered))]
    bound = {"inputs": parts, "numbers": places}
    arrays.done(f"numpy.{name}", results, arrays.follow(f"numpy.{name}", name, bound, results, PLACED))
    return out


# -- the same operation -----------------------------------------------------------------------------------


def _over(arrays: Arrays, func: Any, name: str, given: dict[str, Any]) -> Any:
    a = indexing.array(arrays, given["a"])
    if given.get("where", True) is not True:
        if name not in ("sum", "any"):
            return _opaque(arrays, func, name, (), given)
        a, given = np.where(given["where"], a, 0), {k: v for k, v in given.items() if k != "where"}
    given["a"] = a
    axis = given.get("axis")
    dims = list(range(a.ndim)) if axis is None else list(axis) if isinstance(axis, tuple) else [axis]
    kept = given.get("keepdims", False)
    bound = {"self": a, "dim": dims, "keepdim": kept is True, "initial": given.get("initial")}
    rule = Rule(LEAVE, reduce.where) if name.startswith("arg") else FOLD
    return _into(arrays, func, name, given, "sum", bound if dims else {"self": a}, rule)


def _along(arrays: Arrays, func: Any, name: str, given: dict[str, Any]) -> Any:
    key = "a" if "a" in given else "x"
    a = indexing.array(arrays, given[key])
    if given.get("include_initial"):
        return _opaque(arrays, func, name, (), given)
    axis = given.get("axis")
    if axis is None:
        a, axis = np.ravel(a), 0
    given[key] = a
    return _into(arrays, func, name, given, ALONG[name], {"self": a, "dim": axis}, RUNNING)


def _ordered(arrays: Arrays, func: Any, name: str, given: dict[str, Any]) -> Any:
    a = indexing.array(arrays, given["a"])
    axis = given.get("axis", -1)
    if axis is None:
        a, axis, given["axis"] = np.ravel(a), 0, 0
    given["a"] = a
    return _into(
        arrays, func, name, given, ORDERED[name], {"self": a, "dim": axis}, Rule(LEAVE, reduce.one_dim)
    )


def _mixed(arrays: Arrays, func: Any, name: str, given: dict[str, Any]) -> Any:
    """Also how many results there are."""
    out = _plain(arrays, func, given)
    results = _results(out)
    found = list(arrays_in(list(given.values())))
    escapes = ("inputs",) if name.startswith("unique") or name == "bincount" else ()
    after = arrays.follow(f"numpy.{name}", name, {"inputs": found}, results, WHOLE, escapes)
    arrays.done(f"numpy.{name}", results, after)
    return out


def _where(arrays: Arrays, func: Any, name: str, given: dict[str, Any]) -> Any:
    if given.get("x") is None:
        return np.nonzero(given["condition"])
    x, y = (indexing.array(arrays, given[k]) for k in ("x", "y"))
    condition = indexing.array(arrays, given["condition"]).astype(bool)
    return _into(arrays, func, name, given, "where", {"condition": condition, "self": x, "other": y}, None)


def _nonzero(arrays: Arrays, func: Any, name: str, given: dict[str, Any]) -> Any:
    out = _plain(arrays, func, given)
    after = arrays.follow("numpy.nonzero", "nonzero", {"self": given["a"]}, list(out), escapes=("self",))
    arrays.done("numpy.nonzero", list(out), after)
    return out


def _take(arrays: Arrays, func: Any, name: str, given: dict[str, Any]) -> Any:
    a = indexing.array(arrays, given["a"])
    index = indexing.array(arrays, given["indices"])
    if given.get("mode", "raise") != "raise":
        return _opaque(arrays, func, name, (), given)
    axis = given.get("axis")
    if axis is None:
        a, axis = np.ravel(a), 0
    axis %= max(a.ndim, 1)
    indices = [index if d == axis else None for d in range(axis + 1)]
    return _into(arrays, func, name, given, "index", {"self": a, "indices": indices}, None)


def _searchsorted(arrays: Arrays, func: Any, name: str, given: dict[str, Any]) -> Any:
    a, v = (indexing.array(arrays, given[k]) for k in ("a", "v"))
    bound = {"sorted_sequence": a, "self": v}
    if given.get("sorter") is not None:
        bound["sorter"] = given["sorter"]
    return _into(arrays, func, name, given, "searchsorted", bound, None)


def _dot(arrays: Arrays, func: Any, name: str, given: dict[str, Any]) -> Any:
    a, b = (indexing.array(arrays, given[k]) for k in list(given)[:2])
    if not a.ndim or not b.ndim or name == "dot" and max(a.ndim, b.ndim) > 2 or name != "dot" and b.ndim > 1:
        return _mixed(arrays, func, name, given)
    return _into(arrays, func, name, given, "matmul", {"self": a, "other": b}, PRODUCT)


def _clip(arrays: Arrays, func: Any, name: str, given: dict[str, Any]) -> Any:
    low: Any = given.get("a_min", given.get("min"))
    high: Any = given.get("a_max", given.get("max"))
    a = given["a"]
    if low is None and high is None or given.get("kwargs"):
        return _opaque(arrays, func, name, (), given)
    if low is None:
        return np.minimum(a, high, out=given.get("out"))
    if high is None:
        return np.maximum(a, low, out=given.get("out"))
    return _CLIP(a, low, high, out=given.get("out"))


def _round(arrays: Arrays, func: Any, name: str, given: dict[str, Any]) -> Any:
    return _into(arrays, func, name, given, "round", {"self": given["a"]}, None)


def _copyto(arrays: Arrays, func: Any, name: str, given: dict[str, Any]) -> Any:
    dst, src = given["dst"], given["src"]
    if given.get("where", True) is not True:
        src = np.where(given["where"], src, dst)
    indexing.write(arrays, dst, Ellipsis, src if isinstance(src, np.ndarray) else as_array(bare(src)))


def _putmask(arrays: Arrays, func: Any, name: str, given: dict[str, Any]) -> Any:
    a, mask, values = given["a"], given["mask"], indexing.array(arrays, given["values"])
    if np.size(values) == 1:
        indexing.write(arrays, a, Ellipsis, np.where(mask, values, a))
    else:
        indexing.write(arrays, a, Ellipsis, np.where(mask, np.resize(values, np.shape(a)), a))


def _put(arrays: Arrays, func: Any, name: str, given: dict[str, Any]) -> Any:
    flat = bare(given["a"]).reshape(-1)
    if not np.shares_memory(flat, bare(given["a"])) or given.get("mode", "raise") != "raise":
        return _opaque(arrays, func, name, (), given)
    index = indexing.array(arrays, given["ind"])
    indexing.write(
        arrays, _as(given["a"], flat), index, np.resize(indexing.array(arrays, given["v"]), np.shape(index))
    )


def _as(a: np.ndarray, view: np.ndarray) -> np.ndarray:
    """A view of the kind of array that ``a`` is."""
    return view if type(a) is np.ndarray else view.view(type(a))


ROWS: dict[str, Callable[[Arrays, Any, str, dict[str, Any]], Any]] = {
    **dict.fromkeys(OVER, _over),
    **dict.fromkeys(ALONG, _along),
    **dict.fromkeys(ORDERED, _ordered),
    **dict.fromkeys(MIXED, _mixed),
    "where": _where,
    "nonzero": _nonzero,
    "take": _take,
    "searchsorted": _searchsorted,
    "dot": _dot,
    "inner": _dot,
    "vdot": _dot,
    "clip": _clip,
    "round": _round,
    "copyto": _copyto,
    "putmask": _putmask,
    "put": _put,
}
