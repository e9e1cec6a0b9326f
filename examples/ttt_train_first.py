"""Test-time training in the wrong order: train on a chunk, then score it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import causaltrace
from examples.common import GPT, parse, prepare, show

NAME = "train-then-score test-time training"
LEGAL = False


@dataclass(frozen=True)
class Config:
    chunk: int = 64
    epochs: int = 2
    lr: float = 0.01
    clip: float = 1.0


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token; ``model`` is adapted in place."""
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9)
    last = len(tokens) - 1
    loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
    for start in range(0, last, config.chunk):
        stop = min(start + config.chunk, last)
        inputs, targets = tokens[start:stop].unsqueeze(0), tokens[start + 1 : stop + 1]

        model.train()
        for _ in range(config.epochs):
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(inputs).squeeze(0), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()

        model.eval()
        with torch.no_grad():
            loss_sum += F.cross_entropy(model(inputs).squeeze(0), targets, reduction="sum")
    return loss_sum.item() / last


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv, __doc__, Config())
    model, tokens = prepare(options)
    with causaltrace.watch(tokens) as trace:
        nats = evaluate(model, tokens, options.config)
    show(NAME, nats, trace.report)


if __name__ == "__main__":
    main()
