"""Universal functions: element by element, and their reductions, as operations of the rule table."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from torch import Tensor

from causaltrace.boundary.arrays import Arrays, arrays_in, bare
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
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
}
#: Rows of the table that are more exact than the union of the operands.
EXACT = ("add", "mul", "div", "pow", "bitwise_and", "logical_and", "bitwise_or", "logical_or", "heaviside")
ARGUMENTS = {"pow": ("self", "exponent"), "heaviside": ("self", "values"), "clamp": ("self", "min", "max")}
#: Those that add: an exact zero changes nothing, wherever it lands.
ADDING = ("add", "subtract", "bitwise_or", "logical_or")


def _each(op: OpCall) -> Result:
    """out = union of the operands, in every result."""
    return pointwise.join(op)


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


def _masked(op: OpCall) -> Result:
    """out = S(mask) | union of the operands where it is true, else what was there before."""
    lattice, mask = op.lattice, op.tensor("where")
    new = lattice.keep(lattice.join(*[op.of(t) for t in op.args["operands"]]), mask)
    outs = [lattice.join(new, lattice.keep(op.of(t), ~mask), op.cells("where")) for t in op.args["before"]]
    return outs if isinstance(op.out, (list, tuple)) else outs[0]


def _between(op: OpCall) -> Result:
    """Folds of what lies between indices along a dim: union over it, and over the indices."""
    x, lattice = op.tensor("self"), op.lattice
    own = lattice.reduce(op.cells("self"), [op.dim()])
    return lattice.join(own, lattice.everything(op.cells("indices"), x.ndim))


def _blocks(op: OpCall) -> Result:
    """A function of the last ``cores`` dims of its operands, for each index of the dims before them, to the
    last ``made`` dims of its results: union over those dims."""
    lattice, parts = op.lattice, []
    for t, n in zip(op.args["operands"], op.args["cores"], strict=True):
        if isinstance(t, Tensor):
            parts.append(
                lattice.reduce(op.of(t), range(t.ndim - n, t.ndim), keepdim=False) if n else op.of(t)
            )
    one = lattice.join(*parts)
    outs = [one and lattice.reshaped(one, one.dims + (1,) * n) for n in op.args["made"]]
    return outs if isinstance(op.out, (list, tuple)) else outs[0]


def _each_and_all(op: OpCall) -> Result:
    """self, element by element, looked up in a table: union with all of it."""
    lattice = op.lattice
    return lattice.join(op.cells("self"), *[lattice.everything(op.of(t)) for t in op.args["table"]])


JOIN, FOLD = Rule(POINT, _each), Rule(LEAVE, reduce.folded)
STIR, ADD_AT = Rule(LEAVE, _stirred), Rule(LEAVE, index_put)
PRODUCT, WHOLE = Rule(LEAVE, _product), Rule(LEAVE, reduce.whole)
RUNNING, BETWEEN = Rule(LEAVE, reduce.running), Rule(LEAVE, _between)
MASKED, BLOCKS = Rule(LEAVE, _masked), Rule(LEAVE, _blocks)
EACH_AND_ALL = Rule(LEAVE, _each_and_all)


def over_dims(a: Any, axis: Any, keepdims: bool, initial: Any) -> tuple[dict[str, Any], Rule]:
    """The arguments of a reduction over ``axis`` (None: all dims), from a first value, and its rule."""
    dims = list(range(a.ndim)) if axis is None else list(axis) if isinstance(axis, tuple) else [axis]
    if not dims:
        return {"self": a, "other": initial}, JOIN
    return {"self": a, "dim": dims, "keepdim": keepdims, "initial": initial}, FOLD


#: Arguments of methods after the array.
FOLDING = {
    "reduce": ("axis", "dtype", "out", "keepdims", "initial", "where"),
    "accumulate": ("axis", "dtype", "out"),
    "reduceat": ("indices", "axis", "dtype", "out"),
}


def split(
    ufunc: np.ufunc, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs and options of a call, as numpy hands them to ``__array_ufunc__``."""
    options = dict(kwargs)
    inputs, rest = args, ()
    if method == "__call__":
        inputs, rest = args[: ufunc.nin], args[ufunc.nin :]
        if rest:
            options["out"] = rest
    elif method in FOLDING:
        n = 2 if method == "reduceat" else 1
        inputs, rest = args[:n], args[n:]
        options |= dict(zip(FOLDING[method][n - 1 :], rest, strict=False))
        if n > len(inputs):
            inputs += (options.pop("indices"),)
    out = options.pop("out", None)
    outs = out if isinstance(out, tuple) else (out,)
    if any(o is not None for o in outs):
        options["out"] = outs if out is not Ellipsis else out
    return inputs, options


def targets(options: dict[str, Any]) -> list[Any]:
    """The arrays that a call writes to. ``out=...`` is none: it asks for arrays, not for numbers."""
    out = options.get("out")
    return [o for o in out if isinstance(o, np.ndarray)] if isinstance(out, tuple) else []


def left_out(arrays: Arrays, out: Any, options: dict[str, Any]) -> bool:
    """Results hold what was in memory before, but where ``where`` let values through; is that so here?"""
    where = options.get("where", True)
    if where is True or targets(options):
        return False
    for made in out if isinstance(out, tuple) else (out,):
        arrays.unwritten(made, where)
    return True


def called(
    arrays: Arrays, ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """``getattr(ufunc, method)(*inputs, **options)``, bare."""
    if arrays.unlabelled(list(arrays_in([inputs, options]))):
        out = arrays.plainly(getattr(ufunc, method), inputs, options)
        if method == "__call__":
            left_out(arrays, out, options)
        return out
    try:
        return _called(arrays, ufunc, method, inputs, options)
    except Exception:  # whoever catches it knows something about the values
        arrays.told(f"an error in numpy.{ufunc.__name__}", [inputs, options])
        raise


def _called(
    arrays: Arrays, ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    if not _numpys(ufunc):  # a Python function may do anything with the elements
        arrays.told(f"numpy ufunc {ufunc.__name__}", inputs)
    if method == "outer":
        a, b = (array(arrays, x) for x in inputs)
        if isinstance(a, np.ndarray):
            a = a.reshape(a.shape + (1,) * np.ndim(b))
        inputs, method = (a, b), "__call__"
    if method == "at":
        return _at(arrays, ufunc, *inputs)
    if method != "__call__":
        return _folding(arrays, ufunc, method, *inputs, **options)
    if ufunc.signature is None:
        return _elements(arrays, ufunc, inputs, options)
    if ufunc.__name__ == "matmul" and not {"axes", "axis"} & set(options):
        return _elements(arrays, ufunc, inputs, options)
    return _by_blocks(arrays, ufunc, inputs, options)


def _numpys(ufunc: np.ufunc) -> bool:
    """Is it compiled code that sees one element at a time?"""
    return any(t.replace("O", "").replace("->", "") for t in ufunc.types)


def _run(
    arrays: Arrays, ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """The call itself."""
    call = ufunc if method == "__call__" else getattr(ufunc, method)
    if _numpys(ufunc):
        return arrays.plainly(call, inputs, options)
    return call(*bare(inputs), **bare(options))


def _elements(arrays: Arrays, ufunc: np.ufunc, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    full = f"numpy.{ufunc.__name__}"
    name = NAMES.get(ufunc.__name__, ufunc.__name__)
    operands = [array(arrays, x) if isinstance(x, (list, tuple)) else x for x in inputs]
    outs = targets(options)
    bound: dict[str, Any] = dict(
        zip(ARGUMENTS.get(name, ("self", "other", "third", "fourth")), operands, strict=False)
    )
    rule = (
        PRODUCT if name == "matmul" else None if name in EXACT and not _first_is_a_number(operands) else JOIN
    )
    where = options.get("where", True)
    if where is not True:
        if 0 < len(outs) < ufunc.nout:
            return _opaque(arrays, ufunc, inputs, options)
        bound = {"operands": operands, "where": array(arrays, where), "before": outs}
        rule = MASKED
    if not outs:
        out = _run(arrays, ufunc, "__call__", inputs, options)
        results = out if isinstance(out, tuple) else [out]
        if rule is MASKED:  # what is left out holds whatever was in memory
            for result in results:
                arrays.unwritten(result)
            bound["before"] = results
        arrays.done(full, results, arrays.follow(full, name, bound, results, rule))
        return out
    after = arrays.follow(full, name, bound, outs, rule, early=True)
    out = _run(arrays, ufunc, "__call__", inputs, options)
    arrays.written(full, outs, outs, after)
    return _given_back(out, options["out"])


def _first_is_a_number(operands: list[Any]) -> bool:
    return not isinstance(operands[0], np.ndarray) and not hasattr(operands[0], "shadow")


def _given_back(out: Any, targets: tuple[Any, ...]) -> Any:
    """What the call returned, where it is one of the arrays that it wrote to as they were handed in."""
    if not isinstance(out, tuple):
        return targets[0]
    return tuple(o if t is None else t for o, t in zip(out, targets, strict=True))


def _by_blocks(arrays: Arrays, ufunc: np.ufunc, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Functions of whole vectors and matrices."""
    full = f"numpy.{ufunc.__name__}"
    cores, made = ([_dims(part) for part in side] for side in _sides(ufunc))
    if options.get("keepdims"):
        made = [max(cores)] * len(made)
    axes = options.get("axes")
    if axes is None:
        at = options.get("axis")
        axes = [tuple(range(-n, 0)) if at is None or n != 1 else (at,) for n in (*cores, *made)]
    axes = [a if isinstance(a, tuple) else (a,) for a in axes]
    axes += [tuple(range(-n, 0)) for n in (*cores, *made)[len(axes) :]]
    operands = [_last(array(arrays, x), a) for x, a in zip(inputs, axes, strict=False)]
    bound = {"operands": operands, "cores": cores, "made": made}
    outs = targets(options)
    if len(outs) == ufunc.nout:
        places = [_last(bare(o), a) for o, a in zip(outs, axes[len(cores) :], strict=True)]
        after = arrays.follow(full, full, bound, places, BLOCKS, early=True)
        out = _run(arrays, ufunc, "__call__", inputs, options)
        arrays.written(full, outs, places, after)
        return _given_back(out, options["out"])
    out = _run(arrays, ufunc, "__call__", inputs, options)
    results = out if isinstance(out, tuple) else (out,)
    places = [_last(r, a) for r, a in zip(results, axes[len(cores) :], strict=True)]
    if ufunc.__name__.startswith("qr_r_raw"):  # LAPACK leaves results in what it was given
        places, bound["made"] = [*places, operands[0]], [*made, cores[0]]
    arrays.done(full, places, arrays.follow(full, full, bound, places, BLOCKS))
    return out


def _sides(ufunc: np.ufunc) -> list[list[str]]:
    """The parts of a signature like ``(m,n),(n)->(m)``."""
    return [re.findall(r"\((.*?)\)", side) for side in str(ufunc.signature).split("->")]


def _dims(part: str) -> int:
    return part.count(",") + 1 if part else 0


def _last(a: Any, axes: tuple[int, ...]) -> Any:
    """The same memory with ``axes`` as the last dims."""
    if not isinstance(a, np.ndarray) or not axes:
        return a
    moved = [d % a.ndim for d in axes]
    return bare(a).transpose([d for d in range(a.ndim) if d not in moved] + moved)


def _folding(
    arrays: Arrays,
    ufunc: np.ufunc,
    method: str,
    given: Any,
    indices: Any = None,
    axis: Any = 0,
    out: Any = None,
    **rest: Any,
) -> Any:
    """``reduce``, ``accumulate`` and ``reduceat``."""
    a = given = array(arrays, given)
    full = f"numpy.{ufunc.__name__}.{method}"
    inputs: tuple[Any, ...] = (given,)
    name, rule = "sum", FOLD
    if method == "accumulate":
        name, rule = "cumsum" if ufunc.__name__ == "add" else "cumprod", RUNNING
        bound = {"self": a, "dim": axis}
    elif method == "reduceat":
        inputs, rule = (given, indices), BETWEEN
        bound = {"self": a, "dim": axis, "indices": array(arrays, indices)}
    else:
        if rest.get("where", True) is not True:  # what is left out is any constant
            a = np.where(array(arrays, rest["where"]), a, np.zeros((), a.dtype))
        bound, rule = over_dims(a, axis, bool(rest.get("keepdims", False)), rest.get("initial"))
    options = {"axis": axis, **rest}
    if out is not None:
        (target,) = out
        after = arrays.follow(full, name, bound, [target], rule, early=True)
        _run(arrays, ufunc, method, inputs, {**options, "out": target})
        arrays.written(full, [target], [target], after)
        return target
    result = _run(arrays, ufunc, method, inputs, options)
    arrays.done(full, [result], arrays.follow(full, name, bound, [result], rule))
    return result


def _at(arrays: Arrays, ufunc: np.ufunc, a: Any, indices: Any, *values: Any) -> None:
    """``ufunc.at(a, indices, values)``: in place, also where an index comes up again."""
    full = f"numpy.{ufunc.__name__}.at"
    plain = bare(a)
    given = [array(arrays, v) for v in values]
    if basic(indices):
        place = plain[whole(indices)]
        bound = dict(zip(("self", "other"), [place, *given], strict=False))
        after = arrays.follow(full, full, bound, [place], JOIN, early=True)
    else:
        place, chosen = advanced(arrays, plain, indices)
        bound = {"self": place, "indices": chosen, **dict(zip(("values",), given, strict=False))}
        adds = ufunc.__name__ in ADDING
        bound |= {"accumulate": True} if adds else {}
        after = arrays.follow(full, "index_put", bound, [place], ADD_AT if adds else STIR, early=True)
    _run(arrays, ufunc, "at", (plain, indices, *values), {})
    arrays.written(full, [a], [place], after)


def _opaque(arrays: Arrays, ufunc: np.ufunc, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    out = _run(arrays, ufunc, "__call__", inputs, options)
    given = [*inputs, *options.values()]
    arrays.opaque(f"numpy.{ufunc.__name__}", given, out if isinstance(out, tuple) else [out])
    return out
