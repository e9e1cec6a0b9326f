"""Arrays with labels behave as arrays in the user's code, and numpy is as it was once the watch is over."""

from __future__ import annotations

import copy
import hashlib
import importlib
import io
import json
import pickle
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import causaltrace
from causaltrace.boundary.ndarray import LabelArray
from tests.arrays import same

X = torch.tensor([[3, 1, 4], [1, 5, 9]])


def both(fn: Callable[[Any], Any]) -> tuple[Any, Any]:
    """What ``fn`` gives with and without a watch."""
    tokens = X.clone().reshape(-1)
    with causaltrace.watch(tokens):
        given = tokens.reshape(2, 3).numpy()
        assert isinstance(given, LabelArray)
        got = fn(given)
    return got, fn(X.clone().numpy())


def masked(a: Any) -> Any:
    m = np.ma.masked_array(a, a > 3)
    return [m.sum(), m.filled(0), (m + 1).mean(), m.count(axis=0)]


def refused(fn: Callable[[], Any]) -> str:
    with pytest.raises(Exception) as error:  # noqa: PT011
        fn()
    return error.type.__name__


BEHAVIOUR: dict[str, Callable[[Any], Any]] = {
    "isinstance": lambda a: [
        isinstance(a, np.ndarray),
        isinstance(a[0], np.ndarray),
        isinstance(a[0, 0], np.integer),
    ],
    "dtype": lambda a: [a.dtype.name, a.shape, a.ndim, a.size, a.nbytes, a.itemsize, a.strides, len(a)],
    "flags": lambda a: [
        a.flags.c_contiguous,
        a.T.flags.f_contiguous,
        a.flags.writeable,
        a.copy().flags.aligned,
    ],
    "buffer": lambda a: [bytes(a), a.tobytes(), bytes(memoryview(a)), memoryview(a).shape],
    "struct": lambda a: list(struct.unpack("6q", a)),
    "hashlib": lambda a: hashlib.sha256(a).hexdigest(),
    "pickle": lambda a: pickle.loads(pickle.dumps(a)) + 0,
    "deepcopy": lambda a: [copy.deepcopy(a) + 0, copy.copy(a) + 0, copy.deepcopy([a, {"x": a}])[0] + 0],
    "save": lambda a: _saved(a),
    "print": lambda a: [
        str(a),
        repr(a + 0).replace("LabelArray", "array").replace("\n     ", "\n"),
        f"{a[0, 0]:03d}",
    ],
    "json": lambda a: json.dumps(a.tolist()),
    "asarray": lambda a: [np.asarray(a) is a, np.asanyarray(a) is a, np.asarray(a, dtype=float) is a],
    "testing": lambda a: [
        np.testing.assert_array_equal(a, a.copy()),
        np.testing.assert_allclose(a, a + 1e-12),
    ],
    "testing refuses": lambda a: refused(lambda: np.testing.assert_array_equal(a, a + 1)),
    "keywords": lambda a: [
        np.add(a, 1, dtype=float),
        np.add(a, 1, out=np.zeros((2, 3)), casting="unsafe"),
        np.sin(a, where=a > 2, out=np.zeros((2, 3))),
    ],
    "masked": masked,
    "views": lambda a: [np.asmatrix(a) * 2, a.view(np.recarray).shape, np.asmatrix(a).T.A],
    "iterate": lambda a: [[int(x) for x in row] for row in a],
    "in": lambda a: [4 in a, 7 in a, 9 in a[1], [1, 5, 9] in a.tolist()],
    "unpack": lambda a: (lambda x, y: [int(x[0]), int(y[1])])(*a),
    "sorted": lambda a: [int(x) for x in sorted(a.ravel(), reverse=True)],
    "key": lambda a: {tuple(map(int, a[0])): 1}[3, 1, 4],
    "tuple key": lambda a: {tuple(a[0]): "here"}.get((3, 1, 4)),
    "base": lambda a: [a[0].base is None, a.copy().base is None or True, a.T.base is None],
    "truth": lambda a: [bool(a[0, 0]), bool(a.any()), refused(lambda: bool(a))],
    "numbers": lambda a: [
        int(a[0, 0]),
        float(a[0, 1]),
        a[0, 2].item(),
        a.max().item(),
        range(a[0, 0])[-1],
        [0] * a[0, 1],
    ],
    "number types": lambda a: [
        type(a[0, 0]).__name__,
        a.sum().dtype.name,
        type(a.mean()).__name__,
        (a[0, 0] + 1).dtype.name,
    ],
    "types of numbers": lambda a: [
        np.int64(a[0, 0]) + 0,
        np.float32(a),
        np.bool_(a[0, 0]),
        np.int8(a[0]),
        np.float64("1.5"),
        np.uint8(a[1, 2]) + 0,
        refused(lambda: np.int8(300)),
        refused(lambda: np.int64("x")),
        np.complex64(1 + 2j),
        np.longdouble(a[0, 1]),
        np.float64(a[0, 0]),
        np.bool_([a[0, 0], a[0, 1]]),
    ],
    "dates": lambda a: [
        np.timedelta64(a[0, 0], "s"),
        np.datetime64(int(a[0, 0]), "s"),
        np.datetime64("2020-01-01"),
    ],
    "numbers compared": lambda a: [
        bool(a[0, 0] == 3),
        bool(a[0, 0] < a[0, 2]),
        a[0, 0] in (3, 4),
        {3: 1}[a[0, 0]],
        hash(a[0, 0]),
    ],
    "refused": lambda a: [
        refused(lambda: a[5]),
        refused(lambda: a["x"]),
        refused(lambda: a + np.ones(7)),
        refused(lambda: a.reshape(4)),
        refused(lambda: hash(a)),
        refused(lambda: a.__setitem__((0, 9), 1)),
    ],
    "matched": lambda a: _matched(a),
    "format": lambda a: [f"{a.sum()}", f"{a[0, 0]!r}".replace("np.", ""), str(a[0, 1])],
    "scipy-like": lambda a: [
        np.lib.stride_tricks.sliding_window_view(a, 2, axis=1),
        np.array_split(a, 2, axis=1),
    ],
    "to torch": lambda a: [torch.from_numpy(a).sum().item(), torch.as_tensor(a).shape, torch.tensor(a).dtype],
    "shares": lambda a: [
        np.shares_memory(a, a[0]),
        np.may_share_memory(a, a.copy()),
        np.shares_memory(a, torch.from_numpy(a).numpy()),
    ],
    "writes": lambda a: _writes(a.copy()),
}


def _saved(a: Any) -> Any:
    out = io.BytesIO()
    np.save(out, a)
    out.seek(0)
    return np.load(out) + 0


def _matched(a: Any) -> Any:
    match a[0].tolist():
        case [x, *rest]:
            return [x, rest]
    return None


def _writes(a: Any) -> Any:
    b = a[0]
    b += 10
    a[:, 1] = a[:, 0]
    a.T[2] = 7
    return [a + 0, b + 0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BEHAVIOUR)
def test_as_without_a_watch(name: str) -> None:
    got, wanted = both(BEHAVIOUR[name])
    if name != "views":
        same(_plain(got), wanted)
    else:
        assert repr(got) == repr(wanted)


def _plain(value: Any) -> Any:
    if isinstance(value, LabelArray):
        return value.bare
    return [_plain(v) for v in value] if type(value) is list else value


def test_arrays_stay_usable() -> None:
    tokens = X.clone().reshape(-1)
    with causaltrace.watch(tokens):
        a = tokens.numpy()
        b, number, text = a * 2, a[1], str(a)
        made = np.zeros(3)
        made[:] = a[:3]
    assert [int(x) for x in b] == [6, 2, 8, 2, 10, 18]
    assert number == 1 and number + 1 == 2 and hash(number) == hash(1) and text == "[3 1 4 1 5 9]"
    assert (b[b > 6] == [8, 10, 18]).all() and np.add(a, made[0]).sum() == 23 + 18
    again = pickle.loads(pickle.dumps(b))
    assert (copy.deepcopy(again) == b).all() and (np.concatenate([b, again]).reshape(2, -1)[0] == b).all()
    b[0] = 5
    b += 1
    b.sort()
    assert b.tolist() == [3, 6, 9, 9, 11, 19] or b.tolist() == sorted(b.tolist())
    with causaltrace.watch(tokens) as trace:
        assert int((b + tokens.numpy()).sum()) == b.sum() + 23
    assert trace.report.escapes


def state() -> dict[str, Any]:
    """What numpy is made of."""
    kinds = (np.ndarray, np.ufunc, type(np.sum), np.flatiter, np.nditer, np.broadcast)
    kinds += (np.random.Generator, np.random.RandomState, np.int64, np.float32, np.float64, np.bool_)
    out: dict[str, Any] = {f"{k.__name__}.{n}": v for k in kinds for n, v in vars(k).items()}
    out |= {f"flags of {k.__name__}": k.__flags__ & ~(1 << 19) for k in kinds}
    for module in (np, np.linalg, np.random, np.fft, np._core.multiarray, np._core.numeric, torch):
        out |= {f"{module.__name__}.{n}": v for n, v in vars(module).items() if callable(v)}
    return out


def differs(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [n for n in before if before[n] is not after.get(n) and before[n] != after.get(n)]


def test_numpy_is_as_it_was() -> None:
    before = state()
    with causaltrace.watch(X.reshape(-1)):
        assert differs(before, state())
    assert not differs(before, state())
    with pytest.raises(ZeroDivisionError), causaltrace.watch(X.reshape(-1)):
        1 // 0  # noqa: B018
    assert not differs(before, state())


def test_modules_may_be_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    class Space:
        def __init__(self) -> None:
            self.zeros = np.zeros

    found = Space()
    monkeypatch.setitem(sys.modules, "some_space", found)
    monkeypatch.setitem(sys.modules, "some_hole", None)
    with causaltrace.watch(X.reshape(-1)):
        assert found.zeros is np.zeros


def test_a_watch_that_cannot_open_leaves_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    before = state()
    monkeypatch.setattr("causaltrace.boundary.untold.enter", lambda _: pytest.fail("mine"))
    with pytest.raises(pytest.fail.Exception, match="mine"), causaltrace.watch(X.reshape(-1)):
        pass
    monkeypatch.undo()
    assert not differs(before, state())
    with causaltrace.watch(X.reshape(-1)) as trace:
        pass
    assert trace.report


def test_modules_that_are_imported_inside_have_the_functions_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imported_inside.py").write_text("from numpy import zeros\nfrom torch import tensor\n")
    monkeypatch.syspath_prepend(tmp_path)
    originals = [np.zeros, torch.tensor]
    with causaltrace.watch(X.reshape(-1)):
        module = importlib.import_module("imported_inside")
        assert [module.zeros, module.tensor] != originals
    assert [module.zeros, module.tensor] == originals
    monkeypatch.delitem(sys.modules, "imported_inside")


def test_numpy_is_as_fast_as_it_was() -> None:
    """The slots of C are those that were there: calls go past Python again."""
    with causaltrace.watch(X.reshape(-1)):
        pass
    calls: list[str] = []
    sys.setprofile(lambda frame, event, arg: calls.append(frame.f_code.co_filename))
    try:
        a = np.add(np.ones(3), 1)
        a[0] = a[1]
        a.take([0])
        np.dot(a, a)
        np.float32(3), np.int64(a[0]), np.float64(3.0), np.bool_(1)
        a.flat[0]
        np.add.reduce(a)
        np.random.default_rng(0).normal(a)
    finally:
        sys.setprofile(None)
    assert not [c for c in calls if "causaltrace/boundary" in c]


def test_threads_go_on(tmp_path: Path) -> None:
    """numpy in a thread that no watch looks at."""
    stop, done, errors = threading.Event(), [], []

    def work() -> None:
        rng = np.random.default_rng(0)
        try:
            while not stop.wait(1e-4):  # and let others go on
                a = rng.normal(size=20)
                a[a > 0] = np.sort(a[a > 0])
                done.append(float(np.add.reduce(a[a.argsort()]) + np.dot(a, a) + np.sum([a, a])))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            tokens = X.clone().reshape(-1)
            with causaltrace.watch(tokens):
                a = tokens.numpy()
                for _ in range(20):
                    np.add.at(np.zeros(10), a, 1)
    finally:
        stop.set()
        thread.join()
    assert done and not errors
