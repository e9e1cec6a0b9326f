"""Functions that numba compiled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import causaltrace
from causaltrace.report.model import Report
from tests.small import Toy, stream

numba = pytest.importorskip("numba")


def looked_up(table: Any, keys: Any) -> Any:
    out = np.zeros(len(keys))
    for i in range(len(keys)):
        out[i] = table[keys[i]]
    return out


def filled(out: Any, keys: Any) -> None:
    for i in range(len(keys)):
        out[i] = keys[i] * 0.1


def two(keys: Any) -> Any:
    return keys * 0.1, keys[0] * 0.1


def number(keys: Any) -> Any:
    return keys.sum() * 0.1


def doubled(x: float) -> float:
    return x * 0.2


def carriers() -> dict[str, Callable[[Any], Any]]:
    """Compiled when they are first called."""
    table = np.linspace(0, 1, 13)
    look, fill, pair, total = map(numba.njit, (looked_up, filled, two, number))

    def by_writing(x: Any) -> Any:
        out = np.zeros(len(x))
        fill(out, x)
        return out

    def into_older(x: Any) -> Any:
        fill(table, x)
        return table[: len(x)]

    return {
        "returned": lambda x: look(table, x),
        "written": by_writing,
        "written to what is older": into_older,
        "first of two": lambda x: pair(x)[0],
        "second of two": lambda x: np.full(1, pair(x)[1]),
        "number": lambda x: np.full(1, total(x)),
        "ufunc": numba.vectorize(doubled),
        "ufunc with types": numba.vectorize(["float64(float64)"])(doubled),
    }


def judged(name: str, lag: int, ready: bool) -> Report:
    tokens, model, carry = stream(), Toy(), carriers()[name]
    if ready:
        carry(tokens[:1].numpy().copy())  # nobody checks bounds
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        x = tokens.numpy()
        for t in range(2, 24):
            hint = torch.from_numpy(carry(x[t - lag : t + 1 - lag])).float()
            F.cross_entropy(model(tokens[:t])[-1:] + hint * model.head[0], tokens[t : t + 1]).item()
    return trace.report


@pytest.mark.parametrize("name", carriers())
@pytest.mark.parametrize("ready", [True, False])
def test_what_goes_in_may_come_out(name: str, ready: bool) -> None:
    legal, leak = judged(name, 1, ready), judged(name, 0, ready)
    assert legal.status == "clean" and legal.scored == 22, legal
    assert leak.status != "clean", leak


def test_numbers_are_the_same() -> None:
    table, x = np.linspace(0, 1, 13), stream()
    look, fill = numba.njit(looked_up), numba.njit(filled)
    with causaltrace.watch(x):
        out, into = look(table, x.numpy()), np.zeros(24)
        fill(into, x.numpy())
    wanted = numba.njit(looked_up)(table, x.numpy())
    assert out.tolist() == wanted.tolist() and into.tolist() == (x.numpy() * 0.1).tolist()
    assert type(look(table, x.numpy())) is np.ndarray and look.signatures


def test_it_compiles_inside_and_after() -> None:
    """Numba knows ``np.zeros`` by its identity."""
    inside, after = numba.njit(looked_up), numba.njit(looked_up)
    with causaltrace.watch(stream()):
        assert inside(np.ones(3), np.arange(2)).sum() == 2
    assert after(np.ones(3), np.arange(2)).sum() == 2


def test_errors_travel_on() -> None:
    def fails(x: Any) -> Any:
        raise ValueError("mine")

    compiled = numba.njit(fails)
    tokens = stream()
    with causaltrace.watch(tokens), pytest.raises(ValueError, match="mine"):
        compiled(tokens.numpy())


INSIDE = """
import numpy as np, torch, causaltrace

tokens = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
with causaltrace.watch(tokens) as trace:
    import numba

    @numba.njit
    def zeros(x):
        out = np.zeros(len(x))
        out[0] = x[0]
        return out

    assert zeros(tokens.numpy())[0] == 3
    torch.nn.functional.cross_entropy(torch.from_numpy(zeros(tokens.numpy()))[None], tokens[:1]).item()
assert trace.report.status == "unverified", trace.report
assert numba.njit(zeros.py_func)(tokens.numpy()).sum() == 3
"""


def test_it_may_be_imported_inside() -> None:
    subprocess.run([sys.executable, "-c", INSIDE], check=True)
