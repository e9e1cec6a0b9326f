"""Everything that takes an array of labels, or a label out of one, is followed or told: never clean where it
leaks, and clean one position earlier."""

from __future__ import annotations

import array
import copy
import ctypes
import hashlib
import io
import math
import pickle
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import causaltrace

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = torch.tensor([3, 1, 4, 1, 5, 2, 6, 0, 3, 5, 1, 2, 3, 6])
WEIGHTS = torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TILT = torch.linspace(0, 1, 7, dtype=torch.float64)
#: Made before any watch.
plain = np.arange(9.0)


def put(key: Any, value: Any) -> Any:
    table = plain.copy()
    table[key] = value
    return torch.from_numpy(table).sum()


def filled(value: Any) -> Any:
    table = plain.copy()
    table.fill(value)
    return torch.from_numpy(table).sum()


def added(x: Any) -> Any:
    table = np.zeros(4, dtype=np.int64)
    table += x
    return torch.from_numpy(table).sum()


def shuffled(x: Any) -> Any:
    table = x.copy()
    np.random.shuffle(table)
    return torch.from_numpy(table)[0]


def stored(x: Any) -> Any:
    file = io.BytesIO()
    np.save(file, x)
    file.seek(0)
    return torch.from_numpy(np.load(file)).sum()


def seeded(x: Any) -> float:
    np.random.seed(x[-1])
    return np.random.rand()


IN_TORCH: dict[str, Callable[[Any], Any]] = {
    "new_tensor": lambda x: torch.ones(1).new_tensor(x).sum(),
    "LongTensor": lambda x: torch.LongTensor(x).sum(),
    "LongTensorList": lambda x: torch.LongTensor(list(x)).sum(),
    "LongTensor1": lambda x: torch.LongTensor([x[-1]]).sum(),
    "Tensor": lambda x: torch.Tensor(x).sum(),
    "FloatTensor": lambda x: torch.FloatTensor(x).sum(),
    "scalar_tensor": lambda x: torch.scalar_tensor(x[-1]),
    "full": lambda x: torch.full((1,), x[-1]).sum(),
    "fill": lambda x: torch.zeros(1).fill_(x[-1]).sum(),
    "arange": lambda x: torch.arange(x[-1]).sum(),
    "mul": lambda x: x[-1] * torch.ones(()),
    "mul2": lambda x: torch.ones(()) * x[-1],
    "add": lambda x: (torch.ones(4) + x).sum(),
    "as_tensor": lambda x: torch.as_tensor([x, x]).sum(),
    "tensor1": lambda x: torch.tensor(x[-1]),
    "tensorl": lambda x: torch.tensor([x[-1], x[0]]).sum(),
    "tensorf": lambda x: torch.tensor([float(x[-1]), 0.5]).sum(),
    "multin": lambda x: torch.from_numpy(np.random.multinomial(x[-1], [0.5, 0.5]))[0],
}
IN_NUMPY: dict[str, Callable[[Any], Any]] = {
    "npfull": lambda x: torch.from_numpy(np.full(3, x[-1])).sum(),
    "npfullarr": lambda x: torch.from_numpy(np.full((2, 4), x)).sum(),
    "npfull_like": lambda x: torch.from_numpy(np.full_like(plain, x[-1])).sum(),
    "npfill": lambda x: filled(x[-1]),
    "nparange": lambda x: torch.from_numpy(np.arange(x[-1])).sum(),
    "nplinspace": lambda x: torch.from_numpy(np.linspace(0, x[-1], 4)).sum(),
    "nparray": lambda x: torch.from_numpy(np.array([x[-1], x[0]])).sum(),
    "npbinl": lambda x: torch.from_numpy(np.bincount([x[-1], x[0]], minlength=9) * plain[:9]).sum(),
    "npaddl": lambda x: torch.from_numpy(np.add([x[-1], x[0]], 1)).sum(),
    "npaddla": lambda x: torch.from_numpy(np.add([x, x], 1)).sum(),
    "npsuml": lambda x: float(np.sum([x, x])),
    "npsumn": lambda x: float(np.sum([x[-1], x[-2]])),
    "npmaxl": lambda x: float(np.max([x[-1], x[-2]])),
    "npmeanl": lambda x: float(np.mean(list(x))),
    "npwhere": lambda x: torch.from_numpy(np.where(plain > 3, x[-1], 0)).sum(),
    "nprepeat": lambda x: torch.from_numpy(np.repeat(plain, x[-1])).sum(),
    "npfromiter": lambda x: torch.from_numpy(np.fromiter(x, dtype=np.int64)).sum(),
    "npfromiter2": lambda x: torch.from_numpy(np.fromiter((v for v in [x[-1], x[0]]), dtype=np.int64)).sum(),
    "rng": lambda x: torch.from_numpy(np.random.default_rng(x[-1]).normal(size=1))[0],
    "rngseed": seeded,
    "choice": lambda x: float(np.random.choice(x[-1:])),
    "choice2": lambda x: float(np.random.default_rng(0).choice(x[-1:])),
    "permut": lambda x: torch.from_numpy(np.random.permutation(x)).sum(),
    "poisson": lambda x: torch.from_numpy(np.random.poisson(x + 1.0))[-1],
    "shuffle": shuffled,
    "npdot": lambda x: float(np.dot(plain[:4], x)),
    "npdotl": lambda x: float(np.dot([1, 2, 3, 4], x)),
    "interp": lambda x: float(np.interp(x[-1], plain, plain * 2)),
    "poly": lambda x: float(np.polyval([1, 2], x[-1])),
    "hist": lambda x: torch.from_numpy(np.histogram(x, bins=3)[0] * 1.0)[0],
    "einsum": lambda x: float(np.einsum("i,i->", plain[:4], x)),
    "nditer": lambda x: float(sum(int(v) for v in np.nditer(x))),
    "ndenum": lambda x: float(sum(int(v) for _, v in np.ndenumerate(x))),
    "vect": lambda x: float(np.vectorize(lambda v: v * 2)(x).sum()),
    "fpy": lambda x: float(np.frompyfunc(lambda v: v * 2, 1, 1)(x).sum()),
    "obj": lambda x: float(x.astype(object)[-1]),
    "strs": lambda x: float(x.astype(str)[-1]),
    "savez": stored,
    "recur": lambda x: torch.from_numpy(np.lib.stride_tricks.as_strided(x, (2,), (8,))).sum(),
    "slid": lambda x: torch.from_numpy(np.lib.stride_tricks.sliding_window_view(x, 2).copy()).sum(),
    "pad": lambda x: torch.from_numpy(np.pad(x, 2)).sum(),
    "rev": lambda x: torch.from_numpy(x[::-1].copy())[0],
    "imag": lambda x: torch.from_numpy((x * 1j).imag.copy())[-1],
    "divm": lambda x: torch.from_numpy(divmod(x, 3)[1])[-1],
    "powr": lambda x: torch.from_numpy(x**2)[-1],
    "inpl": added,
    "polyfit": lambda x: float(np.polyfit(plain[:4], x, 1)[0]),
    "fft": lambda x: float(np.fft.rfft(x)[0].real),
    "norm": lambda x: float(np.linalg.norm(x)),
    "inv": lambda x: float(np.linalg.inv(np.diag(x + 1.0))[0, 0] + np.linalg.det(np.diag(x + 1.0))),
    "unique": lambda x: float(len(np.unique(x))),
    "setd": lambda x: float(len(np.intersect1d(x, [1, 2, 3]))),
    "lut": lambda x: torch.from_numpy(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])[x]).sum(),
    "dt": lambda x: float(x.astype("datetime64[s]").astype(np.int64)[-1]),
    "be": lambda x: float(torch.from_numpy(x.astype(">i8").astype(np.int64))[-1]),
    "f16": lambda x: torch.from_numpy(x.astype(np.float16)).double()[-1],
    "ld": lambda x: float(x.astype(np.longdouble)[-1]),
}
IN_PYTHON: dict[str, Callable[[Any], Any]] = {
    "npfrombuffer": lambda x: torch.from_numpy(np.frombuffer(x, dtype=np.int64)).sum(),
    "npfrombytes": lambda x: torch.from_numpy(np.frombuffer(bytes(x), dtype=np.int64).copy()).sum(),
    "ndarraybuf": lambda x: torch.from_numpy(np.ndarray((4,), np.int64, buffer=x)).sum(),
    "memview": lambda x: float(sum(memoryview(x).tolist())),
    "mathlog": lambda x: math.log(x[-1] + 2),
    "mathlog2": lambda x: math.log1p(x[-1]),
    "range_": lambda x: float(len(range(x[-1]))),
    "listmul": lambda x: float(len([0] * x[-1])),
    "listidx": lambda x: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7][x[-1]],
    "dictk": lambda x: {k: k * 0.1 for k in range(7)}[x[-1]],
    "st": lambda x: float(len(str(x[-1]) * 2) + ord(str(x[-1])[0])),
    "fmt": lambda x: float(f"{x[-1]:d}"),
    "pct": lambda x: float("%d" % x[-1]),  # noqa: UP031
    "strct": lambda x: float(struct.unpack("q", struct.pack("q", x[-1]))[0]),
    "arr": lambda x: float(array.array("q", x)[-1]),
    "bts": lambda x: float(x.tobytes()[0]),
    "hsh": lambda x: hashlib.md5(x).digest()[0] * 0.01,
    "ct": lambda x: float(ctypes.c_long(x[-1]).value),
    "ctp": lambda x: float(x.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))[3]),
    "pick": lambda x: float(pickle.loads(pickle.dumps(x))[-1]),
    "pick1": lambda x: float(pickle.loads(pickle.dumps(x[-1]))),
    "dcopy": lambda x: torch.from_numpy(copy.deepcopy(x)).sum(),
    "rnd": lambda x: float(round(x[-1])),
    "srt": lambda x: float(sorted(x)[0]) * 0.1,
    "mx": lambda x: float(max(x)),
    "sm": lambda x: float(sum(x)),
    "zp": lambda x: sum(a * b for a, b in zip(x, [0.1, 0.2, 0.3, 0.4], strict=True)),
    "iff": lambda x: 1.0 if x[-1] > 3 else 0.0,
    "eq": lambda x: 1.0 if x[-1] == 3 else 0.0,
    "inn": lambda x: 1.0 if 3 in x else 0.0,
    "inset": lambda x: 1.0 if x[-1] in {1, 3, 5} else 0.0,
}
WITH_PLAIN_ARRAYS: dict[str, Callable[[Any], Any]] = {
    "plainop": lambda x: torch.from_numpy(plain[:4] * x).sum(),
    "plaindot": lambda x: float(plain[:4] @ x),
    "plaindot2": lambda x: float(plain[:4].dot(x)),
    "plainidx": lambda x: float(plain[x[-1]]),
    "plainidxl": lambda x: torch.from_numpy(plain[[x[-1], x[0]]]).sum(),
    "plainput": lambda x: put(x, 1.0),
    "plainput1": lambda x: put(x[-1], 1.0),
    "plainval": lambda x: put(slice(0, 4), x),
    "plainval1": lambda x: put(2, x[-1]),
    "plainvall": lambda x: put(slice(0, 2), [x[-1], x[0]]),
    "plainslice": lambda x: torch.from_numpy(plain[: x[-1]]).sum(),
    "plainreshape": lambda x: float(plain[:0].reshape(x[-1], 0).shape[0]),
    "plaincontains": lambda x: 1.0 if x[-1] in plain[:3] else 0.0,
    "plainsumw": lambda x: float(plain[:4].sum(where=x > 2)),
    "plainsumi": lambda x: float(plain.sum(initial=x[-1])),
    "plainclip": lambda x: torch.from_numpy(plain.clip(x[-1], 9)).sum(),
    "plainround": lambda x: float(plain.round(x[-1])[0]) + 0,
    "plainpart": lambda x: torch.from_numpy(np.roll(plain, x[-1]))[0],
    "plainsearch": lambda x: float(plain.searchsorted(x[-1])),
    "plaintake": lambda x: torch.from_numpy(plain.take(x)).sum(),
    "plainresh": lambda x: float(np.ones((7, 3))[x[-1]].sum() + plain[x[-1]]),
}
WAYS = IN_TORCH | IN_NUMPY | IN_PYTHON | WITH_PLAIN_ARRAYS


def run(carry: Callable[[Any], Any], lag: int) -> causaltrace.Report:
    """Rows tilted by what ``carry`` makes of four labels, the last of them ``lag`` before the row's."""
    with causaltrace.watch(TOKENS) as trace:
        labels, total = TOKENS.numpy(), 0.0
        for t in range(4, len(TOKENS)):
            row = WEIGHTS[TOKENS[t - 1 : t]] + TILT * carry(labels[t - 3 - lag : t + 1 - lag])
            total += F.cross_entropy(row, TOKENS[t : t + 1]).item()
    return trace.report


@pytest.mark.parametrize("name", WAYS)
def test_a_leak_is_never_clean(name: str) -> None:
    assert run(WAYS[name], 0).status != "clean"


@pytest.mark.parametrize("name", WAYS)
def test_the_twin_is_clean(name: str) -> None:
    report = run(WAYS[name], 1)
    assert report.status == "clean", report


@pytest.mark.parametrize("name", WAYS)
def test_the_values_are_those_without_a_watch(name: str) -> None:
    if name in ("choice", "permut", "poisson", "shuffle", "multin"):
        np.random.seed(0)
    here = WAYS[name](TOKENS.numpy()[2:6])
    np.random.seed(0)
    with causaltrace.watch(TOKENS):
        there = WAYS[name](TOKENS.numpy()[2:6])
    if name not in ("choice", "permut", "poisson", "shuffle", "multin"):
        assert float(here) == float(there)
        assert type(here) is type(there)


def one_by_one(table: Any, x: Any, y: Any) -> None:
    for a, b in zip(range(len(x)), range(len(y)), strict=True):
        table[x[a], y[b]] += 1


def together(table: Any, x: Any, y: Any) -> None:
    table[x, y] += 1


def at(table: Any, x: Any, y: Any) -> None:
    np.add.at(table, (x, y), 1)


@pytest.mark.parametrize("first", [False, True], ids=["score first", "count first"])
@pytest.mark.parametrize("update", [one_by_one, together, at], ids=lambda f: f.__name__)
def test_counts_in_a_table_from_before_the_watch(update: Callable[..., None], first: bool) -> None:
    table = np.ones((7, 7))
    with causaltrace.watch(TOKENS) as trace:
        labels, total = TOKENS.numpy(), 0.0
        for t in range(0, 12, 3):
            x, y = labels[t : t + 3], labels[t + 1 : t + 4]
            if first:
                update(table, x, y)
            p = torch.from_numpy(table[x] / table[x].sum(1, keepdims=True))
            p = 0.5 * p + 0.5 * WEIGHTS[TOKENS[t : t + 3]].softmax(-1)
            total += -p.gather(1, TOKENS[t + 1 : t + 4, None]).log().sum().item()
            if not first:
                update(table, x, y)
    assert trace.report.status == ("violation" if first else "clean"), trace.report
