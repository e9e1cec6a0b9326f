"""Losses spread over the bytes of their tokens: a readout that is repeated as its label says is still one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import causaltrace
from causaltrace.report.model import Report

CLASSES, LENGTH = 8, 24
LENGTHS = np.array([1, 2, 3, 1, 2, 3, 1, 2])
Array = np.ndarray


def judged(spread: Callable[[Array, Array], Array]) -> Report:
    """The losses are summed first, and then once more with another expert mixed in."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(CLASSES, (LENGTH,), generator=generator)
    logits = torch.randn(LENGTH - 1, CLASSES, generator=generator)
    with causaltrace.watch(tokens) as trace:
        losses = F.cross_entropy(logits, tokens[1:], reduction="none")
        losses.sum().item()
        -np.log(0.5 * np.exp(spread(-losses.numpy(), LENGTHS[tokens[1:].numpy()])) + 0.5 / 256).sum()
    return trace.report


SPREAD: dict[str, Callable[[Array, Array], Array]] = {
    "repeat": lambda p, n: np.repeat(p, n) / np.repeat(n, n),
    "method": lambda p, n: p.repeat(n) / n.repeat(n),
    "axis": lambda p, n: np.repeat(p[None], n, axis=-1)[0] / np.repeat(n, n),
}


@pytest.mark.parametrize("name", SPREAD)
def test_a_loss_that_is_spread_over_the_bytes_of_its_label_is_found(name: str) -> None:
    report = judged(SPREAD[name])
    assert {f.kind for f in report.violations} == {"CT004"}, report
    assert {f.target - f.source for f in report.violations} == {0}


def test_a_loss_that_is_spread_over_some_bytes_is_no_violation() -> None:
    report = judged(lambda p, n: np.repeat(p, 2) / 2)
    assert not report.violations and set(report.orders.values()) == {"unverified"}, report
