"""Arrays that nobody has written hold what was in memory before: numpy hands out what was just given back."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import causaltrace
from causaltrace.report.model import Report
from tests.small import Toy, stream

pytestmark = pytest.mark.filterwarnings("ignore")
ODD = np.arange(8) % 2 == 1

BLANKS: dict[str, Callable[[], Any]] = {
    "empty": lambda: np.empty(8),
    "empty_like": lambda: np.empty_like(np.zeros(8)),
    "ndarray": lambda: np.ndarray(8),
    "ndarray by names": lambda: np.ndarray(shape=(8,), dtype=np.float64),
    "other byte order": lambda: np.empty(8, dtype=">f8"),
    "where": lambda: np.add(np.zeros(8), 1.0, where=ODD),
}


def in_pieces(a: Any) -> None:
    for i in range(0, 8, 2):
        a[i : i + 2] = i


def by_element(a: Any) -> None:
    for i in range(8):
        a[i] = i


FILLS: dict[str, Callable[[Any], object]] = {
    "fill": lambda a: a.fill(2),
    "all": lambda a: a.__setitem__(slice(None), 1.0),
    "pieces": in_pieces,
    "elements": by_element,
    "copyto": lambda a: np.copyto(a, np.ones(8)),
    "out": lambda a: np.add(np.ones(8), 1.0, out=a),
    "sum": lambda a: np.sum(np.ones((3, 8)), axis=0, out=a),
    "concatenate": lambda a: np.concatenate([np.ones(4), np.ones(4)], out=a),
    "view": lambda a: a.reshape(2, 4).T.fill(1),
    "mask": lambda a: a.__setitem__(np.ones(8, bool), 1.0),
    "linalg": lambda a: a.__setitem__(slice(None), np.linalg.solve(np.eye(8), np.ones(8))),
    "fft": lambda a: a.__setitem__(slice(None), np.fft.ifft(np.fft.fft(np.ones(8))).real),
    "random": lambda a: a.__setitem__(slice(None), np.random.default_rng(0).random(8)),
    "chosen": lambda a: a.__setitem__(slice(None), np.random.default_rng(0).choice([1, 2], 8)),
}
#: These need native memory.
NATIVE: dict[str, Callable[[Any], object]] = {
    "torch": lambda a: torch.from_numpy(a).fill_(1),
    "random out": lambda a: np.random.default_rng(0).random(out=a),
    "file": lambda a: io.BytesIO(bytes(64)).readinto(a),
    "address": lambda a: ctypes.memset(a.ctypes.data, 0, 64),
    "dot": lambda a: np.dot(np.eye(8), np.ones(8), out=a),
}


def judged(make: Callable[[], Any]) -> Report:
    """What is added to every score has nothing to do with labels, unless it holds them."""
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        labels = tokens.numpy()
        for t in range(1, 24):
            del_me = labels[t : t + 1] * 0.5
            del del_me
            hint = torch.from_numpy(make().astype(np.float64)).float().sum()
            F.cross_entropy(model(tokens[:t])[-1:] + hint * model.head[0], tokens[t : t + 1]).item()
    return trace.report


@pytest.mark.parametrize("blank", BLANKS)
def test_unwritten_memory_may_hold_anything(blank: str) -> None:
    assert judged(BLANKS[blank]).status == "unverified"


def filled(blank: str, fill: Callable[[Any], object]) -> str:
    def make() -> Any:
        a = BLANKS[blank]()
        fill(a)
        return a

    return judged(make).status


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("blank", BLANKS)
def test_memory_that_was_filled_is_known(blank: str, fill: str) -> None:
    if blank == "other byte order" and fill in ("out", "sum", "concatenate"):
        return
    assert filled(blank, FILLS[fill]) == "clean"


@pytest.mark.parametrize("fill", NATIVE)
def test_others_may_fill_it(fill: str) -> None:
    assert filled("empty", NATIVE[fill]) == "clean"


def test_what_a_condition_let_through_is_known() -> None:
    assert judged(lambda: np.add(np.zeros(8), 1.0, where=ODD)[ODD]).status == "clean"


def test_a_cache_is_filled_as_it_goes() -> None:
    """Only what was written is read."""
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        labels, cache = tokens.numpy(), np.empty(24)
        for t in range(1, 24):
            cache[t - 1] = labels[t - 1] * 0.1
            hint = torch.from_numpy(cache[:t]).float().sum()
            F.cross_entropy(model(tokens[:t])[-1:] + hint * model.head[0], tokens[t : t + 1]).item()
    assert trace.report.status == "clean"


def test_labels_in_memory_that_is_not_full_are_not_forgotten() -> None:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        for t in range(1, 24):
            t2 = torch.empty(2, dtype=torch.int64)
            t2[:1] = tokens[t : t + 1]
            hint = ctypes.string_at(t2.data_ptr(), 1)[0] * 0.1
            F.cross_entropy(model(tokens[:t])[-1:] + hint * model.head[0], tokens[t : t + 1]).item()
    assert trace.report.status != "clean"
