"""Several score-first passes over the stream; the score of the last pass is the one reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show

NAME = "multi-epoch test-time training"
LEGAL = False


@dataclass(frozen=True)
class Config:
    chunk: int = 64
    epochs: int = 2
    lr: float = 0.002


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token of the last epoch; ``model`` is adapted in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    last = len(tokens) - 1
    score = float("nan")
    for _ in range(config.epochs):
        loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
        for start in range(0, last, config.chunk):
            stop = min(start + config.chunk, last)
            inputs, targets = tokens[start:stop].unsqueeze(0), tokens[start + 1 : stop + 1]

            model.eval()
            with torch.no_grad():
                nll = F.cross_entropy(model(inputs).squeeze(0), targets, reduction="none")
                loss_sum += nll.double().sum()

            model.train()
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(inputs).squeeze(0), targets).backward()
            optimizer.step()
        score = loss_sum.item() / last
    return score


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv, __doc__, Config())
    model, tokens = prepare(options)
    with causaltrace.watch(tokens) as trace:
        nats = evaluate(model, tokens, options.config)
    show(NAME, nats, trace.report)


if __name__ == "__main__":
    main()
