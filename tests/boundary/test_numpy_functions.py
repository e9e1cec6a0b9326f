"""Every function of numpy that has a row agrees with perturbation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.arrays import Case, agrees
from tests.oracle import Index

V = torch.tensor([0.3, -1.2, 2.1, 0.7])
W = torch.tensor([1.4, 0.2, -0.6])
M = torch.tensor([[0.3, -1.2, 2.1], [0.7, 1.1, -0.4]])
N = torch.tensor([[1.3, 0.2, -0.1], [0.6, 2.1, 0.4], [-0.3, 0.5, 1.7]])
C = torch.tensor([[[0.3, -1.2], [2.1, 0.7]], [[1.1, -0.4], [0.9, 0.2]]])
P = torch.tensor([[2.3, 0.6, -1.1], [-0.2, 1.9, 0.5]])
B = torch.tensor([True, False, True, True])
D = torch.tensor([[True, False, True], [False, True, True]])
I = Index(torch.tensor([3, 0, 2, 1]), range(4))  # noqa: E741
J = Index(torch.tensor([1, 2, 0]), range(3))
K = Index(torch.tensor([[1, 2, 0], [0, 0, 2]]), range(3))
swv = np.lib.stride_tricks.sliding_window_view

MOVED: dict[str, Case] = {
    "concatenate": Case(lambda a, b: np.concatenate([a, b]), (V, W)),
    "concatenate 1": Case(lambda a, b: np.concatenate((a, b, a), axis=1), (M, M)),
    "concatenate none": Case(lambda a, b: np.concatenate([a, b], axis=None), (M, W)),
    "concatenate plain": Case(lambda a: np.concatenate([np.zeros(2), a, [1.0]]), (V,)),
    "concatenate out": Case(lambda a, b: np.concatenate([a, b], out=np.zeros(7)), (V, W)),
    "concatenate dtype": Case(lambda a, b: np.concatenate([a, b], dtype=np.float64), (V, W)),
    "concatenate lists": Case(lambda a, b: np.concatenate([[a, a], b[None]]), (W, W)),
    "stack": Case(lambda a, b: np.stack([a, b], axis=-1), (W, W)),
    "stack out": Case(lambda a, b: np.stack((a, b), out=np.zeros((2, 3))), (W, W)),
    "vstack": Case(lambda a, b: np.vstack([a, b]), (M, W)),
    "hstack": Case(lambda a, b: np.hstack([a, b]), (V, W)),
    "dstack": Case(lambda a: np.dstack([a, a]), (M,)),
    "column_stack": Case(lambda a, b: np.column_stack([a, b]), (W, W)),
    "block": Case(lambda a, b: np.block([[a, a], [b, b]]), (M, M)),
    "append": Case(lambda a, b: np.append(a, b), (V, W)),
    "insert": Case(lambda a, b: np.insert(a, 1, b[0:1]), (V, W)),
    "insert several": Case(lambda a: np.insert(a, [1, 2], [5.0, 6.0]), (V,)),
    "delete": Case(lambda a: np.delete(a, 1), (V,)),
    "delete axis": Case(lambda a: np.delete(a, [0, 2], axis=1), (M,)),
    "roll": Case(lambda a: np.roll(a, 1), (M,)),
    "roll axis": Case(lambda a: np.roll(a, (1, 2), axis=(0, 1)), (M,)),
    "flip": Case(lambda a: [np.flip(a), np.flip(a, 1), np.fliplr(a), np.flipud(a)], (M,)),
    "rot90": Case(lambda a: [np.rot90(a), np.rot90(a, 2), np.rot90(a, k=3)], (M,)),
    "tile": Case(lambda a: np.tile(a, (2, 2)), (M,)),
    "repeat": Case(lambda a: [np.repeat(a, 2), np.repeat(a, [1, 2, 0], axis=1)], (M,)),
    "reshape": Case(lambda a: [np.reshape(a, (3, 2)), np.reshape(a, -1, order="F")], (M,)),
    "ravel": Case(lambda a: [np.ravel(a), np.ravel(a, "F"), np.ravel(a.T)], (M,)),
    "ravel a tuple": Case(lambda a, b: np.ravel((a, b)), (W, W)),
    "transpose": Case(lambda a: [np.transpose(a), np.transpose(a, (1, 0)), a.T, a.mT], (M,)),
    "swapaxes": Case(lambda a: [np.swapaxes(a, 0, 2), np.moveaxis(a, 0, -1), np.rollaxis(a, 2)], (C,)),
    "squeeze": Case(lambda a: [np.squeeze(a[None]), np.expand_dims(a, 1), np.expand_dims(a, (0, 2))], (M,)),
    "broadcast_to": Case(lambda a: np.broadcast_to(a, (2, 3)), (W,)),
    "broadcast_arrays": Case(lambda a, b: list(np.broadcast_arrays(a, b[:, None])), (W, V)),
    "atleast": Case(lambda a, b: [np.atleast_1d(a), *np.atleast_2d(a, b), np.atleast_3d(b)], (W, M)),
    "split": Case(lambda a: [np.split(a, 2), np.split(a, [1, 3]), np.array_split(a, 3)], (V,)),
    "hsplit": Case(lambda a: [np.hsplit(a, 2), np.vsplit(a, 2), np.dsplit(a, 2)], (C,)),
    "diag": Case(
        lambda a, b: [np.diag(a), np.diag(a, 1), np.diag(b), np.diagflat(b), np.diagonal(a, 1)], (M, W)
    ),
    "tril": Case(lambda a: [np.tril(a), np.triu(a, 1)], (N,)),
    "copy": Case(lambda a: [np.copy(a), np.copy(a.T, "K")], (M,)),
    "permute_dims": Case(
        lambda a: [np.permute_dims(a), np.matrix_transpose(a), np.linalg.matrix_transpose(a)], (M,)
    ),
    "unstack": Case(lambda a: list(np.unstack(a, axis=1)), (M,)),
    "windows": Case(lambda a: swv(a, 2), (V,)),
    "windows 2": Case(lambda a: swv(a, (2, 2)), (M,)),
    "as_strided": Case(lambda a: np.lib.stride_tricks.as_strided(a, (2, 2), (4, 4)), (V,), told=True),
    "pad": Case(
        lambda a: [np.pad(a, 1, mode=m) for m in ("constant", "edge", "wrap", "reflect", "symmetric")], (M,)
    ),
    "pad value": Case(lambda a: np.pad(a, ((1, 0), (0, 2)), constant_values=3.0), (M,)),
    "pad odd": Case(lambda a: np.pad(a, 1, "reflect", reflect_type="odd"), (V,)),
    "pad mean": Case(
        lambda a: [np.pad(a, 1, m) for m in ("mean", "maximum", "minimum", "median")], (V,), loose=True
    ),
    "pad ramp": Case(lambda a: np.pad(a, 2, "linear_ramp", end_values=1.0), (V,), loose=True),
    "resize": Case(lambda a: np.resize(a, (2, 5)), (V,)),
    "meshgrid": Case(lambda a, b: list(np.meshgrid(a, b)), (W, V)),
    "meshgrid sparse": Case(lambda a, b: list(np.meshgrid(a, b, sparse=True, indexing="ij")), (W, V)),
    "ix_": Case(lambda a, b: a[np.ix_([0, 1], [2, 0])], (M, W)),
    "shift": Case(lambda a: [np.fft.fftshift(a), np.fft.ifftshift(a, 0)], (M,)),
    "linalg.diagonal": Case(lambda a: np.linalg.diagonal(a, offset=1), (C,)),
    "trim_zeros": Case(lambda a: np.trim_zeros(a), (V,), told=True),
    "astype": Case(lambda a: [np.astype(a, np.float64), np.astype(a, np.float32, copy=False)], (M,)),
}

CHOSEN: dict[str, Case] = {
    "where": Case(lambda c, a, b: np.where(c, a, b), (D, M, P)),
    "where plain": Case(lambda c: np.where(c, 1.0, np.zeros(3)), (D,)),
    "where floats": Case(lambda c, b: np.where(c, 2.0, b), (K, M)),
    "where list": Case(lambda a, b: np.where([a, b], 1, 0), (B, B)),
    "nonzero": Case(lambda c: list(np.nonzero(c)), (D,), told=True),
    "where one": Case(lambda c: list(np.where(c)), (D,), told=True),
    "flatnonzero": Case(lambda c: [np.flatnonzero(c), np.argwhere(c)], (B,), told=True),
    "extract": Case(lambda c, a: [np.extract(c, a), np.compress(c, a)], (B, V), told=True),
    "compress axis": Case(lambda a: np.compress([True, False, True], a, axis=1), (M,)),
    "compress out": Case(
        lambda a: np.compress([True, False, True], a, axis=1, out=np.zeros((2, 2), np.float32)), (M,)
    ),
    "take": Case(lambda a, i: np.take(a, i), (V, I)),
    "take axis": Case(lambda a, i: np.take(a, i, axis=1), (M, J), loose=True),
    "take flat": Case(lambda a, i: np.take(a, i + 2), (M, J), loose=True),
    "take modes": Case(
        lambda a, i: [np.take(a, i * 2, mode="wrap"), np.take(a, i * 2 - 2, mode="clip")], (V, I), loose=True
    ),
    "take out": Case(lambda a, i: np.take(a, i, out=np.zeros(4, np.float32)), (V, I)),
    "take negative": Case(lambda a, i: np.take(a, i - 4), (V, I)),
    "take bytes": Case(lambda a, i: np.take(a, i.astype(np.uint8)), (V, I)),
    "choose": Case(lambda i, a, b: np.choose(i, [a, b, b * 2]), (J, W, W)),
    "choose numbers": Case(lambda i: np.choose(i, [0.5, 1.5, 2.5]), (K,)),
    "choose modes": Case(
        lambda i, a: [np.choose(i + 1, [a, 1.0], mode="wrap"), np.choose(i - 1, [a, 1.0], mode="clip")],
        (J, W),
    ),
    "choose rows": Case(lambda i, a: np.choose(i, a), (J, N)),
    "choose out": Case(lambda i, a: np.choose(i, a, out=np.zeros(3)), (J, N)),
    "select": Case(lambda c, a, b: np.select([c, ~c], [a, b], 5.0), (D, M, P)),
    "select default": Case(lambda c, a: np.select([c], [a]), (D, M)),
    "piecewise": Case(lambda a: np.piecewise(a, [a > 0], [lambda x: x * 2, 1.0]), (V,), told=True),
    "take_along_axis": Case(lambda a, i: np.take_along_axis(a, i, axis=1), (M, K), loose=True),
    "take_along none": Case(lambda a, i: np.take_along_axis(a, i, axis=None), (V, I)),
    "searchsorted": Case(
        lambda a, v: np.searchsorted(a, v), (torch.tensor([0.1, 0.9, 2.0]), V), loose=True, large=1.5
    ),
    "searchsorted right": Case(lambda v: np.searchsorted([0.1, 0.9, 2.0], v, side="right"), (M,)),
    "searchsorted sorter": Case(
        lambda v, s: np.searchsorted(np.array([2.0, 0.1, 0.9]), v, sorter=s), (V, J), loose=True
    ),
    "digitize": Case(lambda v: np.digitize(v, [0.1, 0.9, 2.0]), (M,)),
    "interp": Case(lambda x, f: np.interp(x, [0.0, 1.0, 2.0], f), (V, W), loose=True),
    "interp x": Case(lambda x: np.interp(x, [0.0, 1.0, 2.0], [3.0, 1.0, 2.0], left=-1.0), (M,)),
    "interp period": Case(lambda x: np.interp(x, [0.0, 1.0, 2.0], [3.0, 1.0, 2.0], period=3.0), (M,)),
    "isin": Case(lambda a, b: np.isin(a, b), (K, J), loose=True),
    "isin plain": Case(lambda a: np.isin(a, [1, 2]), (K,), loose=True),
    "unravel_index": Case(lambda i: list(np.unravel_index(i, (2, 2))), (I,)),
    "ravel_multi_index": Case(lambda i, j: np.ravel_multi_index((i, j), (3, 3)), (J, J)),
    "nan_to_num": Case(
        lambda a: [np.nan_to_num(a), np.nan_to_num(a / 0.0, posinf=1.0, neginf=-1.0)], (V,), loose=True
    ),
    "clip": Case(
        lambda a, b: [np.clip(a, -1, 1), np.clip(a, b, None), np.clip(a, None, b)], (M, W), loose=True
    ),
    "clip all": Case(lambda a, b: np.clip(a, b, b + 1, out=np.zeros((2, 3), np.float32)), (M, W), loose=True),
    "clip names": Case(lambda a, b: np.clip(a, min=b, max=1.5), (M, W), loose=True),
    "clip bytes": Case(lambda a: np.clip(a.astype(np.uint8), -1, 300), (K,)),
}


def written(fn: Any, shape: Any = (4,), dtype: Any = np.float32) -> Any:
    """``fn`` writes to a fresh array."""

    def run(*given: Any) -> Any:
        out = np.full(shape, 0.25, dtype)
        fn(out, *given)
        return out

    return run


WRITTEN: dict[str, Case] = {
    "copyto": Case(written(np.copyto), (V,)),
    "copyto where": Case(written(lambda o, a, c: np.copyto(o, a, where=c)), (V, B)),
    "copyto broadcast": Case(written(lambda o, a: np.copyto(o, a, casting="unsafe"), (2, 3), np.int64), (W,)),
    "putmask": Case(written(lambda o, c, a: np.putmask(o, c, a)), (B, V)),
    "putmask short": Case(written(lambda o, c, a: np.putmask(o, c, a)), (B, W)),
    "place": Case(written(lambda o, c, a: np.place(o, c, a)), (B, W), loose=True),
    "place one": Case(written(lambda o, c: np.place(o, c, 3.0)), (B,), loose=True),
    "put": Case(written(lambda o, i, a: np.put(o, i, a)), (I, V), loose=True),
    "put plain": Case(written(lambda o, a: np.put(o, [1, 3, 1], a)), (W,), loose=True),
    "put two": Case(written(lambda o, i, a: np.put(o, i, a), (2, 2)), (I, W), loose=True),
    "put turned": Case(lambda i, a: _put_turned(i, a), (I, W), loose=True),
    "put modes": Case(written(lambda o, i: np.put(o, i * 2, 1.0, mode="wrap")), (I,), loose=True),
    "put clip": Case(written(lambda o, i: np.put(o, i * 2, 1.0, mode="clip")), (I,), loose=True),
    "put_along_axis": Case(
        written(lambda o, i, a: np.put_along_axis(o, i, a, 1), (2, 3)), (K, M), loose=True
    ),
    "fill_diagonal": Case(written(lambda o, a: np.fill_diagonal(o, a), (3, 3)), (W,)),
    "fill_diagonal wrap": Case(written(lambda o, a: np.fill_diagonal(o, a, wrap=True), (5, 2)), (W,)),
    "add.at": Case(written(lambda o, i, a: np.add.at(o, i, a)), (I, V), loose=True),
    "add.at plain": Case(written(lambda o, a: np.add.at(o, [1, 1, 3, 1], a)), (V,)),
    "subtract.at": Case(written(lambda o, i: np.subtract.at(o, i, 1.5)), (I,), loose=True),
    "multiply.at": Case(written(lambda o, i, a: np.multiply.at(o, i, a)), (I, V), loose=True),
    "maximum.at": Case(written(lambda o, a: np.maximum.at(o, [0, 0, 1, 2], a)), (V,), loose=True),
    "negative.at": Case(written(lambda o, i: np.negative.at(o, i)), (I,), loose=True),
    "at slice": Case(written(lambda o, a: np.add.at(o, slice(1, 4), a)), (W,)),
    "at mask": Case(written(lambda o, c: np.add.at(o, c, 1.0)), (B,), loose=True),
    "at pairs": Case(written(lambda o, i, j: np.add.at(o, (i, j), 1.0), (3, 3)), (J, J), loose=True),
    "at rows": Case(written(lambda o, i, a: np.add.at(o, i, a), (3, 3)), (J, N), loose=True),
    "at columns": Case(
        written(lambda o, i, a: np.add.at(o, (slice(None), i), a), (2, 3)), (J, M), loose=True
    ),
    "full_like": Case(lambda a: [np.full_like(a, 2.0), np.full((2, 3), a)], (W,)),
}


def _put_turned(i: Any, a: Any) -> Any:
    out = np.full((2, 2), 0.25).T
    np.put(out, i, a)
    return out


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", [pytest.param(c, id=n) for n, c in (MOVED | CHOSEN | WRITTEN).items()])
def test_functions_that_move(case: Case) -> None:
    agrees(case)
