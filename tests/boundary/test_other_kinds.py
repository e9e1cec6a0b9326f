"""Arrays that torch has no tensor for (other byte orders, text, records): element by element, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import causaltrace
from tests.small import Toy, stream

Make = Callable[[Any], Any]
FIELDS = np.dtype([("t", np.int64), ("i", np.int32), ("j", np.int32)])
PACKED = np.dtype([("a", np.uint8), ("t", np.int64), ("i", np.int32)])


def record(kind: np.dtype[Any], field: str) -> Make:
    """The labels in every field of records."""

    def make(a: Any) -> Any:
        out = np.zeros(len(a), dtype=kind)
        for name in kind.names or ():
            out[name] = a
        return out[field]

    return make


def one_by_one(a: Any) -> Any:
    out = np.zeros(len(a), dtype=">i4")
    for t in range(len(a)):
        out[t : t + 1] = a[t : t + 1]
    return out


def halves(a: Any) -> Any:
    out = np.ones(len(a), dtype=np.int64)
    out.view(np.int32)[::2] = a
    return out


def halves_in_torch(a: Any) -> Any:
    out = torch.ones(len(a), dtype=torch.int64)
    out.view(torch.int32)[::2] = torch.from_numpy(a).int()
    return out.numpy()


WHOLE: dict[str, Make] = {
    "big endian": lambda a: a.astype(">i4"),
    "seen as big endian": lambda a: a.view(">i8"),
    "long double": lambda a: np.where(a > 2, a.astype(np.longdouble) + 1, 0),
    "text": lambda a: a.astype(str)[np.arange(len(a))],
    "bytes": lambda a: a.astype("S4"),
    "time": lambda a: a.astype("m8[s]"),
    "columns of text": lambda a: a.reshape(4, 6).astype(str).T.reshape(-1, order="F"),
    "backwards": lambda a: np.concatenate([a.astype(">i4")[::-1]])[::-1],
    "one by one": one_by_one,
    "fields": record(FIELDS, "t"),
    "half fields": record(FIELDS, "j"),
    "packed fields": record(PACKED, "t"),
    "seen as fields": lambda a: a.view([("x", np.int64)])["x"],
    "seen as nothing": lambda a: a.view("V8").view(np.int64),
    "halves": halves,
    "halves in torch": halves_in_torch,
}
#: Python has seen all of it.
SEEN: dict[str, Make] = {
    "objects": lambda a: a.astype(object),
    "vectorize": lambda a: np.vectorize(lambda v: v + 1)(a),
    "frompyfunc": lambda a: np.frompyfunc(lambda v: v + 1, 1, 1)(a),
}


def status(make: Make, lag: int) -> str:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        made = make(tokens.numpy())
        for t in range(1, 24):
            hint = torch.from_numpy(made[t - lag : t + 1 - lag].astype(np.float64) * 0.1).float()
            F.cross_entropy(model(tokens[:t])[-1:] + hint * model.head[0], tokens[t : t + 1]).item()
    return trace.report.status


@pytest.mark.parametrize("name", WHOLE)
def test_elements_are_kept_apart(name: str) -> None:
    assert status(WHOLE[name], 1) == "clean" and status(WHOLE[name], 0) == "violation"


@pytest.mark.parametrize("name", SEEN)
def test_what_python_has_seen_is_no_finding(name: str) -> None:
    assert status(SEEN[name], 1) == "unverified" and status(SEEN[name], 0) != "clean"


def test_only_the_record_that_is_read_has_left() -> None:
    def judged(lag: int) -> str:
        tokens, model = stream(), Toy()
        with causaltrace.watch(tokens) as trace, torch.no_grad():
            records = np.zeros(24, dtype=FIELDS)
            records["t"] = tokens.numpy()
            for t in range(1, 24):
                row = model(tokens[:t])[-1:] + records[t - lag]["t"] * 0.1 * model.head[0]
                F.cross_entropy(row, tokens[t : t + 1]).item()
        return trace.report.status

    assert judged(1) == "clean" and judged(0) != "clean"
