"""Functions that only move elements run on the numbers of the elements: where each of them goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from causaltrace.boundary.arrays import a_copy, bare, owner_of
from causaltrace.boundary.call import Call, results
from causaltrace.boundary.tables import NESTED, SEVERAL, VARIADIC
from causaltrace.lattice.cells import Cells
from causaltrace.rules import MOVE, Rule
from causaltrace.rules.call import OpCall, Result

#: How ``pad`` may fill without computing anything.
FILLED = ("constant", "edge", "wrap", "reflect", "symmetric")


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


def moved(call: Call) -> Any:
    """NotImplemented where values are computed, too."""
    given = call.given
    first = next(iter(given))
    inputs = given[first] if call.name in SEVERAL | VARIADIC else [given[first]]
    if call.name in NESTED:
        inputs = _leaves(given[first])
    inputs = [call.as_array(m) for m in inputs]
    if call.name == "pad":
        options = given.get("kwargs", {})
        if call.get("mode", "constant") not in FILLED or options.get("reflect_type", "even") != "even":
            return NotImplemented
    if call.others((first, "out")):
        return _repeated(call) if call.name == "repeat" else call.opaque()
    if call.get("out") is not None:
        return call.into(call.name, {"inputs": inputs, "numbers": _numbers(call, first, inputs)}, PLACED)
    if call.name in VARIADIC:
        call.args = tuple(inputs)
    elif call.name not in SEVERAL | NESTED and not isinstance(given[first], np.ndarray):
        call.replace(first, inputs[0])
    out = call.run()
    made, owners = results(out), [owner_of(bare(a)) for a in inputs if isinstance(a, np.ndarray)]
    fresh = [i for i, r in enumerate(made) if not _view(r, owners)]
    if fresh:
        numbers = _numbers(call, first, inputs)
        made = [made[i] for i in fresh]
        bound = {"inputs": inputs, "numbers": [numbers[i] for i in fresh]}
        call.arrays.done(call.full, made, call.arrays.follow(call.full, call.name, bound, made, PLACED))
    return out


def _repeated(call: Call) -> Any:
    """How often each element is repeated is told, since the number of results is; so is where each goes."""
    arrays, a, axis = call.arrays, call.array("a"), call.get("axis")
    if axis is None:
        a, axis = np.ravel(a), 0
    axis %= max(a.ndim, 1)
    arrays.told(call.full, call.given["repeats"])
    places = torch.from_numpy(
        arrays.plainly(np.repeat, (np.arange(a.shape[axis]), call.given["repeats"]), {})
    )
    arrays.tracer.host_data(places, [])
    return call.into("index", {"self": a, "indices": [*[None] * axis, places]})


def _leaves(value: Any) -> list[Any]:
    """What nested lists hold."""
    return [leaf for v in value for leaf in _leaves(v)] if isinstance(value, list) else [value]


def _filled(value: Any, leaves: Iterator[Any]) -> Any:
    """The same lists of other leaves."""
    return [_filled(v, leaves) for v in value] if isinstance(value, list) else next(leaves)


def _view(r: Any, owners: list[Any]) -> bool:
    return isinstance(r, np.ndarray) and any(owner_of(r) is owner for owner in owners)


def _numbers(call: Call, first: str, inputs: list[Any]) -> list[Any]:
    """For every result which element of the inputs each of its elements is, counted from 1 (0: none)."""
    numbers: list[Any] = []
    start = 1
    for a in inputs:
        numbers.append(np.arange(start, start + a.size).reshape(a.shape))
        start += a.size
    given = {k: v for k, v in call.given.items() if k not in (first, "out", "dtype", "casting")}
    if "kwargs" in given:
        given |= {k: v for k, v in given.pop("kwargs").items() if k != "constant_values"}
    args = numbers if call.name in VARIADIC else [numbers] if call.name in SEVERAL else numbers[:1]
    if call.name in NESTED:
        args = [_filled(call.given[first], iter(numbers))]
    out = call.arrays.plainly(call.func, args, given)
    return [a_copy(n, order="C") for n in results(out)]
