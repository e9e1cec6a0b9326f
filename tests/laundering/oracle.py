"""The truth about a program: flip every label to every other class, run again, and see what moved.

Independent of causaltrace, on purpose. Programs are float64 and deterministic, so rows are compared exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tests.laundering import VOCAB, Program, charge, stream

#: How far from 1 the probabilities of all classes may add up, for they are rounded.
ROUNDING = 1e-6

#: For each position what a program yielded: a row ``[VOCAB]`` of log-probabilities, or its loss ``[]``.
Charges = dict[int, Tensor]


class Leak(NamedTuple):
    """Why the charge of ``target`` is no code length; ``label`` is its own or a later one."""

    label: int
    target: int
    why: str


def run(program: Program, tokens: Tensor) -> Charges:
    charges: Charges = {}
    tokens = tokens.clone()
    for first, piece in charge(program(tokens), tokens):
        piece = torch.as_tensor(piece).detach().double()
        for offset, one in enumerate(piece.log_softmax(-1) if piece.ndim == 2 else piece):
            charges[first + offset] = one.clone()  # the last charge of a position is the one that counts
    assert set(charges) == set(range(1, len(tokens))), "a program charges every position but the first"
    return charges


def flips(program: Program, tokens: Tensor) -> Iterator[tuple[int, list[Charges]]]:
    """For each label the runs with all of its classes, its own included."""
    for label in range(len(tokens)):
        runs = []
        for other in range(VOCAB):
            flipped = tokens.clone()
            flipped[label] = other
            runs.append(run(program, flipped))
        yield label, runs


def leaks(program: Program) -> Iterator[Leak]:
    """All charges that know too much."""
    tokens = stream()
    base = run(program, tokens)
    for target, again in run(program, tokens).items():
        assert torch.equal(base[target], again), "the program is not deterministic"
    for label, runs in flips(program, tokens):
        for target in range(1, label + 1):
            charges = [one[target] for one in runs if target in one]
            if label == target and base[target].ndim == 0:
                total = float(torch.stack(charges).neg().exp().sum())
                if abs(total - 1) > ROUNDING:
                    yield Leak(label, target, f"the probabilities of all classes add up to {total:.3f}")
            elif not all(torch.equal(charge, base[target]) for charge in charges):
                yield Leak(label, target, "the label moves it")


def remembers(program: Program) -> bool:
    """Does any charge depend on an earlier label than the model does, which is the one just before?"""
    tokens = stream()
    base = run(program, tokens)
    return any(
        not torch.equal(one[target], base[target])
        for label, runs in flips(program, tokens)
        for one in runs
        for target in range(label + 2, len(tokens))
    )
