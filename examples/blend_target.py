"""A bigram cache that is blended in for the target alone, and only if the cache has seen it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show

NAME = "blend for the target only"
LEGAL = False


@dataclass(frozen=True)
class Config:
    chunk: int = 64
    weight: float = 0.4  # of the cache, where it has seen the target


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token."""
    model.eval()
    vocab = model.head.out_features
    counts = model.head.weight.new_zeros(vocab, vocab)
    last = len(tokens) - 1
    loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
    with torch.inference_mode():
        for start in range(0, last, config.chunk):
            stop = min(start + config.chunk, last)
            inputs, targets = tokens[start:stop], tokens[start + 1 : stop + 1]
            p = model(inputs[None])[0].softmax(-1).gather(-1, targets[:, None])[:, 0]
            seen = counts[inputs, targets]
            cached = seen / counts[inputs].sum(-1).clamp(min=1)
            blend = (1 - config.weight) * p + config.weight * cached
            nll = -torch.where(seen > 0, blend, p).log()
            loss_sum += nll.double().sum()
            counts.index_put_((inputs, targets), counts.new_ones(()), accumulate=True)
    return loss_sum.item() / last


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv, __doc__, Config())
    model, tokens = prepare(options)
    with causaltrace.watch(tokens) as trace:
        nats = evaluate(model, tokens, options.config)
    show(NAME, nats, trace.report)


if __name__ == "__main__":
    main()
