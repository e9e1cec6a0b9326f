"""Exact n-gram counts in a dict: looked up by the prefix, mixed into all classes, updated after the score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show

NAME = "n-gram counts in a dict"
LEGAL = True


@dataclass(frozen=True)
class Config:
    chunk: int = 64
    order: int = 3  # tokens in the longest context
    strength: float = 8.0  # how many counts the distribution of the shorter context is worth


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token."""
    model.eval()
    counts: dict[tuple[int, ...], Tensor] = {}
    last = len(tokens) - 1
    loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
    with torch.inference_mode():
        for start in range(0, last, config.chunk):
            stop = min(start + config.chunk, last)
            rows = model(tokens[None, start:stop])[0].softmax(-1)
            for t, p in enumerate(rows, start + 1):
                contexts = [tuple(tokens[t - n : t].tolist()) for n in range(1, min(config.order, t) + 1)]
                for context in contexts:
                    if context in counts:
                        seen = counts[context]
                        p = (config.strength * p + seen) / (config.strength + seen.sum())
                nll = -p[tokens[t]].log()
                loss_sum += nll.double()
                for context in contexts:
                    counts.setdefault(context, torch.zeros_like(p))[tokens[t]] += 1
    return loss_sum.item() / last


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv, __doc__, Config())
    model, tokens = prepare(options)
    with causaltrace.watch(tokens) as trace:
        nats = evaluate(model, tokens, options.config)
    show(NAME, nats, trace.report)


if __name__ == "__main__":
    main()
