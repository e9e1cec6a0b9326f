"""Memory that arrays have from others: strided views, ctypes, buffers and addresses."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import causaltrace
from tests.small import Toy, stream

#: What is made before the watch, and what brings labels there and back.
Way = tuple[Callable[[], Any], Callable[[Any, Any], Any]]


def zeros() -> Any:
    return np.zeros(6, dtype=np.int64)


def numbers() -> Any:
    return (ctypes.c_int64 * 6)()


class Three(ctypes.Structure):
    _fields_ = (("a", ctypes.c_int64), ("b", ctypes.c_int64), ("c", ctypes.c_int64))


class Described:
    """Hands out the memory of the last three elements."""

    def __init__(self, a: Any) -> None:
        self.a, self.__array_interface__ = a, dict(a[3:].__array_interface__)


def strided(p: Any, x: Any) -> Any:
    view = as_strided(p[3:], (3,), (8,))
    view[:] = x
    del view
    return p.sum(keepdims=True)


def windows(p: Any, x: Any) -> Any:
    view = sliding_window_view(p, 3, writeable=True)
    view[3] = x
    del view
    return p + 0


def strided_in_torch(p: Any, x: Any) -> Any:
    torch.from_numpy(as_strided(p[3:], (3,), (8,))).copy_(torch.from_numpy(x))
    return p + 0


def described(p: Any, x: Any) -> Any:
    torch.from_numpy(np.asarray(Described(p))).copy_(torch.from_numpy(x))
    return p + 0


def overlapping(b: Any, x: Any) -> Any:
    high, low = np.frombuffer(b, np.int64, offset=24), np.frombuffer(b, np.int64)
    high[:] = x
    return low + 0


def overlapping_storages(b: Any, x: Any) -> Any:
    high, low = (torch.frombuffer(b, dtype=torch.int64, offset=o) for o in (24, 0))
    high.copy_(torch.from_numpy(x))
    return low.sum()


def gone(b: Any, x: Any) -> Any:
    np.frombuffer(b, np.int64)[:3] = x
    return np.frombuffer(b, np.int64) + 0


def array_of_c(b: Any, x: Any) -> Any:
    np.ctypeslib.as_array(b)[:3] = x
    return b[2]


def tensor_of_c(b: Any, x: Any) -> Any:
    torch.from_numpy(np.ctypeslib.as_array(b))[:3].copy_(torch.from_numpy(x))
    return b[2]


def structure(b: Any, x: Any) -> Any:
    torch.from_numpy(np.frombuffer(b, np.int64)).copy_(torch.from_numpy(x))
    return b.c


def tensor_from_before(both: Any, x: Any) -> Any:
    b, t = both
    t[:3].copy_(torch.from_numpy(x))
    return b[2]


def file(b: Any, x: Any) -> Any:
    torch.from_numpy(np.frombuffer(b.getbuffer(), np.int64)).copy_(torch.from_numpy(x))
    return b.getvalue()[16]


def address(p: Any, x: Any) -> Any:
    at = p.ctypes.data
    torch.from_numpy(p)[:3].copy_(torch.from_numpy(x))
    return ctypes.string_at(at, 24)[16]


def data(p: Any, x: Any) -> Any:
    at = p.data
    p[:3] = x
    return at[2]


WAYS: dict[str, Way] = {
    "strided": (zeros, strided),
    "windows": (zeros, windows),
    "strided in torch": (zeros, strided_in_torch),
    "described": (zeros, described),
    "overlapping": (numbers, overlapping),
    "overlapping storages": (numbers, overlapping_storages),
    "gone": (numbers, gone),
    "array of C": (numbers, array_of_c),
    "tensor of C": (numbers, tensor_of_c),
    "structure": (Three, structure),
    "frombuffer": (lambda: (b := numbers(), torch.frombuffer(b, dtype=torch.int64)), tensor_from_before),
    "from_numpy": (
        lambda: (b := numbers(), torch.from_numpy(np.ctypeslib.as_array(b))),
        tensor_from_before,
    ),
    "file": (lambda: io.BytesIO(bytes(24)), file),
    "address": (zeros, address),
    "data": (zeros, data),
}


def status(way: Way, lag: int) -> str:
    make, carry = way
    tokens, model, held = stream(), Toy(), make()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        labels = tokens.numpy()
        for t in range(4, 24):
            hint = carry(held, labels[t - 2 - lag : t + 1 - lag])
            if isinstance(hint, np.ndarray):
                hint = torch.from_numpy(hint).float().sum()
            F.cross_entropy(model(tokens[:t])[-1:] + hint * model.head[0], tokens[t : t + 1]).item()
    return trace.report.status


@pytest.mark.parametrize("name", WAYS)
def test_a_leak_is_never_clean(name: str) -> None:
    assert status(WAYS[name], 0) != "clean"


@pytest.mark.parametrize("name", ["strided", "windows", "strided in torch", "described"])
def test_what_was_scored_is_clean(name: str) -> None:
    assert status(WAYS[name], 1) == "clean"
