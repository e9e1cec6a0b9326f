"""Labels in what numpy takes for a list or an array, in shapes, in records, in functions that numpy calls:
never clean where they leak, clean one position earlier, and the values are those without a watch."""

from __future__ import annotations

import collections
import ctypes
import hashlib
import statistics
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import causaltrace
from tests.boundary.test_array_consumers import TOKENS, run

pytestmark = pytest.mark.filterwarnings("ignore")

TABLE = np.arange(9.0)
FIELDS = [("label", np.int64), ("score", np.float64)]


class Rows:
    """A sequence, as data sets are."""

    def __init__(self, rows: Any) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.rows[i]


class Holder:
    """Gives an array when numpy asks for one."""

    def __init__(self, x: Any, copies: bool = False) -> None:
        self.x, self.copies = x, copies

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(self.x) if self.copies else self.x


class MyList(list[Any]):
    pass


def parts(x: Any) -> list[Any]:
    return [x[i : i + 1] for i in range(len(x))]


def total(a: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(a).astype(np.float64)).sum()


def stored(a: np.ndarray, key: Any, value: Any) -> Any:
    a[key] = value
    return a


def objects(values: Any) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        out[i] = value
    return out


def put(x: Any) -> Any:
    table = np.zeros(4)
    np.put(table, [0, 1, 2, 3], collections.deque(parts(x)))
    return total(table)


def copied(x: Any) -> Any:
    table = np.zeros((4, 1))
    np.copyto(table, collections.deque(parts(x)))
    return total(table)


def drawn(x: Any) -> Any:
    return float(np.random.default_rng(0).choice(collections.deque(v.reshape(()) for v in parts(x))))


def written(x: Any) -> Any:
    table = np.zeros(4)

    def keep(row: Any) -> Any:
        table[:] = x
        return row

    np.apply_along_axis(keep, 0, np.zeros((2, 1)))
    return total(table)


def iterated(x: Any) -> Any:
    table = np.zeros(4, np.int64)
    with np.nditer([table], op_flags=[["readwrite"]]) as it:
        for i, _ in enumerate(it):
            it[0] = x[i : i + 1].reshape(())
    return total(table)


def nested(x: Any) -> float:
    rows, elements = np.nested_iters(x.reshape(4, 1), [[0], [1]])
    return sum(float(v) for _ in rows for v in elements)


def field(x: Any) -> Any:
    records = np.zeros(2, FIELDS)
    record = records[0]
    record["label"] = x[-1:].reshape(())
    return total(records["label"])


def field_later(x: Any) -> float:
    records = np.zeros(4, FIELDS)
    record = records[3]
    records["label"] = x
    return float(record["label"])


CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "array of a deque": lambda x: total(np.array(collections.deque(parts(x)))),
    "array of a nested deque": lambda x: total(np.array([collections.deque(parts(x))])),
    "array of a user's list": lambda x: total(np.asarray(collections.UserList(parts(x)), dtype=np.float64)),
    "array of a list of its own class": lambda x: total(np.array(MyList(parts(x)))),
    "array of a sequence": lambda x: total(np.array(Rows(parts(x)))),
    "sum of a deque": lambda x: float(np.sum(collections.deque(parts(x)))),
    "add a sequence": lambda x: total(np.add(np.zeros((4, 1)), Rows(parts(x)))),
    "take": lambda x: total(np.take(TABLE, collections.deque(parts(x)))),
    "an index": lambda x: total(TABLE[Rows(x)]),  # type: ignore[call-overload]
    "an index that gives an array": lambda x: total(TABLE[Holder(x)]),  # type: ignore[call-overload]
    "put": put,
    "copyto": copied,
    "full": lambda x: total(np.full((4, 1), collections.deque(parts(x)))),
    "searchsorted": lambda x: total(np.searchsorted(TABLE, collections.deque(parts(x)))),
    "isin": lambda x: total(np.isin(TABLE, collections.deque(parts(x))) * TABLE),
    "float64": lambda x: total(np.float64(collections.deque(parts(x)))),
    "choice": drawn,
    "stack of a deque": lambda x: total(np.vstack(collections.deque(parts(x)))),
    "concatenate a deque": lambda x: total(np.concatenate(collections.deque(parts(x)))),
    "concatenate a list of its own class": lambda x: total(np.concatenate(MyList(parts(x)))),
    "concatenate objects": lambda x: total(np.concatenate(objects(parts(x)))),
    "stack objects": lambda x: total(np.stack(objects(parts(x)))),
    "assign a sequence": lambda x: total(stored(np.zeros(4), slice(None), Rows(x))),
    "assign a holder": lambda x: total(stored(np.zeros(4), slice(None), Holder(x))),
    "assign objects": lambda x: total(stored(np.zeros(4), slice(None), objects(list(x)))),
    "assign a holder to a plain array": lambda x: total(stored(TABLE.copy()[:4], slice(None), Holder(x))),
    "a method": lambda x: float((x * 0 + 1).dot(Holder(x, copies=True))),
    "asarray of a holder": lambda x: total(np.asarray(Holder(x), dtype=np.float64)),
    "array of a holder of copies": lambda x: total(np.array(Holder(x, copies=True))),
    "sum of a holder": lambda x: float(np.sum(Holder(x))),
    "concatenate a holder": lambda x: total(np.concatenate([TABLE, Holder(x)])),
    "fromiter of rows": lambda x: total(np.fromiter(parts(x), dtype=np.dtype((np.int64, (1,))))),
}
SHAPES: dict[str, Callable[[Any], Any]] = {
    "zeros": lambda x: float(np.zeros(x[-1:] + 1).size),
    "full": lambda x: total(np.full(x[-1:] + 1, 1.0)),
    "zeros_like": lambda x: float(len(np.zeros_like(TABLE, shape=x[-1:] + 1))),
    "broadcast_shapes": lambda x: float(np.broadcast_shapes(x[-1:] + 1)[0]),
}
CALLED: dict[str, Callable[[Any], Any]] = {
    "apply_along_axis": lambda x: total(np.apply_along_axis(lambda _: np.array(x), 0, np.zeros((2, 1)))),
    "apply_along_axis by labels": lambda x: total(
        np.apply_along_axis(lambda _: TABLE[x], 0, np.zeros((2, 1)))
    ),
    "apply_along_axis that writes": written,
    "apply_over_axes": lambda x: total(
        np.apply_over_axes(lambda a, _: np.array(x)[None] * 1.0, np.zeros((2, 4)), [0])
    ),
    "piecewise": lambda x: total(np.piecewise(np.zeros(4), [np.ones(4, bool)], [lambda _: np.array(x)])),
}
IN_C: dict[str, Callable[[Any], Any]] = {
    "append a number": lambda x: total(np.append(x[:2], x[-1])),
    "hstack with a number": lambda x: total(np.hstack([x, x[-1]])),
    "statistics": lambda x: float(statistics.mean([x[0], x[-1]])),
    "class of a number": lambda x: total(TABLE[type(x[0])(x[-1])]),
    "int.from_bytes": lambda x: float(int.from_bytes(x[-1], "little")),
    "memoryview": lambda x: float(memoryview(x[-1])[()]),
    "digest": lambda x: float(hashlib.md5(x[-1]).digest()[0]),
    "unpack": lambda x: float(struct.unpack("q", x[-1])[0]),
    "join": lambda x: float(b"".join([x[-1]])[0]),
    "torch.frombuffer": lambda x: torch.frombuffer(x[-1], dtype=torch.int64).sum(),
    "buffer": lambda x: total(np.ndarray(1, np.int64, buffer=x[-1])),
    "nested_iters": nested,
    "nditer": iterated,
    "void": lambda x: float(np.void(x[-1:])[0].tobytes()[0]),  # type: ignore[index]
    "object": lambda x: float(sum(np.object_(x).tolist())),  # type: ignore[attr-defined]
    "a field of a record": field,
    "a field of a record, later": field_later,
    "records of tuples": lambda x: total(stored(np.zeros(2, FIELDS), 0, (x[-1], 1.0))["label"]),
    "default_convert": lambda x: torch.utils.data.default_convert(x).sum(),
    "array of objects": lambda x: total(np.array([x, None], dtype=object)[0]),
    "array of numbers as objects": lambda x: float(np.array([x[-1], None], dtype=object)[0]),
}


class Lending:
    def __init__(self, struct: Any) -> None:
        self.__array_struct__ = struct


def last(x: Any) -> Any:
    """The last one, as an array."""
    return x[-1:].reshape(())


def read_at(address: int) -> int:
    """The last of four numbers that lie there."""
    return ctypes.c_int64.from_address(address + 24).value


BY_CLASS: dict[str, Callable[[Any], Any]] = {
    "tolist": lambda x: float(sum(np.ndarray.tolist(x))),
    "item": lambda x: float(np.ndarray.item(x, 3)),
    "tobytes": lambda x: float(np.ndarray.tobytes(x)[24]),
    "copy": lambda x: total(np.ndarray.copy(x)),
    "astype": lambda x: total(np.ndarray.astype(x, np.float64)),
    "getitem": lambda x: float(np.ndarray.__getitem__(x, 3)),
    "getitem of a list": lambda x: total(np.ndarray.__getitem__(x, [3, 0])),
    "take": lambda x: total(np.ndarray.take(x, [3, 0])),
    "view": lambda x: float(sum(np.ndarray.view(x, np.ndarray).tolist())),
    "flatten": lambda x: total(np.ndarray.flatten(x)),
    "argsort": lambda x: total(np.ndarray.argsort(x) * np.arange(4)),
    "nonzero": lambda x: total(np.ndarray.nonzero(x == 3)[0] + 1.0),
    "dot": lambda x: float(np.ndarray.dot(x, np.arange(4))),
    "byteswap": lambda x: total(np.ndarray.byteswap(x).view(np.uint8)),
    "reduce": lambda x: float(np.ndarray.__reduce__(x)[2][4][24]),  # type: ignore[index]
    "deepcopy": lambda x: total(np.ndarray.__deepcopy__(x, {})),
    "round": lambda x: total(np.ndarray.round(x)),
    "int": lambda x: float(np.ndarray.__int__(last(x))),
    "float": lambda x: np.ndarray.__float__(last(x)),
    "bool": lambda x: float(np.ndarray.__bool__(x[-1:] > 2)),
    "index": lambda x: float(np.ndarray.__index__(last(x))),
    "complex": lambda x: np.ndarray.__complex__(last(x)).real,
    "text": lambda x: float(len(np.ndarray.__str__(x * x))),
    "base": lambda x: total(np.ndarray.base.__get__((x * 1)[1:])),  # type: ignore[attr-defined]
    "interface": lambda x: float(read_at(np.ndarray.__array_interface__.__get__(x)["data"][0])),  # type: ignore[attr-defined]
    "struct": lambda x: float(np.asarray(Lending(np.ndarray.__array_struct__.__get__(x)))[-1]),  # type: ignore[attr-defined]
}
WAYS = CONTAINERS | SHAPES | CALLED | IN_C | {f"ndarray.{name}": way for name, way in BY_CLASS.items()}


@pytest.mark.parametrize("name", WAYS)
def test_a_leak_is_never_clean(name: str) -> None:
    assert run(WAYS[name], 0).status != "clean"


@pytest.mark.parametrize("name", WAYS)
def test_the_twin_is_clean(name: str) -> None:
    report = run(WAYS[name], 1)
    assert report.status == "clean", report


@pytest.mark.parametrize("name", WAYS)
def test_the_values_are_those_without_a_watch(name: str) -> None:
    here = WAYS[name](TOKENS.numpy()[2:6])
    with causaltrace.watch(TOKENS):
        there = WAYS[name](TOKENS.numpy()[2:6])
    assert float(here) == float(there)
    assert type(here) is type(there)


def test_a_sequence_is_read_once() -> None:
    class Counted(Rows):
        reads = 0

        def __getitem__(self, i: int) -> Any:
            self.reads += 1
            return self.rows[i]

    here, there = Counted(range(3)), Counted(range(3))
    np.add(TABLE[:3], here)
    with causaltrace.watch(TOKENS):
        np.add(TABLE[:3], there)
    assert here.reads == there.reads


def test_objects_stay_themselves() -> None:
    with causaltrace.watch(TOKENS) as trace:
        x, queue = TOKENS.numpy()[2:6], collections.deque([1, 2])
        for made in (np.empty(2, dtype=object), np.full(2, None, dtype=object)):
            made[0], made[1] = x, queue
            assert made[0] is x
            assert made[1] is queue
        assert np.array([x, None], dtype=object)[0] is x
    assert not trace.report.escapes


def test_a_list_is_shuffled() -> None:
    def shuffled(x: Any) -> list[int]:
        rows = [x[i : i + 1] for i in range(6)]
        np.random.default_rng(0).shuffle(rows)
        return [int(row[0]) for row in rows]

    here = shuffled(TOKENS.numpy())
    with causaltrace.watch(TOKENS):
        assert shuffled(TOKENS.numpy()) == here
