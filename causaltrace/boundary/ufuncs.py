"""Universal functions: element by element, and their reductions, as operations of the rule table."""

from __future__ import annotations

from typing import Any

import numpy as np

from causaltrace.boundary.arrays import Arrays, bare
from causaltrace.boundary.indexing import advanced, array, basic, whole
from causaltrace.rules import LEAVE, POINT, Rule, matmul, pointwise, reduce
from causaltrace.rules.call import OpCall, Result
from causaltrace.rules.scatter import index_put

#: Ufuncs that are called otherwise in the rule table, and the names of their arguments there.
NAMES = {
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "power": "pow",
    "absolute": "abs",
    "negative": "neg",
    "float_power": "pow",
    "clip": "clamp",
    "equal": "eq",
    "not_equal": "ne",
}
#: Rows of the table that are more exact than the union of the operands.
EXACT = ("add", "mul", "div", "pow", "bitwise_and", "logical_and", "bitwise_or", "logical_or", "heaviside")
ARGUMENTS = {"pow": ("self", "exponent"), "heaviside": ("self", "values"), "clamp": ("self", "min", "max")}
#: Those that add: an exact zero changes nothing, wherever it lands.
ADDING = ("add", "subtract", "bitwise_or", "logical_or")


def _each(op: OpCall) -> Result:
    """out = union of the operands, in every result."""
    return pointwise.join(op)


def _folded(op: OpCall) -> Result:
    """Over the reduced dims, from a first value."""
    one = reduce.over(op)
    assert not isinstance(one, list)
    return op.lattice.join(one, op.lattice.everything(op.cells("initial")))


def _stirred(op: OpCall) -> Result:
    """self, changed at the indices with what is there: it may hold itself, the values and the indices."""
    lattice, x = op.lattice, op.tensor("self")
    other = [t for t in op.inputs() if t is not x]
    for value in op.args["indices"]:
        other += [value] if value is not None else []
    return lattice.join(op.cells("self"), *[lattice.everything(op.of(t), x.ndim) for t in other])


def _pairs(op: OpCall) -> Result:
    """a @ b for any number of dims: S(row of a) | S(column of b), batches kept apart."""
    lattice, a, b = op.lattice, op.tensor("self"), op.tensor("other")
    left = lattice.reduce(op.cells("self"), [a.ndim - 1], keepdim=b.ndim > 1)
    right = lattice.reduce(op.cells("other"), [max(0, b.ndim - 2)], keepdim=a.ndim > 1 and b.ndim > 1)
    if a.ndim > 1 and b.ndim == 1:
        right = lattice.everything(op.cells("other"), 1)
    return lattice.join(left, right)


def _product(op: OpCall) -> Result:
    """a @ b, with zeros that cut where both are matrices."""
    a, b = op.tensor("self"), op.tensor("other")
    if a.ndim == b.ndim == 2:
        op.args["mat2"] = b
        return matmul.mm(op)
    return _pairs(op)


JOIN, FOLD = Rule(POINT, _each), Rule(LEAVE, _folded)
STIR, ADD_AT = Rule(LEAVE, _stirred), Rule(LEAVE, index_put)
PRODUCT, WHOLE = Rule(LEAVE, _product), Rule(LEAVE, reduce.whole)
RUNNING = Rule(LEAVE, reduce.running)


def called(
    arrays: Arrays, ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """``getattr(ufunc, method)(*inputs, **options)``, bare."""
    where = options.get("where", True)
    if where is not True:
        if method == "reduce":  # what is left out is the same as nothing
            options = {**options, "where": True}
            initial = options.get("initial", ufunc.identity)
            if initial is None:
                return _opaque(arrays, ufunc, method, inputs, {**options, "where": where})
            return called(arrays, ufunc, method, (np.where(where, inputs[0], initial), *inputs[1:]), options)
        return _opaque(arrays, ufunc, method, inputs, options)
    if not _numpys(ufunc):  # a Python function may do anything with the elements
        for x in inputs:
            if isinstance(x, np.ndarray) or hasattr(x, "shadow"):
                arrays.touch(f"numpy ufunc {ufunc.__name__}", arrays.read(x))
    if method == "__call__":
        return _elements(arrays, ufunc, inputs, options)
    if method in ("reduce", "accumulate") and ufunc.signature is None:
        return _folding(arrays, ufunc, method, *inputs, **options)
    if method == "at":
        return _at(arrays, ufunc, *inputs)
    if method == "outer":
        a, b = (array(arrays, x) for x in inputs)
        a = a if not isinstance(a, np.ndarray) else a.reshape(a.shape + (1,) * np.ndim(b))
        return _elements(arrays, ufunc, (a, b), options)
    return _opaque(arrays, ufunc, method, inputs, options)


def _numpys(ufunc: np.ufunc) -> bool:
    """Is it compiled code that sees one element at a time?"""
    return ufunc.types != ["?" * 0] and not any(
        t.replace("O", "").replace("->", "") == "" for t in ufunc.types[:1]
    )


def _elements(arrays: Arrays, ufunc: np.ufunc, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    full = f"numpy.{ufunc.__name__}"
    if ufunc.signature is not None and ufunc.__name__ != "matmul":
        return _opaque(arrays, ufunc, "__call__", inputs, options)
    name = NAMES.get(ufunc.__name__, ufunc.__name__)
    operands = [array(arrays, x) if isinstance(x, (list, tuple)) else x for x in inputs]
    bound = dict(zip(ARGUMENTS.get(name, ("self", "other", "third", "fourth")), operands, strict=False))
    rule = PRODUCT if name == "matmul" else None if name in EXACT else JOIN
    outs = options.get("out")
    if outs is not None and any(o is not None for o in outs):
        after = arrays.follow(full, name, bound, [o for o in outs if o is not None], rule, early=True)
        ufunc(*bare(inputs), **bare(options))
        for out in outs:
            arrays.written(full, out, [out], after)
        return outs[0] if len(outs) == 1 else outs
    out = ufunc(*bare(inputs), **bare(options))
    results = out if isinstance(out, tuple) else [out]
    arrays.done(full, results, arrays.follow(full, name, bound, results, rule))
    return out


def _folding(
    arrays: Arrays,
    ufunc: np.ufunc,
    method: str,
    a: Any,
    axis: Any = 0,
    dtype: Any = None,
    out: Any = None,
    **rest: Any,
) -> Any:
    """``reduce`` and ``accumulate``."""
    a = array(arrays, a)
    running = method == "accumulate"
    full = f"numpy.{ufunc.__name__}.{method}"
    if running:
        bound = {"self": a, "dim": axis}
    else:
        dims = list(range(a.ndim)) if axis is None else list(axis) if isinstance(axis, tuple) else [axis]
        bound = {
            "self": a,
            "dim": dims,
            "keepdim": rest.get("keepdims", False),
            "initial": rest.get("initial"),
        }
        if not dims:
            bound = {"self": a}
    name = ("cumsum" if ufunc.__name__ == "add" else "cumprod") if running else "sum"
    rule = RUNNING if running else FOLD if bound.get("dim") else JOIN
    target = out[0] if isinstance(out, tuple) else out
    plain = {"axis": axis, "dtype": dtype, "out": bare(target), **bare(rest)}
    if target is not None:
        after = arrays.follow(full, name, bound, [target], rule, early=True)
        getattr(ufunc, method)(bare(a), **plain)
        arrays.written(full, target, [target], after)
        return target
    result = getattr(ufunc, method)(bare(a), **plain)
    arrays.done(full, [result], arrays.follow(full, name, bound, [result], rule))
    return result


def _at(arrays: Arrays, ufunc: np.ufunc, a: Any, indices: Any, *values: Any) -> None:
    """``ufunc.at(a, indices, values)``: in place, also where an index comes up again."""
    full = f"numpy.{ufunc.__name__}.at"
    plain = bare(a)
    place: np.ndarray
    chosen: list[Any] = []
    if basic(indices):
        place = plain[whole(indices)]
    else:
        place, chosen = advanced(arrays, plain, indices)
    given = [array(arrays, v) for v in values]
    bound: dict[str, Any] = {"self": place, "indices": chosen}
    if given:
        bound["values"] = given[0]
    adds = ufunc.__name__ in ADDING and bool(chosen)
    if adds:
        bound["accumulate"] = True
    after = arrays.follow(full, "index_put", bound, [place], ADD_AT if adds else STIR, early=True)
    ufunc.at(plain, bare(indices), *bare(values))
    arrays.written(full, a, [place], after)


def _opaque(arrays: Arrays, ufunc: np.ufunc, method: str, inputs: Any, options: dict[str, Any]) -> Any:
    full = f"numpy.{ufunc.__name__}" + ("" if method == "__call__" else f".{method}")
    out = getattr(ufunc, method)(*bare(inputs), **bare(options))
    arrays.opaque(full, [*inputs, *options.values()], out if isinstance(out, tuple) else [out])
    return out
