"""A causal toy model and short token streams for tests."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._higher_order_ops.utils import autograd_not_implemented
from torch._ops import HigherOrderOperator

import causaltrace

VOCAB = 13


class Toy(nn.Module):
    """Embedding, running mean over the past, head: causal, and every label matters."""

    def __init__(self, dim: int = 8, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Parameter(torch.randn(VOCAB, dim, generator=generator))
        self.head = nn.Parameter(torch.randn(dim, VOCAB, generator=generator))

    def forward(self, ids: Tensor) -> Tensor:
        x = F.embedding(ids, self.embedding)
        steps = torch.arange(1, ids.shape[-1] + 1, dtype=x.dtype)
        return torch.tanh(x.cumsum(-2) / steps.unsqueeze(-1)) @ self.head


def stream(n: int = 24, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCAB, (n,), generator=torch.Generator().manual_seed(seed))


def nll(model: nn.Module, tokens: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """Per-position NLL of tokens[start + 1 : stop] given what precedes them from ``start``."""
    piece = tokens[start:stop]
    return F.cross_entropy(model(piece[:-1]), piece[1:], reduction="none")


def targets(trace: causaltrace.Watch, kind: str | None = None) -> set[int]:
    return {f.target for f in trace.report.violations if kind in (None, f.kind)}


class Applied(HigherOrderOperator):
    """Calls a function on its operands, out of the sight of modes: nobody has a rule for it."""

    def __init__(self) -> None:
        super().__init__("ct_applied")

    def __call__(self, fn: Any, operands: tuple[Tensor, ...], times: int = 1) -> Any:
        return super().__call__(fn, operands, times)


applied = Applied()
applied.py_impl(DispatchKey.CompositeExplicitAutograd)(lambda fn, operands, times: fn(*operands))
applied.py_autograd_impl(autograd_not_implemented(applied, deferred_error=True))
