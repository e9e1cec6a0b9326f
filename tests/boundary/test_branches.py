"""Loops that branch on losses: gradient scalers, schedules, early stopping. Harmless once they are scored."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import causaltrace

CLASSES = 7
Train = Callable[[nn.Module, Tensor, Tensor, torch.optim.Optimizer], None]


def stream() -> Tensor:
    return torch.randint(0, CLASSES, (33,), generator=torch.Generator().manual_seed(0))


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)


def scaled(net: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, x, y)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0, error_if_nonfinite=True)
        scaler.step(optimizer)
        scaler.update()


def on_a_plateau(net: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> None:
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(net, x, y)
        loss.backward()
        optimizer.step()
        schedule.step(loss.item())


def stopped_early(net: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> None:
    best = float("inf")
    for _ in range(5):
        optimizer.zero_grad()
        loss = loss_of(net, x, y)
        if loss >= best - 0.01 or not torch.isfinite(loss):
            break
        best = loss.item()
        loss.backward()
        optimizer.step()


def with_a_line_search(net: nn.Module, x: Tensor, y: Tensor, _: torch.optim.Optimizer) -> None:
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=3, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net, x, y)
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("first", [False, True], ids=["score first", "train first"])
@pytest.mark.parametrize(
    "train", [scaled, on_a_plateau, stopped_early, with_a_line_search], ids=lambda f: f.__name__
)
def test_a_loop_that_branches_on_its_losses(train: Train, first: bool) -> None:
    torch.manual_seed(0)
    net, tokens, total = nn.Sequential(nn.Embedding(CLASSES, 4), nn.Linear(4, CLASSES)), stream(), 0.0
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    with causaltrace.watch(tokens) as trace:
        for start in range(0, 32, 8):
            x, y = tokens[start : start + 8], tokens[start + 1 : start + 9]
            if first:
                train(net, x, y, optimizer)
            with torch.no_grad():
                total += F.cross_entropy(net(x), y, reduction="sum").item()
            if not first:
                train(net, x, y, optimizer)
    assert trace.report.scored == 32
    assert trace.report.status == ("violation" if first else "clean"), trace.report
