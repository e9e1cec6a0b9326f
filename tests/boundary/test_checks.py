"""Torch's distributions read whether all labels are in range, and raise if they are not."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, constraints

import causaltrace
from causaltrace.report.model import Report

CLASSES, LENGTH, CHUNK = 8, 33, 8


def judged(kind: type[Categorical], classes: int = CLASSES) -> Report:
    """Rows that follow from the tokens before; the labels of a chunk are checked before it is scored."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(CLASSES, (LENGTH,), generator=generator)
    table, total = torch.randn(CLASSES, classes, generator=generator), torch.zeros(())
    with causaltrace.watch(tokens) as trace:
        for start in range(0, LENGTH - 1, CHUNK):
            with contextlib.suppress(ValueError):
                rows = kind(
                    logits=table[tokens[start : start + CHUNK]], validate_args=True
                )  # compilers turn it off
                total -= rows.log_prob(tokens[start + 1 : start + CHUNK + 1]).sum()
    return trace.report


class Curious(constraints.Constraint):
    def check(self, value: Tensor) -> Tensor:
        return torch.ones_like(value, dtype=torch.bool) if bool((value >= 3).any()) else value < 9


class Peeking(Categorical):
    @property
    def support(self) -> Any:
        return Curious()


class Deciding(Categorical):
    def _validate_sample(self, value: Tensor) -> None:
        super()._validate_sample(value)
        if bool((value > 3).all()):
            raise ValueError


def test_a_check_that_passes_tells_nothing() -> None:
    report = judged(Categorical)
    assert report.status == "clean" and not report.escapes


@pytest.mark.parametrize("kind", [Peeking, Deciding])
def test_checks_of_the_program_are_told(kind: type[Categorical]) -> None:
    report = judged(kind)
    assert report.status == "unverified" and report.escapes


def test_a_check_that_fails_is_told() -> None:
    assert judged(Categorical, classes=CLASSES - 1).escapes
