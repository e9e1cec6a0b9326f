"""The better of two experts for each token, chosen after the token is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show

NAME = "better of two experts"
LEGAL = False


@dataclass(frozen=True)
class Config:
    chunk: int = 64


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token; the second expert is a table of bigram counts, updated after each chunk."""
    model.eval()
    vocab = model.head.out_features
    counts = model.head.weight.new_ones(vocab, vocab)
    last = len(tokens) - 1
    loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
    with torch.inference_mode():
        for start in range(0, last, config.chunk):
            stop = min(start + config.chunk, last)
            inputs, targets = tokens[start:stop], tokens[start + 1 : stop + 1]
            model_nll = F.cross_entropy(model(inputs[None])[0], targets, reduction="none")
            cached = counts[inputs] / counts[inputs].sum(-1, keepdim=True)
            cache_nll = -cached.gather(-1, targets[:, None])[:, 0].log()
            nll = torch.minimum(model_nll, cache_nll)
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
