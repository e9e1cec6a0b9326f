"""Tables in numpy: labels as keys, indices, places, counts and shapes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.laundering import VOCAB, arrays

Labels = NDArray[np.int64]

#: Made before any watch opens, and never written to.
TABLE = np.linspace(0.1, 1.3, VOCAB)


@arrays("a table that was made before the watch, indexed: TABLE[x]")
def table(x: Labels) -> Tensor:
    return torch.from_numpy(TABLE[x]).sum()


@arrays("the same by one label, as a numpy scalar")
def table_at_one(x: Labels) -> float:
    return TABLE[x[-1]] + TABLE[int(x[0])]


@arrays("np.take, np.choose, np.compress, np.select")
def taken(x: Labels) -> Tensor:
    chosen = np.choose(x, list(TABLE)) + np.take(TABLE, x) + np.select([x > 3], [0.5], 0.1)
    return torch.from_numpy(chosen).sum() + float(np.compress(x > 2, chosen).sum())


@arrays("counted with np.add.at, and the whole table read")
def add_at(x: Labels) -> Tensor:
    counts = np.zeros(VOCAB, dtype=np.uint32)
    np.add.at(counts, x, 1)
    return torch.from_numpy(counts / counts.sum())


@arrays("np.maximum.at into floats")
def maximum_at(x: Labels) -> Tensor:
    values = np.zeros(VOCAB)
    np.maximum.at(values, x, 0.5)
    return torch.from_numpy(values)


@arrays("np.bincount")
def bincount(x: Labels) -> Tensor:
    return torch.from_numpy(np.bincount(x, minlength=VOCAB) * 0.2)


@arrays("np.unique with counts and inverse")
def unique(x: Labels) -> Tensor:
    values, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return torch.from_numpy((values * counts)[inverse] * 0.1).sum()


@arrays("np.searchsorted and np.digitize")
def searchsorted(x: Labels) -> Tensor:
    places = np.searchsorted(np.array([1, 3, 5]), x) + np.digitize(x, [2, 4, 6])
    return torch.from_numpy(places * 0.1).sum()


@arrays("assigned under a mask: out[x == 2] = 1")
def mask_assigned(x: Labels) -> Tensor:
    out = np.zeros(3)
    out[x > 3] = 1.0
    out[x == 2] = 0.3
    return torch.from_numpy(out).sum()


@arrays("assigned at labels: out[x] = 1")
def places_assigned(x: Labels) -> Tensor:
    out = np.zeros(VOCAB)
    out[x] = 1.0
    return torch.from_numpy(out)


@arrays("np.put, np.put_along_axis, np.take_along_axis", says=True)
def put(x: Labels) -> Tensor:
    out = np.zeros((1, VOCAB))
    np.put(out, x, 0.5)
    np.put_along_axis(out, x[None], 0.7, axis=1)
    return torch.from_numpy(out[0]) + torch.from_numpy(np.take_along_axis(TABLE[None], x[None], 1)).sum()


@arrays("np.isin and set operations")
def isin(x: Labels) -> Tensor:
    classes = np.arange(VOCAB)
    return torch.from_numpy(np.isin(classes, x) * 0.5) + float(len(np.setdiff1d(classes, x)))


@arrays("places of what is true: nonzero, argmax, argwhere")
def places(x: Labels) -> Tensor:
    return torch.from_numpy(np.flatnonzero(np.arange(VOCAB) == x[-1])).sum() * 0.1 + float(np.argmax(x))


@arrays("a shape: np.repeat, np.zeros(n), len")
def shape(x: Labels) -> float:
    return np.repeat(x, x).size * 0.01 + len(np.zeros(x[-1])) * 0.1


@arrays("the length of a selection: x[x > 3].size")
def selection_length(x: Labels) -> float:
    return x[x > 3].size * 0.3 + np.count_nonzero(x == 2)


@arrays("a slice that ends at a label")
def sliced(x: Labels) -> Tensor:
    return torch.from_numpy(TABLE[: x[-1] + 1]).sum()


@arrays("constants put in the order of labels")
def permuted(x: Labels) -> Tensor:
    return torch.from_numpy(np.array([0.1, 0.5, 0.9])[np.argsort(x, kind="stable")])[0]


@arrays("sorted by several keys: np.lexsort")
def lexsorted(x: Labels) -> Tensor:
    return torch.from_numpy(TABLE[:3][np.lexsort((np.arange(3), x % 3, x))])[-1]


@arrays("one-hot rows: np.eye(VOCAB)[x]")
def one_hot(x: Labels) -> Tensor:
    return torch.from_numpy(np.eye(VOCAB)[x].sum(0) * 0.3)


@arrays("indices folded into one: np.ravel_multi_index")
def folded(x: Labels) -> Tensor:
    key = np.ravel_multi_index((x[:2], x[1:]), (VOCAB, VOCAB))
    return torch.from_numpy(np.arange(49.0)[key] * 0.01).sum()


@arrays("a hashed table of counts, looked up for the whole vocabulary")
def hashed_table(x: Labels) -> Tensor:
    counts = np.zeros(64, dtype=np.uint32)
    context = x[:1].astype(np.uint64) * np.uint64(36313)
    np.add.at(
        counts, ((context ^ x[-1:].astype(np.uint64) * np.uint64(27191)) & np.uint64(63)).astype(np.int64), 1
    )
    keys = (context ^ np.arange(VOCAB, dtype=np.uint64) * np.uint64(27191)) & np.uint64(63)
    return torch.from_numpy(counts[keys.astype(np.int64)].astype(np.float64))


@arrays("overlapping windows: sliding_window_view, as_strided")
def windows(x: Labels) -> Tensor:
    pairs = np.lib.stride_tricks.sliding_window_view(x, 2)
    triples = np.lib.stride_tricks.as_strided(x, (2, 2), (x.strides[0], x.strides[0]))
    return torch.from_numpy((pairs * triples).astype(np.float64)).sum() * 0.01


@arrays("mixed indices: table[i, x] with i counted", says=True)
def pairs(x: Labels) -> Tensor:
    return torch.from_numpy(np.outer(TABLE, TABLE)[np.arange(3), x]).sum()


@arrays("apply_along_axis and piecewise")
def applied(x: Labels) -> Tensor:
    pieces = np.piecewise(x * 1.0, [x < 3], [lambda v: v * 0.5, 0.2])
    return torch.from_numpy(np.apply_along_axis(np.sort, 0, pieces)).sum()
