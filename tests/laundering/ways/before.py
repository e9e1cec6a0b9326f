"""What was made before the watch opened: names, copies and memory. These programs begin before it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy import array, asarray
from torch import Tensor, as_tensor, from_numpy, tensor

from tests.laundering import MODEL, N_TOKENS, SEEN, TILT, VOCAB, Piece, arrays, tensors, way

TABLE = np.linspace(0.1, 1.3, VOCAB)


def tilted(tokens: Tensor, source: Any, lag: int) -> Iterator[Tensor]:
    """Rows that are tilted by elements of ``source``: with lag 0 by the label that is about to be charged."""
    for t in range(1, N_TOKENS):
        yield MODEL[tokens[t - 1 : t]] + TILT * float(source[max(t - lag, 0)]) * 0.1


def lagging(words: str, make: Any) -> None:
    """Register ``make``: the tokens to a copy, made before the watch."""

    def leaking(tokens: Tensor) -> Iterator[Piece]:
        return tilted(tokens, make(tokens), 0)

    def legal(tokens: Tensor) -> Iterator[Piece]:
        return tilted(tokens, make(tokens), 1)

    leaking.__name__ = make.__name__
    way(words, legal)(leaking)


@tensors("constructors imported by name: from torch import tensor")
def torch_names(x: Tensor) -> Tensor:
    return tensor([x[-1], x[0]], dtype=torch.float64).sum() * 0.1


@tensors("the same with numpy's: from numpy import asarray, array")
def numpy_names(x: Tensor) -> Tensor:
    return from_numpy(asarray(x) * 0.1).sum() + as_tensor(array(x) * 0.1).sum()


@arrays("numpy's own functions as methods of a list: np.array([...]) of label scalars")
def numpy_scalars(x: Any) -> Tensor:
    return from_numpy(array([x[0], x[-1]]) * 0.1).sum()


def numpy_view(tokens: Tensor) -> Any:
    return tokens.numpy()


def numpy_copy(tokens: Tensor) -> Any:
    return tokens.numpy().copy()


def python_list(tokens: Tensor) -> Any:
    return tokens.tolist()


def torch_copy(tokens: Tensor) -> Any:
    return tokens.clone()


def float_copy(tokens: Tensor) -> Any:
    return tokens.double() * 0.5


def derived(tokens: Tensor) -> Any:
    return np.cumsum(tokens.numpy()) % VOCAB


lagging("tokens.numpy(), taken before the watch", numpy_view)
lagging("a numpy copy that was made before the watch", numpy_copy)
lagging("a list that was made before the watch", python_list)
lagging("a tensor that was copied before the watch", torch_copy)
lagging("a tensor that was computed before the watch", float_copy)
lagging("a numpy array that was computed before the watch", derived)


ARRAY = np.zeros(SEEN, dtype=np.int64)
VIEW, OVER_ARRAY = ARRAY[:], torch.from_numpy(ARRAY)
TENSOR = torch.zeros(SEEN, dtype=torch.int64)
OF_TENSOR = TENSOR.numpy()
BYTES = bytearray(SEEN)
OVER_BYTES = torch.frombuffer(BYTES, dtype=torch.uint8)


@tensors("an array that torch had before the watch: torch writes, numpy reads")
def array_with_tensor(x: Tensor) -> Tensor:
    OVER_ARRAY.copy_(x)
    return from_numpy(VIEW * 0.1).sum()


@tensors("tensor.numpy() from before the watch: torch writes, Python reads")
def tensor_with_array(x: Tensor) -> float:
    TENSOR.copy_(x)
    return float(OF_TENSOR.sum()) * 0.1


@tensors("tensor.numpy() from before the watch: numpy writes, torch reads")
def array_written(x: Tensor) -> Tensor:
    OF_TENSOR[:] = x.numpy()
    return TENSOR.double().sum() * 0.1


@tensors("bytes that torch had before the watch: torch writes, Python reads")
def bytes_with_tensor(x: Tensor) -> float:
    OVER_BYTES.copy_(x)
    return sum(BYTES) * 0.1


@tensors("bytes that torch had before the watch: Python writes, torch reads")
def bytes_written(x: Tensor) -> Tensor:
    BYTES[:] = bytes(x.tolist())
    return OVER_BYTES.double().sum() * 0.1


def _plain(tokens: Tensor) -> Iterator[Piece]:
    return (MODEL[tokens[t - 1 : t]] for t in range(1, N_TOKENS))


def _sliced(source: Tensor, tokens: Tensor) -> Iterator[Piece]:
    for t in range(1, N_TOKENS):
        yield MODEL[tokens[t - 1 : t]] + TILT * TABLE_OF_TENSOR[source[t : t + 1]]


TABLE_OF_TENSOR = torch.from_numpy(TABLE)


@way("a look-up by a view of the tokens that was made before the watch", legal=_plain)
def torch_view(tokens: Tensor) -> Iterator[Piece]:
    return _sliced(tokens.view(-1)[:], tokens)


@way("a look-up by a copy of the tokens that was made before the watch", legal=_plain)
def torch_copy_indexed(tokens: Tensor) -> Iterator[Piece]:
    return _sliced(tokens.clone(), tokens)
