"""Losses whose parts go to several elements are scores still, also where others were taken before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace.report.model import Report

C, LENGTH, CHUNK = 8, 64, 16
WEIGHTS = torch.randn(C, C, generator=torch.Generator().manual_seed(1))
PARTS = torch.arange(1.0, 6.0) / 15
WAYS: dict[str, Callable[[Tensor], Tensor | float]] = {
    "parts": lambda nll: (nll[:, None] * PARTS).sum(),
    "parts_of_each": lambda nll: (nll[:, None] * PARTS).sum(1).sum(),
    "outer": lambda nll: torch.outer(nll, torch.ones(3)).sum() / 3,
    "product": lambda nll: (nll @ torch.ones(len(nll), 20)).sum() / 20,
    "convolution": lambda nll: F.conv1d(nll[None, None], torch.ones(4, 1, 1)).sum() / 4,
    "repeated": lambda nll: nll.repeat_interleave(3).sum() / 3,
    "expanded": lambda nll: nll[:, None].expand(-1, 4).mean(1).sum(),
    "einsum": lambda nll: torch.einsum("n,b->nb", nll, torch.ones(3)).sum() / 3,
    "kron": lambda nll: torch.kron(nll, torch.ones(3)).sum() / 3,
    "numpy": lambda nll: float((nll.numpy()[:, None] * PARTS.numpy()).sum()),
    "numpy_outer": lambda nll: float(np.outer(nll.numpy(), np.ones(3)).sum() / 3),
}


def judged(spread: Callable[[Tensor], Tensor | float], first: bool, logged: bool) -> Report:
    """``logged``: a loss that is right is read before."""
    tokens = torch.randint(0, C, (LENGTH + 1,), generator=torch.Generator().manual_seed(0))
    with causaltrace.watch(tokens) as trace:
        total, counts = torch.zeros(()), torch.zeros(C, C)
        for start in range(1, LENGTH, CHUNK):
            x, y = tokens[start - 1 : start + CHUNK - 1], tokens[start : start + CHUNK]
            if logged:
                F.cross_entropy(WEIGHTS[x], y).item()
            if first:
                counts.index_put_((x, y), torch.ones(()), accumulate=True)
            total += spread(F.cross_entropy(WEIGHTS[x] + counts[x], y, reduction="none"))
            if not first:
                counts.index_put_((x, y), torch.ones(()), accumulate=True)
        total.item()
    return trace.report


@pytest.mark.parametrize("name", WAYS)
def test_a_loss_in_parts_is_a_score(name: str) -> None:
    assert judged(WAYS[name], False, False).status == "clean"
    assert judged(WAYS[name], True, False).status == "violation"
    assert judged(WAYS[name], True, True).status == "violation"
