"""Two passes: the first one counts all tokens, and the second one scores them with these counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show

NAME = "two-pass rescoring"
LEGAL = False


@dataclass(frozen=True)
class Config:
    chunk: int = 64
    strength: float = 8.0  # how many counts the distribution of the shorter context is worth


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token of the second pass."""
    model.eval()
    vocab = model.head.out_features
    counts = model.head.weight.new_zeros(vocab, vocab)
    last = len(tokens) - 1
    chunks = [(start, min(start + config.chunk, last)) for start in range(0, last, config.chunk)]
    rows = []
    loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
    with torch.inference_mode():
        for start, stop in chunks:
            rows.append(model(tokens[None, start:stop])[0].softmax(-1))
            pairs = tokens[start:stop], tokens[start + 1 : stop + 1]
            counts.index_put_(pairs, counts.new_ones(()), accumulate=True)

        for (start, stop), p in zip(chunks, rows, strict=True):
            inputs, targets = tokens[start:stop], tokens[start + 1 : stop + 1]
            for seen in (counts.sum(0), counts[inputs]):
                p = (config.strength * p + seen) / (config.strength + seen.sum(-1, keepdim=True))
            nll = -p.gather(-1, targets[:, None])[:, 0].log()
            loss_sum += nll.double().sum()
    return loss_sum.item() / last


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv, __doc__, Config())
    model, tokens = prepare(options)
    with causaltrace.watch(tokens) as trace:
        nats = evaluate(model, tokens, options.config)
    show(NAME, nats, trace.report)


if __name__ == "__main__":
    main()
