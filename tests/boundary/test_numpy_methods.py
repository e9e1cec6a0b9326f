"""Every method of arrays gives what numpy gives, for arrays of every kind, and drops no label."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from causaltrace.boundary.arrays import bare
from causaltrace.boundary.ndarray import LabelArray
from tests.arrays import Case, agrees, watched
from tests.oracle import Index

M = torch.tensor([[0.3, -1.2, 2.1], [0.7, 1.1, -0.4]])
S = torch.tensor([[1.3, 0.2], [-0.1, 0.6]])
V = torch.tensor([0.3, -1.2, 2.1, 0.7])
K = Index(torch.tensor([[1, 2, 0], [0, 3, 2]]), range(4))
B = torch.tensor([[True, False, True], [False, True, True]])


def changed(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``fn`` changes a copy in place."""

    def run(a: Any) -> Any:
        a = a.copy()
        fn(a)
        return a

    return run


METHODS: dict[str, Case] = {
    "all any": Case(lambda a: [a.all(axis=0), a.any(1), a.all(axis=1, keepdims=True)], (B,), loose=True),
    "argmax": Case(
        lambda a: [a.argmax(0), a.argmin(axis=1), a.argsort(), a.argpartition(1)], (M,), loose=True
    ),
    "astype": Case(
        lambda a: [a.astype(np.float64), a.astype(int), a.astype(np.float16).astype(np.float32)],
        (M,),
        loose=True,
    ),
    "byteswap": Case(lambda a: a.byteswap().byteswap(), (M,), told=True),
    "choose": Case(lambda a: a.choose([0.5, 1.5, 2.5, 3.5]), (K,)),
    "clip": Case(lambda a: [a.clip(0, 1), a.clip(min=0), a.clip(max=1), a.clip(0)], (M,), loose=True),
    "compress": Case(lambda a: a.compress([True, False, True], axis=1), (M,)),
    "conj": Case(
        lambda a: [a.conj(), a.conjugate(), a.real, a.imag, (a + 1j).real, (1j * a).imag], (M,), loose=True
    ),
    "copy": Case(
        lambda a: [
            a.copy(),
            a.T.copy(),
            a.T.copy("K"),
            a.copy("F"),
            a.__copy__(),
            a.flatten(),
            a.flatten("F"),
        ],
        (M,),
    ),
    "cumsum": Case(lambda a: [a.cumsum(), a.cumsum(0), a.cumprod(axis=1), a.cumsum(dtype=float)], (M,)),
    "diagonal": Case(lambda a: [a.diagonal(), a.diagonal(1), a.trace(dtype=float, out=np.zeros(()))], (M,)),
    "dot": Case(lambda a: [a.dot(a.T), a.dot(np.ones(3)), a.T.dot(a)], (M,), loose=True),
    "max": Case(lambda a: [a.max(0), a.min(axis=1, keepdims=True), a.max(1, initial=0.0)], (M,), loose=True),
    "mean": Case(
        lambda a: [a.mean(0), a.std(1), a.var(0, ddof=1), a.sum(1), a.prod(axis=0), a.mean(1, dtype=float)],
        (M,),
        loose=True,
    ),
    "nonzero": Case(lambda a: list(a.nonzero()), (B,), told=True),
    "ravel": Case(
        lambda a: [a.ravel(), a.T.ravel(), a.ravel("F"), a.reshape(3, 2), a.reshape((-1, 2), order="F")], (M,)
    ),
    "repeat": Case(lambda a: [a.repeat(2), a.repeat([1, 2], axis=0), a.squeeze(), a[None].squeeze(0)], (M,)),
    "round": Case(lambda a: [a.round(), a.round(1), a.round(decimals=1)], (M,), loose=True),
    "searchsorted": Case(lambda a: np.array([0.0, 1.0]).searchsorted(a), (M,)),
    "take": Case(lambda a: [a.take([0, 2]), a.take([0, 2], axis=1), a.take(1, axis=0)], (M,)),
    "transpose": Case(lambda a: [a.transpose(), a.transpose(1, 0), a.T, a.mT, a.swapaxes(0, 1)], (M,)),
    "view": Case(lambda a: [a.view(), a.view(np.ndarray), a.view(type=np.ndarray), a.view(np.float32)], (M,)),
    "view of bits": Case(lambda a: [a.view(np.int32), a.view(np.uint8)], (M,), loose=True),
    "getfield": Case(lambda a: a.getfield(np.float32), (M,)),
    "device": Case(lambda a: a.to_device("cpu"), (M,)),
    "sum all": Case(
        lambda a: [a.sum(), a.max(), a.mean(), a.trace(), a.argmax(), a.ptp() if hasattr(a, "ptp") else 0],
        (M,),
        told=True,
    ),
    "dot of vectors": Case(lambda a: a.ravel().dot(a.ravel()), (M,), told=True),
    "numbers": Case(
        lambda a: [
            float(a[0, 0]),
            a[0, 1].item(),
            a.item(2),
            int(a[1, 1] * 9),
            complex(a[0, 2]).real,
            bool(a[1, 0] > 0),
        ],
        (M,),
        told=True,
    ),
    "tolist": Case(lambda a: [a.tolist(), [list(row) for row in a], *map(float, a.ravel())], (M,), told=True),
    "bytes": Case(lambda a: np.frombuffer(a.tobytes(), np.float32).copy(), (M,), told=True),
    "dumps": Case(lambda a: [pickle.loads(a.dumps()), pickle.loads(pickle.dumps(a))], (M,), told=True),
    "contains": Case(lambda a: [0.3 in a, np.float32(2.1) in a], (M,), told=True),
    "index": Case(lambda a: np.arange(4)[a[0, 0] :], (K,), told=True),
    "unpack": Case(lambda a: [x + 0 for row in a for x in row], (M,), told=True),
    "sort in place": Case(changed(lambda a: a.sort()), (M,), loose=True),
    "sort in place 0": Case(changed(lambda a: a.sort(axis=0, kind="stable")), (M,), loose=True),
    "partition in place": Case(changed(lambda a: a.partition(1)), (M,), loose=True),
    "fill": Case(changed(lambda a: a.fill(1.0)), (M,)),
    "put": Case(changed(lambda a: a.put([0, 4], [1.0, 2.0])), (M,)),
    "put turned": Case(lambda a: (lambda b: [b.put([0, 4], [1.0, 2.0]), b])(a.copy().T)[1], (M,)),
    "setfield": Case(changed(lambda a: a.setfield(1.0, np.float32)), (M,)),
    "byteswap in place": Case(changed(lambda a: a.byteswap(True).byteswap(True)), (M,), told=True),
    "real =": Case(changed(lambda a: setattr(a, "real", a[::-1].copy())), (M,)),
    "flat =": Case(changed(lambda a: setattr(a, "flat", a[::-1].copy())), (M,), told=True),
    "flat[...] =": Case(changed(lambda a: a.flat.__setitem__(slice(0, 3), a[1].copy())), (M,), told=True),
    "resize": Case(
        lambda a: (lambda b: [b.resize((3, 2), refcheck=False), b])(np.array(a))[1], (M,), told=True
    ),
    "shape =": Case(changed(lambda a: setattr(a, "shape", (2, 3))), (M,)),
    "setitem": Case(
        changed(
            lambda a: [
                a.__setitem__((0, 1), 5.0),
                a.__setitem__(1, a[0].copy()),
                a.__setitem__((slice(None), [0, 2]), 2.0),
            ]
        ),
        (M,),
    ),
    "setitem mask": Case(changed(lambda a: a.__setitem__(a > 0, 0.0)), (M,)),
    "reversed": Case(
        lambda a: [a[::-1], a[:, ::-2], a[::-1].copy(), a[::-1] + a, np.ascontiguousarray(a[::-1])], (M,)
    ),
    "reversed written": Case(changed(lambda a: a[::-1].__setitem__(0, a[0].copy())), (M,)),
}

OPERATORS: dict[str, Case] = {
    "arithmetic": Case(
        lambda a, b: [a + b, a - b, a * b, a / (b * b + 1), 2 - a, 2.0 / (a * a + 1), -a, +a, abs(a)],
        (M, M + 0.7),
        loose=True,
    ),
    "powers": Case(
        lambda a: [a**2, a**3, abs(a) ** 0.5, a**1, a**0, 2.0**a, a**-1.0, a**-2], (M,), loose=True, large=3.0
    ),
    "remainders": Case(
        lambda a, b: [
            a // (b * b + 1),
            a % (b * b + 1),
            *divmod(a, b * b + 1),
            7 // (a * a + 1),
            *divmod(7, a * a + 1),
        ],
        (M, M),
        loose=True,
    ),
    "integers": Case(
        lambda a: [a & 3, a | 4, a ^ 1, ~a, a << 2, a >> 1, 1 << a, 6 & a, 9 >> a, 3 ^ a], (K,), loose=True
    ),
    "compared": Case(
        lambda a, b: [a == b, a != b, a < b, a <= b, a > b, a >= b, a > 0.5], (M, M + 0.7), loose=True
    ),
    "matrices": Case(
        lambda a: [a @ a, np.ones((2, 2)) @ a, a @ np.ones(2), [1.0, 2.0] @ a], (S,), loose=True
    ),
    "+= -= *= /=": Case(
        changed(lambda a: [a.__iadd__(a[0]), a.__isub__(1), a.__imul__(a), a.__itruediv__(2.0)]),
        (M,),
        loose=True,
    ),
    "//= %= **=": Case(
        changed(lambda a: [a.__ifloordiv__(0.5), a.__imod__(3.0), a.__ipow__(2)]), (M,), loose=True
    ),
    "&= |= ^= <<= >>=": Case(
        changed(
            lambda a: [a.__iand__(7), a.__ior__(a[0]), a.__ixor__(3), a.__ilshift__(1), a.__irshift__(1)]
        ),
        (K,),
        loose=True,
    ),
    "@=": Case(changed(lambda a: a.__imatmul__(np.ones((2, 2), np.float32))), (S,), loose=True),
    "+= of a view": Case(changed(lambda a: a[0].__iadd__(a[1])), (M,)),
    "+= of a slice": Case(
        changed(lambda a: a.__setitem__((slice(None), slice(0, 2)), a[:, :2] + a[:, 1:])), (M,)
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [pytest.param(c, id=n) for n, c in (METHODS | OPERATORS).items()])
def test_methods_agree_with_perturbation(case: Case) -> None:
    agrees(case, kinds=4)


def test_every_method_is_looked_at() -> None:
    """What reads values or memory is LabelArray's own, or a view, or a ufunc by another name."""
    names = {n for case in (METHODS | OPERATORS).values() for n in _names(case.fn)} | {"ndarray"}
    unseen = {
        "dump",
        "tofile",
        "ctypes",
        "data",
        "setflags",
        "base",
        "flags",
        "strides",
        "itemsize",
        "nbytes",
    }
    unseen |= {"ndim", "size", "dtype", "device"}
    methods = {n for n in dir(np.ndarray) if not n.startswith("_")}
    assert methods - names <= unseen


def _names(fn: Any) -> set[str]:
    out: set[str] = set()
    todo = [fn.__code__, *[c.cell_contents.__code__ for c in fn.__closure__ or ()]]
    while todo:
        code = todo.pop()
        out |= set(code.co_names) | {c for c in code.co_consts if isinstance(c, str)}
        todo += [c for c in code.co_consts if hasattr(c, "co_names")]
    return out


TYPES = "? i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 g F D G >f4 >i2 O U8 S8 m8[s] M8[s]"
#: Arrays of other kinds, made from an array of integers ``[2, 3]``.
KINDS: dict[str, Callable[[Any], Any]] = {
    **{t: lambda a, t=t: a.astype(t) for t in TYPES.split()},
    "structured": lambda a: np.rec.fromarrays([a, a * 2], names="p,q").view(np.ndarray),
    "reversed": lambda a: a[::-1, ::-1],
    "turned": lambda a: a.T,
    "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "zero-d": lambda a: a[0, 1, ...],
    "empty": lambda a: a[:0],
    "read-only": lambda a: np.broadcast_to(a, (2, 2, 3)),
    "unaligned": lambda a: np.concatenate([a.view(np.uint8).ravel(), a.view(np.uint8).ravel()])[4:-4].view(
        a.dtype
    ),
}
#: What is done with each; where numpy refuses, so does a watch.
DEEDS: dict[str, Callable[[Any], Any]] = {
    "copy": lambda x: [x.copy(), x.astype(x.dtype), np.array(x), np.asarray(x), +x],
    "arithmetic": lambda x: [x + x, x * 2, x == x, x != x[..., :1]],
    "compare": lambda x: [x < x, np.maximum(x, x), np.where(x == x, x, x)],
    "index": lambda x: [x[0], x[..., 0], x[[1, 0]], x[x == x], x[:1], x[None]],
    "sum": lambda x: [x.sum(axis=0), x.sum(axis=-1, keepdims=True), np.cumsum(x, axis=0)],
    "mean": lambda x: [x.mean(axis=0), x.std(axis=0), x.max(axis=0), x.argmin(axis=0)],
    "sort": lambda x: [np.sort(x, axis=0), np.argsort(x, axis=0), np.unique(x)],
    "move": lambda x: [np.concatenate([x, x]), x.ravel(), x.T, np.flip(x), np.roll(x, 1), x.repeat(2)],
    "write": lambda x: _write(x.copy()),
    "write itself": lambda x: x.__setitem__(0, x[-1]),
    "field": lambda x: [x["p"], x[["p", "q"]]],
    "sine": lambda x: [np.sin(x), np.exp(x), np.sign(x)],
    "list": lambda x: [x.tolist(), str(x), repr(x)],
    "number": lambda x: [x.item(1), x.flat[0]],
    "truth": lambda x: [bool(x.any()), len(x), x.all()],
    "matmul": lambda x: x @ np.swapaxes(x, -1, -2),
    "put": lambda x: np.put(x, [0], x[..., 0]),
    "bits": lambda x: [x & x, ~x, x << 1],
    "flags": lambda x: [x.flags.c_contiguous, x.flags.f_contiguous, x.flags.writeable, x.strides, x.nbytes],
}


def _write(y: Any) -> Any:
    y[..., 0] = y[..., 1]
    y[[0]] = y[[1]]
    y += y
    return y


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_every_kind(kind: str, deed: str) -> None:
    def run(a: Any) -> Any:
        x = KINDS[kind](a)
        try:
            return [DEEDS[deed](x), 0.0]
        except Exception as error:
            return [type(error).__name__, 0.0]

    agrees(Case(run, (K,), told=True), kinds=1)


def test_results_are_arrays_with_labels() -> None:
    def run(a: Any) -> Any:
        for x in (a, a + 1, a.T, a[0], np.sin(a), np.zeros(3), a.reshape(-1), a.base, a.view(np.ndarray)):
            assert type(x) is LabelArray and isinstance(x, np.ndarray)
            assert type(bare(x)) is np.ndarray
        return a

    watched(run, M[:, :2].clone().expand(2, 2))
