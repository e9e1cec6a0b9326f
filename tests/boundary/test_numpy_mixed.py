"""Labels reach plain arrays, lists, tensors, iterators and random numbers: nothing is dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.arrays import Case, agrees
from tests.boundary.test_numpy_functions import B, D, I, V, W
from tests.oracle import check

PLAIN = np.array([0.5, 1.5, -2.5, 3.5], dtype=np.float32)
TABLE = np.arange(12.0).reshape(4, 3)


def fresh(fn: Callable[..., None]) -> Callable[..., Any]:
    """``fn`` writes to an array that knows nothing of labels."""

    def run(*given: Any) -> Any:
        out = PLAIN.copy()
        fn(out, *given)
        return out

    return run


#: With what they read exactly.
READ: dict[str, Case] = {
    "plain + labels": Case(lambda a: [PLAIN + a, a + PLAIN, a < PLAIN, PLAIN @ np.diag(a)], (V,), loose=True),
    "plain[labels]": Case(
        lambda i: [PLAIN[i], TABLE[i, 1], TABLE[i], TABLE[:, i % 3], TABLE[i, i % 3]], (I,), loose=True
    ),
    "plain[mask]": Case(lambda c: np.where(c, PLAIN, 0), (B,)),
    "plain.take": Case(lambda i: [PLAIN.take(i), TABLE.take(i, axis=0)], (I,), loose=True),
    "plain.searchsorted": Case(lambda a: np.sort(PLAIN).searchsorted(a), (V,)),
    "plain.choose": Case(lambda a: np.array([0, 1, 1, 0]).choose([a, a * 2]), (V,)),
    "plain.dot": Case(lambda a: TABLE.T.dot(a), (V,), loose=True),
    "plain.clip": Case(lambda a: PLAIN.clip(a, 2.0), (V,), loose=True),
    "plain.sum where": Case(
        lambda c: TABLE.sum(axis=1, where=c),
        (D[:, :1].expand(2, 3)[0].reshape(1, 3).expand(4, 3).contiguous(),),
        loose=True,
    ),
    "list of arrays": Case(
        lambda a, b: [np.array([a, b]), np.add([a, b], 1.0), np.stack([[a, b], [b, a]])], (W, W)
    ),
    "list of lists": Case(
        lambda a, b: [np.sum([[a, b], [b, b]], axis=0), np.max([a, b], axis=0)], (W, W), loose=True
    ),
    "list and plain": Case(
        lambda a: [np.add(PLAIN, [a, a]), np.multiply([PLAIN, a], [[1.0], [2.0]])], (V,), loose=True
    ),
    "list in where": Case(lambda a: np.where([[True], [False]], [a, a], [PLAIN, PLAIN]), (V,), loose=True),
    "ufunc methods": Case(
        lambda a, b: [np.add.reduce([a, b]), np.add.accumulate([a, b]), np.add.outer([1.0, 2.0], a)],
        (W, W),
        loose=True,
    ),
    "by name": Case(lambda a: [np.array(object=a), np.asarray(a=a), np.array(object=[a, a])], (V,)),
    "types": Case(
        lambda a: [np.float64(a), np.complex128(a), np.longdouble(a), np.float16([a, a])], (V,), loose=True
    ),
    "index of bytes": Case(
        lambda i: [
            PLAIN[i.astype(t)]
            for t in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.uint64)
        ],
        (I,),
    ),
}

#: With what they tell.
TOLD: dict[str, Case] = {
    "types of one": Case(
        lambda a, i: [np.float32(a[:1].reshape(())), np.int64(i[0]), np.int32(i[1]), np.float64(a[1])],
        (V, I),
        told=True,
    ),
    "types of a list": Case(lambda i: [np.int64([i[0], i[1]]), np.float32([i[2]])], (I,), told=True),
    "plain[label]": Case(lambda i: TABLE[i[0]], (I,), told=True),
    "list of numbers": Case(
        lambda a: [np.array([a[0], a[1]]), np.add([a[0], a[2]], 1.0), np.sum([a[0], a[1]])], (V,), told=True
    ),
    "list of labels": Case(
        lambda i: [np.array([i[0], i[1]]), np.add([i[0], i[2]], 1), np.stack([i[0], i[1]])], (I,), told=True
    ),
    "list of one label": Case(
        lambda i: [PLAIN[[i[0], i[1]]], np.take(PLAIN, [i[0]]), PLAIN[[int(i[0])]]], (I,), told=True
    ),
    "plain[mask] alone": Case(lambda c: PLAIN[c], (B,), told=True),
    "plain.compress": Case(lambda c: PLAIN.compress(c), (B,), told=True),
    "repeat": Case(lambda v, i: [np.repeat(v, i % 3), np.repeat(v[None], i, axis=1)], (V, I), told=True),
    "plain.repeat": Case(lambda i: PLAIN.repeat(i), (I,), told=True),
    "plain.fill": Case(fresh(lambda o, a: o.fill(a[0])), (V,), told=True),
    "plain.fill label": Case(fresh(lambda o, i: o.fill(i[0])), (I,), told=True),
    "plain.fill array": Case(fresh(lambda o, i: o.fill(i[:1].reshape(()))), (I,), told=True),
    "plain.put": Case(fresh(lambda o, i: o.put(i, [1.0, 2.0])), (I,), told=True),
    "plain[labels] =": Case(fresh(lambda o, i: o.__setitem__(i, 1.0)), (I,), told=True),
    "plain[...] =": Case(fresh(lambda o, a: o.__setitem__(Ellipsis, a)), (V,), told=True),
    "plain[:2] = list": Case(fresh(lambda o, a: o.__setitem__(slice(0, 2), [a[0], a[3]])), (V,), told=True),
    "plain[:2] = labels": Case(fresh(lambda o, i: o.__setitem__(slice(0, 2), [i[0], i[3]])), (I,), told=True),
    "plain += labels": Case(fresh(lambda o, a: o.__iadd__(a)), (V,), told=True),
    "out=plain": Case(fresh(lambda o, a: np.exp(a, out=o)), (V,), told=True),
    "plain.flat =": Case(fresh(lambda o, a: setattr(o, "flat", a)), (V,), told=True),
    "plain.flat[...] =": Case(fresh(lambda o, a: o.flat.__setitem__(slice(0, 4), a)), (V,), told=True),
    "plain.flat[labels]": Case(lambda i: PLAIN.flat[i], (I,), told=True),
    "plain.real =": Case(fresh(lambda o, a: setattr(o, "real", a)), (V,), told=True),
    "plain.setfield": Case(fresh(lambda o, a: o.setfield(a, np.float32)), (V,), told=True),
    "plain.partition": Case(fresh(lambda o, i: o.partition(i[0])), (I,), told=True),
    "copyto plain": Case(fresh(lambda o, a: np.copyto(o, a)), (V,), told=True),
    "labels.flat": Case(lambda a: [np.array(list(a.flat)), np.array(a.flat), a.flat[1:]], (V,), told=True),
    "nditer": Case(lambda a: np.array([float(x) for x in np.nditer(a)]), (V,), told=True),
    "nditer operands": Case(
        lambda a: np.array([float(x) * float(y) for x, y in np.nditer([PLAIN, a])]), (V,), told=True
    ),
    "ndenumerate": Case(lambda a: np.array([x for _, x in np.ndenumerate(a)]), (V,), told=True),
    "broadcast": Case(lambda a: np.array([x + y for x, y in np.broadcast(PLAIN, a)]), (V,), told=True),
    "vectorize": Case(lambda a: np.vectorize(lambda x: x * 2)(a), (V,), told=True),
    "frompyfunc": Case(
        lambda a: np.frompyfunc(lambda x, y: x * y, 2, 1)(a, PLAIN).astype(float), (V,), told=True
    ),
    "fromiter": Case(lambda a: np.fromiter(a, dtype=np.float64), (V,), told=True),
    "fromiter labels": Case(lambda i: np.fromiter((x for x in i), dtype=np.int64), (I,), told=True),
    "fromfunction": Case(lambda a: np.fromfunction(lambda k: a[k], (4,), dtype=int), (V,), told=True),
    "frombuffer": Case(lambda a: np.frombuffer(a, dtype=np.float32), (V,), told=True),
    "frombuffer bytes": Case(lambda a: np.frombuffer(a.tobytes(), dtype=np.float32).copy(), (V,), told=True),
    "ndarray": Case(lambda a: np.ndarray((4,), np.float32, buffer=a).copy(), (V,), told=True),
    "memoryview": Case(lambda a: np.asarray(memoryview(a)).copy(), (V,), told=True),
    "full": Case(lambda a, i: [np.full(3, a[0]), np.full(3, i[0]), np.full((2, 4), a)], (V, I), told=True),
    "arange": Case(lambda i: np.arange(4) * (np.arange(i[0], i[0] + 4)), (I,), told=True),
    "eye": Case(lambda i: [np.eye(4, k=i[0]), np.tri(3, k=i[0]), np.identity(3) * i[0]], (I,), told=True),
    "indices": Case(lambda i: np.indices((2, 2)) + i[0], (I,), told=True),
    "object": Case(lambda a: a.astype(object).astype(float), (V,), told=True),
    "text": Case(lambda a: np.array([float(x) for x in str(a).strip("[]").split()]), (V,), told=True),
    "text dtype": Case(lambda a: a.astype("U12").astype(float), (V,), told=True),
    "masked": Case(lambda a: (np.ma.masked_array(a, [0, 1, 0, 0]) * 2).filled(0), (V,), told=True),
    "matrix": Case(lambda a: np.asarray(np.asmatrix(a) * 2), (V,), told=True),
    "recarray": Case(lambda a: np.rec.fromarrays([a, a], names="p,q").p.copy(), (V,), told=True),
    "structured": Case(lambda a: a.view([("p", np.float32)])["p"].copy(), (V,), told=True),
    "array interface": Case(
        lambda a: np.asarray(
            type("X", (), {"__array_interface__": a.__array_interface__, "keeps": a})()
        ).copy(),
        (V,),
        told=True,
    ),
    "dlpack": Case(lambda a: np.from_dlpack(a).copy(), (V,), told=True),
    "datetime": Case(
        lambda i: (np.datetime64("2020-01-01") + i.astype("m8[D]")).astype(np.int64), (I,), told=True
    ),
    "byte order": Case(lambda a: a.astype(">f4").astype(float), (V,), told=True),
    "longdouble": Case(lambda a: (a.astype(np.longdouble) * 2).astype(float), (V,), told=True),
    "poly1d": Case(lambda a: np.poly1d(a)(PLAIN), (V,), told=True),
    "r_": Case(lambda a: [np.r_[a, 1.0], np.c_[a, a], np.r_[a[0], 2.0]], (V,), told=True),
    "s_": Case(lambda i: PLAIN[np.s_[: i[0]]].sum(), (I,), told=True),
    "an error": Case(lambda i: np.array(_refused(lambda: PLAIN[i * 2])), (I,), told=True),
    "an error in a function": Case(
        lambda a: np.array(_refused(lambda: np.linalg.cholesky(np.diag(a)))), (V,), told=True
    ),
    "an error in a ufunc": Case(lambda i: np.array(_refused(lambda: np.power(i, i - 2))), (I,), told=True),
    "an error in a write": Case(
        fresh(lambda o, i: o.__setitem__(0, _refused(lambda: o.__setitem__(i * 2, 1.0)))), (I,), told=True
    ),
}


def _refused(fn: Callable[[], Any]) -> float:
    try:
        fn()
    except Exception:
        return 1.0
    return 0.0


def seeded(fn: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda a: [fn(np.random.RandomState(3), a), fn(np.random.default_rng(3), a)]


def module(fn: Callable[[Any], Any]) -> Callable[..., Any]:
    def run(a: Any) -> Any:
        np.random.seed(3)
        return fn(a)

    return run


def shuffled(rng: Any, a: Any) -> Any:
    rng.shuffle(a)
    return a


RANDOM: dict[str, Case] = {
    "normal": Case(seeded(lambda r, a: r.normal(a, 0.5)), (V,), told=True),
    "normal size": Case(seeded(lambda r, a: r.normal(a, 0.5, size=(2, 4))), (V,), told=True),
    "normal list": Case(seeded(lambda r, a: r.normal([a[0], a[1]], 0.5)), (V,), told=True),
    "choice": Case(seeded(lambda r, a: r.choice(a, 3)), (V,), told=True),
    "choice p": Case(seeded(lambda r, a: r.choice(4, 3, p=abs(a) / abs(a).sum())), (V.double(),), told=True),
    "permutation": Case(seeded(lambda r, a: r.permutation(a)), (V,), told=True),
    "shuffle": Case(seeded(lambda r, a: shuffled(r, a.copy())), (V,), told=True),
    "poisson": Case(seeded(lambda r, a: r.poisson(abs(a))), (V,), told=True),
    "uniform": Case(seeded(lambda r, a: r.uniform(0, abs(a))), (V,), told=True),
    "binomial": Case(seeded(lambda r, i: r.binomial(i + 3, 0.5)), (I,), told=True),
    "seed": Case(
        lambda i: [np.random.RandomState(i).rand(2), np.random.default_rng(i).random(2)], (I,), told=True
    ),
    "seed of the module": Case(lambda i: (np.random.seed(i), np.random.rand(2))[1], (I,), told=True),
    "seed of a label": Case(lambda i: np.random.default_rng(i[0]).random(2), (I,), told=True),
    "sequence": Case(lambda i: np.random.default_rng(np.random.SeedSequence(i)).random(2), (I,), told=True),
    "module": Case(
        module(lambda a: [np.random.normal(a), np.random.choice(a, 2), np.random.permutation(a)]),
        (V,),
        told=True,
    ),
    "module shuffle": Case(module(lambda a: shuffled(np.random, a.copy())), (V,), told=True),
    "integers": Case(lambda i: np.random.default_rng(3).integers(i + 1, size=4), (I,), told=True),
    "multinomial": Case(
        seeded(lambda r, a: r.multinomial(4, abs(a) / abs(a).sum())), (V.double(),), told=True
    ),
    "permuted": Case(lambda a: np.random.default_rng(3).permuted(a), (V,), told=True),
    "out": Case(lambda a: np.random.default_rng(3).random(out=a.astype(float)), (V,), told=True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [pytest.param(c, id=n) for n, c in (READ | TOLD | RANDOM).items()])
def test_nothing_is_dropped(case: Case) -> None:
    agrees(case, kinds=4)


#: Of an array, and of a tensor that never was one.
TENSORS: dict[str, Callable[[Any, Tensor], Any]] = {
    "add": lambda a, t: [np.add(a, t), np.add(t, a), np.add(PLAIN, t)],
    "methods": lambda a, t: [np.add.reduce(t[None]), np.add.outer(PLAIN, t)],
    "concatenate": lambda a, t: [np.concatenate([a, t]), np.concatenate([PLAIN, t])],
    "stack": lambda a, t: np.stack([t, t]),
    "where": lambda a, t: [np.where(t > 0, PLAIN, 0), np.where(PLAIN > 0, t, a)],
    "sort": lambda a, t: [np.sort(t), np.argsort(t)],
    "dot": lambda a, t: np.dot(TABLE.T, t),
    "methods of plain": lambda a, t: [
        TABLE.T.dot(t),
        np.sort(PLAIN).searchsorted(t),
        PLAIN.take((t > 0).long()),
    ],
    "index": lambda a, t: [PLAIN[(t > 0).long()], TABLE[(t > 0).long(), 1]],
    "write": lambda a, t: fresh(lambda o: o.__setitem__(Ellipsis, t))(),
    "write at": lambda a, t: fresh(lambda o: o.__setitem__((t > 0).long(), 9.0))(),
    "array": lambda a, t: [np.array(t), np.asarray(t), np.array(object=t)],
    "array of tensors": lambda a, t: np.array([t, t]),
    "array of one tensor": lambda a, t: np.asarray([[t]], dtype=np.float64),
    "array of numbers": lambda a, t: np.array([t[0], t[1]]),
    "full": lambda a, t: np.full((2, 4), t),
    "full of a list": lambda a, t: np.full((1, 2, 4), [t, a]),
    "iadd": lambda a, t: fresh(lambda o: np.add(o, t, out=o))(),
    "at": lambda a, t: fresh(lambda o: np.add.at(o, (t > 0).long(), 1))(),
    "interp": lambda a, t: np.interp(t, [0.0, 1.0], [2.0, 3.0]),
    "random": lambda a, t: np.random.RandomState(3).normal(t, 0.5),
    "fill": lambda a, t: fresh(lambda o: o.fill(t[0]))(),
    "types": lambda a, t: [np.float64(t), np.float32(t[0]), np.float64([t, t])],
    "fromiter": lambda a, t: np.fromiter(t, np.float32),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_among_arguments(name: str) -> None:
    from tests.arrays import tensors

    check(lambda a, t: tensors(TENSORS[name](a.numpy(), t)), V, V * 0.5 + 0.1, opaque=True, kinds=4)
