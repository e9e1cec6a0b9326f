"""Loops over batches whose rows are documents that go on from step to step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import causaltrace
from tests.static.test_loop import CLASSES, Net, ids


@pytest.mark.parametrize("backwards", [False, True])
def test_rows_of_logits_are_kept_apart(backwards: bool) -> None:
    """Both ways: a row that is numbered before another one may not reach it, either."""

    def turned(x: Tensor) -> Tensor:
        return x.flip(0) if backwards else x

    def inside(state: dict[str, Any], ids: Tensor) -> Tensor:
        x = turned(state["net"](ids))
        return turned(torch.cat((x[:1], x[1:] + x[:-1])))

    def carried(state: dict[str, Any], ids: Tensor) -> Tensor:
        logits = state["net"](ids) + state["cache"][:, None, :1]
        state["cache"] = turned(state["net"].embedding(ids[:, :-1]).detach().sum(1).roll(1, 0))
        return logits

    def own(state: dict[str, Any], ids: Tensor) -> Tensor:
        logits = state["net"](ids) + state["cache"][:, None, :1]
        state["cache"] = state["net"].embedding(ids[:, :-1]).detach().sum(1)
        return logits

    def status(step: Any, documents: bool | None) -> str:
        state = {"net": Net(), "cache": torch.zeros(3, 8)}
        return causaltrace.audit_loop(step, state, ids(3, 9), documents=documents).status

    assert status(own, True) == "clean"
    assert status(inside, True) == status(carried, True) == "violation"
    assert status(inside, False) == ("violation" if backwards else "clean")
    assert status(inside, None) == ("violation" if backwards else "unverified")


class Adapted(nn.Module):
    """A model with an adapter of low rank for each document of a batch."""

    def __init__(self, documents: int) -> None:
        super().__init__()
        self.net = Net().requires_grad_(False)
        self.down = nn.Parameter(torch.zeros(documents, 8, 2))
        self.up = nn.Parameter(torch.zeros(documents, 2, CLASSES))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.net.embedding(ids).cumsum(-2)
        return self.net.head(hidden) + hidden @ self.down @ self.up


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_an_adapter_for_each_document_chunk_by_chunk(make: Any) -> None:
    """Score a chunk of every document, then train each one's own adapter on it."""

    def nll(model: nn.Module, ids: Tensor) -> Tensor:
        logits = model(ids[:, :-1])
        return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")

    def train(state: Any, ids: Tensor, clip: bool = False) -> None:
        model, optimizer = state
        optimizer.zero_grad()
        nll(model, ids).mean(1).sum().backward()
        if clip:  # by a norm that is the same for all documents
            nn.utils.clip_grad_norm_([model.down, model.up], 1.0)
        optimizer.step()

    def score_first(state: Any, ids: Tensor) -> Tensor:
        score = nll(state[0], ids).detach().sum()
        train(state, ids)
        return score

    def train_first(state: Any, ids: Tensor) -> Tensor:
        train(state, ids)
        return nll(state[0], ids).detach().sum()

    def in_common(state: Any, ids: Tensor) -> Tensor:
        score = nll(state[0], ids).detach().sum()
        train(state, ids, clip=True)
        return score

    def report(step: Any) -> Any:
        model = Adapted(3)
        state = [model, make([model.down, model.up], lr=0.1)]
        return causaltrace.audit_loop(step, state, ids(3, 9), documents=True)

    legal, common = report(score_first), report(in_common)
    assert legal.status == "clean" and "any number of steps" in legal.notes[0].message
    assert report(train_first).orders == {"stream": "violation", "scored": "violation"}
    assert common.status == "violation"
    assert all(f.stream != f.source_stream for f in common.violations)
