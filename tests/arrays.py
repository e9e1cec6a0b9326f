"""Ground truth for numpy: functions of arrays, judged like functions of tensors (see ``oracle``)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from causaltrace.boundary.arrays import bare
from causaltrace.boundary.host import Host
from causaltrace.boundary.outside import Outside
from causaltrace.lattice.cells import Cells
from causaltrace.shadow import Shadow
from tests.oracle import Index, Notes, check, tracer

Given = Tensor | Index


class Case(NamedTuple):
    """A function of arrays. ``loose``: more is reported than there is. ``told``: it has no rule, or gives
    numbers to Python, so that what is reported is possible only."""

    fn: Callable[..., Any]
    inputs: tuple[Given, ...]
    loose: bool = False
    told: bool = False
    large: float = 10.0


def tensors(value: Any) -> Any:
    """Results as tensors: arrays of any strides and dtype, numbers, nested."""
    if isinstance(value, (list, tuple)):
        return [tensors(v) for v in value]
    if isinstance(value, dict):
        return [tensors(v) for v in value.values()]
    if value is None:
        return []
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.longdouble):
        value = float(value)
    if isinstance(value, np.timedelta64) or not isinstance(
        value, (np.ndarray, bool, int, float, complex, np.number, np.bool_)
    ):
        return torch.tensor(float(zlib.crc32(repr(value).encode())))
    if not isinstance(value, np.ndarray):
        return torch.tensor(complex(value))
    if value.dtype.kind in "fiu" and not value.dtype.isnative or value.dtype == np.longdouble:
        value = value.astype(np.float64)
    if value.dtype.kind not in "biufc" or value.dtype == np.clongdouble:
        return tensors(repr(value.tolist()))
    lies = not value.__array_interface__["data"][1] and all(s >= 0 for s in value.strides)
    return torch.from_numpy(value if lies else np.array(value, order="C"))


def of_tensors(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: tensors(fn(*[t.numpy() for t in given]))


def plain(given: Sequence[Given]) -> list[Tensor]:
    return [(i.tensor if isinstance(i, Index) else i).clone() for i in given]


def watched(fn: Callable[..., Any], *given: Given) -> tuple[Any, Notes]:
    """What ``fn`` gives on arrays with labels, bare, and what the tracer was told."""
    trace = tracer()
    inputs, first = plain(given), 0
    for t in inputs:
        lanes = torch.arange(first, first + t.numel(), dtype=torch.int32).view(*t.shape, 1) * 2 + 1
        trace.memory.write(t, Shadow(support=Cells(lanes.expand(*t.shape, 2).contiguous())))
        first += t.numel()
    trace.ledger.grow(first)
    with torch.compiler.set_stance("force_eager"), Host(trace, Outside(trace)), trace:
        out = fn(*[t.numpy() for t in inputs])
    assert isinstance(trace.recorder, Notes)
    return bare(out), trace.recorder


def same(a: Any, b: Any) -> None:
    """Equal to the bit: the same types, dtypes, shapes and values."""
    if isinstance(b, (list, tuple)):
        assert type(a) is type(b) and len(a) == len(b), (type(a), type(b))
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(b, dict):
        assert list(a) == list(b)
        same(list(a.values()), list(b.values()))
    elif isinstance(b, np.ndarray):
        assert isinstance(a, np.ndarray), type(a)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), (a.dtype, a.shape, b.dtype, b.shape)
        assert a.flags.c_contiguous == b.flags.c_contiguous
        assert a.__array_interface__["data"][1] == b.__array_interface__["data"][1]
        np.testing.assert_array_equal(a, b, strict=True)
    elif isinstance(b, np.generic):
        assert isinstance(a, np.generic) and a.dtype == b.dtype, (type(a), type(b))
        np.testing.assert_array_equal(a, b)
    elif not isinstance(b, Tensor):
        assert type(a) is type(b) and (a == b or a != a and b != b), (a, b)


def agrees(case: Case, kinds: int | Sequence[int] = 6) -> None:
    """What is reported covers what perturbation finds, exactly if claimed; values are numpy's own."""
    got, notes = watched(case.fn, *case.inputs)
    same(got, case.fn(*[t.numpy() for t in plain(case.inputs)]))
    if not case.told:
        assert not notes.opaque_ops, f"no rule for {notes.opaque_ops}"
        assert not notes.escapes, f"told of {notes.escapes}"
    exact = not case.loose and not case.told
    check(of_tensors(case.fn), *case.inputs, exact=exact, opaque=case.told, large=case.large, kinds=kinds)
