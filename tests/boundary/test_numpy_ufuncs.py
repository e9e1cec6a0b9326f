"""Every ufunc of numpy, called in every way, agrees with perturbation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.arrays import Case, Given, agrees
from tests.oracle import Index

V = torch.tensor([0.3, -1.2, 2.1, 0.7])
W = torch.tensor([1.4, 0.2, -0.6, 0.9])
M = torch.tensor([[0.3, -1.2, 2.1], [0.7, 1.1, -0.4]])
ROW = torch.tensor([0.9, -2.0, 0.4])
I = Index(torch.tensor([3, 0, 6, 5]), range(8))  # noqa: E741
J = Index(torch.tensor([1, 2, 4, 3]), range(1, 7))
B = torch.tensor([True, False, True, True])
D = torch.tensor([False, False, True, True])

UFUNCS = {u.__name__: u for u in vars(np).values() if isinstance(u, np.ufunc)}
#: Those that see more than one element at a time.
PRODUCTS = ("matmul", "vecdot", "matvec", "vecmat")
EACH = [name for name in UFUNCS if name not in PRODUCTS]


def ints(*given: Given) -> bool:
    return all(isinstance(g, Index) for g in given)


def kinds(ufunc: np.ufunc) -> list[tuple[Given, ...]]:
    """Inputs of each kind that a ufunc takes: floats, integers, bools."""
    out: list[tuple[Given, ...]] = []
    for given in ((V, W), (I, J), (B, D), (V, J), (I, W)):
        arrays = [g.tensor.numpy() if isinstance(g, Index) else g.numpy() for g in given[: ufunc.nin]]
        try:
            with np.errstate(all="ignore"):
                ufunc(*arrays)
        except TypeError:
            continue
        out.append(given[: ufunc.nin])
    return list(dict.fromkeys(out))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", EACH)
def test_each(name: str) -> None:
    ufunc = UFUNCS[name]
    found = kinds(ufunc)
    assert found or name == "isnat"
    for given in found:
        agrees(Case(ufunc, given, loose=True), kinds=(0, 3))


def _into(ufunc: np.ufunc, a: Any, b: Any) -> Any:
    """Arrays for the results, that were made before."""
    types = ufunc.resolve_dtypes((a.dtype, b.dtype, *[None] * ufunc.nout))[2:]
    return tuple(np.full(4, 1, t) for t in types)


def _number(a: Any) -> Any:
    return {"f": 1.5, "i": 2, "b": True}[a.dtype.kind]


FORMS: dict[str, Callable[[np.ufunc, Any, Any], Any]] = {
    "column": lambda u, a, b: u(a.reshape(-1, 1), b),
    "new axis": lambda u, a, b: u(a[:, None], b),
    "outer": lambda u, a, b: u.outer(a, b),
    "number right": lambda u, a, b: u(a, _number(b)),
    "number left": lambda u, a, b: u(_number(a), b),
    "scalar": lambda u, a, b: u(a, b.dtype.type(2)),
    "list of arrays": lambda u, a, b: u([a, a[::-1]], b),
    "list": lambda u, a, b: u(a, [_number(b)] * 4),
    "reversed": lambda u, a, b: u(a[::-1], b[::-1]),
    "plain": lambda u, a, b: u(a, np.full(4, _number(b))),
    "out": lambda u, a, b: u(a, b, out=_into(u, a, b)),
    "where": lambda u, a, b: u(a, b, where=np.array([True, False, True, True]), out=_into(u, a, b)),
    "where labels": lambda u, a, b: u(a, b, where=a > b, out=_into(u, a, b)),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [n for n in EACH if UFUNCS[n].nin == 2])
def test_operands_of_any_kind(name: str, form: str) -> None:
    ufunc = UFUNCS[name]
    agrees(Case(lambda a, b: FORMS[form](ufunc, a, b), kinds(ufunc)[0], loose=True), kinds=(0, 3))


FOLDS: dict[str, Callable[[np.ufunc, Any], Any]] = {
    "axis 0": lambda u, a: u.reduce(a),
    "axis 1": lambda u, a: u.reduce(a, axis=1),
    "axis -1 kept": lambda u, a: u.reduce(a, axis=-1, keepdims=True),
    "two axes": lambda u, a: u.reduce(a[None], axis=(1, 2)),
    "no axes": lambda u, a: u.reduce(a, axis=()),
    "out": lambda u, a: u.reduce(a, axis=0, out=np.zeros(3, u.resolve_dtypes((a.dtype, a.dtype, None))[2])),
    "accumulate": lambda u, a: u.accumulate(a),
    "accumulate 1": lambda u, a: u.accumulate(a, axis=1),
    "accumulate out": lambda u, a: u.accumulate(
        a, 1, out=np.zeros((2, 3), u.resolve_dtypes((a.dtype, a.dtype, None))[2])
    ),
    "reduceat": lambda u, a: u.reduceat(a, [0, 2, 1], axis=1),
}
FOLDING = (
    "add multiply maximum minimum fmax fmin logical_and logical_or logical_xor bitwise_and bitwise_or "
    "bitwise_xor logaddexp hypot subtract divide gcd "
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("way", FOLDS)
@pytest.mark.parametrize("name", FOLDING.split())
def test_folded(name: str, way: str) -> None:
    ufunc = UFUNCS[name]
    if way == "two axes" and not _reorders(ufunc):
        return
    given: Given = M
    if "bitwise" in name or name == "gcd":
        given = Index(torch.tensor([[3, 0, 6], [5, 1, 2]]), range(8))
    agrees(Case(lambda a: FOLDS[way](ufunc, a), (given,), loose=True), kinds=(0, 3))


def _reorders(ufunc: np.ufunc) -> bool:
    try:
        ufunc.reduce(np.ones((2, 2), int), axis=(0, 1))
    except ValueError:
        return False
    return True
