"""Ways to hide a label, each with a legal twin.

A *program* makes distributions and nothing else: ``charge`` below takes the rows of logits that it yields,
charges them at their labels, and adds that to a total, all before the program goes on. So a label is scored
when the ``yield`` returns, and a program leaks when a row moved with its own label or a later one.

A program may charge by itself and yield losses ``[n]`` in place of rows ``[n, VOCAB]``. Then it also leaks
when they do not come from one distribution.

Most ways are only a way to *carry* labels: a function from a few labels to a hint, with which the row of the
next position is tilted. The leaking program gives it labels of which the last is the one that is about to be
charged; the twin is the same program one position earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace

VOCAB = 7
N_TOKENS = 10
#: How many labels are carried at once.
SEEN = 3

#: Rows ``[n, VOCAB]`` of logits or losses ``[n]`` of the next n positions, or a pair of these and the first
#: position.
Piece = Any
#: Makes the rows of a stream. What it does before it returns its iterator is done before the watch opens:
#: nothing if it is a generator function.
Program = Callable[[Tensor], Iterator[Piece]]


@dataclass(frozen=True, eq=False)
class Way:
    """One way to hide a label, in a few words, and the two programs that take it."""

    name: str
    words: str
    group: str
    leaking: Program
    legal: Program
    #: Do they read other rows at labels, so that an eval has to say which of these are scores?
    says: bool = False


#: All of them, by name, in the order of the files in ``ways``.
WAYS: dict[str, Way] = {}

_weights = np.random.default_rng(0)
#: Logits of the token after each token: the model.
MODEL = torch.from_numpy(_weights.normal(size=(VOCAB, VOCAB)))
#: The direction in which a hint tilts a row.
TILT = torch.linspace(-1, 1, VOCAB, dtype=torch.float64)


def stream() -> Tensor:
    """A stream in which every class comes up."""
    return torch.tensor([3, 1, 4, 1, 5, 2, 6, 0, 3, 5])


def charge(pieces: Iterator[Piece], tokens: Tensor, says: bool = False) -> Iterator[tuple[int, Piece]]:
    """Charge what a program yields; gives (first position, piece), once it is scored. ``says``: by name."""
    total, following = 0.0, 1
    for piece in pieces:
        piece, first = piece if isinstance(piece, tuple) else (piece, following)
        losses = piece
        if piece.ndim == 2:
            losses = F.cross_entropy(piece, tokens[first : first + len(piece)], reduction="none")
        if says:
            causaltrace.score(losses)
        total += float(losses.sum())
        following = first + len(piece)
        yield first, piece


def verdict(program: Program, says: bool = False) -> causaltrace.Report:
    """What a watch says about one run."""
    tokens = stream()
    pieces = program(tokens)
    with causaltrace.watch(tokens) as trace:
        for _ in charge(pieces, tokens, says):
            pass
    return trace.report


def way(words: str, legal: Program) -> Callable[[Program], Program]:
    """Register a leaking program and its twin."""

    def register(leaking: Program) -> Program:
        _register(leaking, words, leaking, legal)
        return leaking

    return register


def _register(
    named: Callable[..., Any], words: str, leaking: Program, legal: Program, says: bool = False
) -> None:
    group = named.__module__.rpartition(".")[2]
    name = f"{group}.{named.__name__}"
    assert name not in WAYS, f"two ways are called {name}"
    WAYS[name] = Way(name, words, group, leaking, legal, says)


Carry = Callable[[Any], Any]


def carried(take: Callable[[Tensor], Any], carry: Carry, lag: int, last: int = N_TOKENS) -> Program:
    """Tilt rows by what ``carry`` makes of the labels up to ``lag`` before them, out of ``take(tokens)``."""

    def program(tokens: Tensor) -> Iterator[Tensor]:
        source = take(tokens)
        for t in range(1, len(tokens)):
            row = MODEL[tokens[t - 1 : t]]
            stop = t + 1 - lag
            if SEEN <= t <= last:
                row = row + TILT * carry(source[stop - SEEN : stop])
            yield row

    return program


def tensors(words: str, once: bool = False) -> Callable[[Carry], Carry]:
    """A way to carry labels that are given as a slice ``[SEEN]`` of the watched tensor. ``once``: it is slow,
    so one row is tilted and no more."""
    last = SEEN if once else N_TOKENS

    def register(carry: Carry) -> Carry:
        _register(carry, words, carried(_as_it_is, carry, 0, last), carried(_as_it_is, carry, 1, last))
        return carry

    return register


def arrays(words: str, says: bool = False) -> Callable[[Carry], Carry]:
    """A way to carry labels that are given as a slice of ``tokens.numpy()``, taken once, at the start."""

    def register(carry: Carry) -> Carry:
        _register(carry, words, carried(_to_numpy, carry, 0), carried(_to_numpy, carry, 1), says)
        return carry

    return register


def numbers(words: str) -> Callable[[Carry], Carry]:
    """A way to carry labels that are given as a list of numbers, which is read when it is needed."""

    def register(carry: Carry) -> Carry:
        def read(labels: Tensor) -> Any:
            return carry(labels.tolist())

        _register(carry, words, carried(_as_it_is, read, 0), carried(_as_it_is, read, 1))
        return carry

    return register


def _to_numpy(tokens: Tensor) -> Any:
    return tokens.numpy()


def _as_it_is(tokens: Tensor) -> Tensor:
    return tokens
