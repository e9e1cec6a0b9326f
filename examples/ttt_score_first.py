"""Test-time training in the legal order: score a chunk, then train on it for several epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import causaltrace
from examples.common import GPT, parse, prepare, show

NAME = "score-first test-time training"
LEGAL = True


@dataclass(frozen=True)
class Config:
    chunk: int = 128
    sequence: int = 64
    epochs: int = 2
    optimizer: str = "sgd"
    lr: float = 0.01  # for sgd; adamw wants about 0.0003
    clip: float = 1.0


def make_optimizer(model: GPT, config: Config) -> torch.optim.Optimizer:
    """The optimizer that adapts the model."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=config.lr)
    raise ValueError(f"unknown optimizer {config.optimizer!r}: use sgd or adamw")


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token; ``model`` is adapted in place."""
    optimizer = make_optimizer(model, config)
    last = len(tokens) - 1
    loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
    for chunk_start in range(0, last, config.chunk):
        chunk_stop = min(chunk_start + config.chunk, last)
        spans = [
            (start, min(start + config.sequence, chunk_stop))
            for start in range(chunk_start, chunk_stop, config.sequence)
        ]

        model.eval()
        with torch.inference_mode():
            for start, stop in spans:
                logits = model(tokens[start:stop].unsqueeze(0))
                nll = F.cross_entropy(logits.squeeze(0), tokens[start + 1 : stop + 1], reduction="none")
                loss_sum += nll.double().sum()

        model.train()
        for _ in range(config.epochs):
            for start, stop in spans:
                optimizer.zero_grad(set_to_none=True)
                logits = model(tokens[start:stop].unsqueeze(0))
                loss = F.cross_entropy(logits.squeeze(0), tokens[start + 1 : stop + 1])
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), config.clip)
                optimizer.step()
    return loss_sum.item() / last


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv, __doc__, Config())
    model, tokens = prepare(options)
    with causaltrace.watch(tokens) as trace:
        nats = evaluate(model, tokens, options.config)
    show(NAME, nats, trace.report)


if __name__ == "__main__":
    main()
