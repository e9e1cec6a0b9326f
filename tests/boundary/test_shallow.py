"""``copy.copy`` makes a second tensor over the same memory: nothing leaves torch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace.report.model import Report

CLASSES, LENGTH = 8, 17


def judged(copied: Callable[[Tensor], Tensor], ahead: int = 0) -> Report:
    """``ahead``: the inputs are tokens that come so much later."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(CLASSES, (LENGTH,), generator=generator)
    table = torch.randn(CLASSES, CLASSES, generator=generator)
    with causaltrace.watch(tokens) as trace:
        ids = copied(tokens)
        F.cross_entropy(table[ids[ahead : LENGTH - 2 + ahead]], ids[1:-1], reduction="sum")
    return trace.report


def in_place(t: Tensor) -> Tensor:
    """What is written to a copy is in the tensor, too."""
    out = torch.zeros_like(t)
    copy.copy(out).copy_(t)
    return out


@pytest.mark.parametrize("copied", [copy.copy, lambda t: copy.copy(t[:]), in_place])
def test_a_shallow_copy_is_followed(copied: Callable[[Tensor], Tensor]) -> None:
    legal, leak = judged(copied), judged(copied, 2)
    assert legal.status == "clean" and not legal.escapes
    assert leak.status == "violation"


def test_bytes_and_scales_are_told_still() -> None:
    def scaled(t: Tensor) -> Tensor:
        scale, zero = t[-1].double() + 1, torch.tensor(0)
        return copy.copy(torch.quantize_per_tensor(t.float(), scale, zero, torch.qint8)).int_repr().long() % 2

    for copied in (lambda t: pickle.loads(pickle.dumps(t)), scaled):
        assert judged(copied).escapes
