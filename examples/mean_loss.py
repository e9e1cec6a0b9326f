"""The usual baseline: a mean loss per chunk, weighted by its token count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show

NAME = "mean loss per chunk"
LEGAL = True


@dataclass(frozen=True)
class Config:
    chunk: int = 64


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token. Per-token losses never exist as a tensor."""
    model.eval()
    last = len(tokens) - 1
    loss_sum = 0.0
    with torch.no_grad():
        for start in range(0, last, config.chunk):
            stop = min(start + config.chunk, last)
            inputs, targets = tokens[start:stop], tokens[start + 1 : stop + 1]
            loss = F.cross_entropy(model(inputs[None])[0], targets, reduction="mean")
            loss_sum += loss.item() * targets.numel()
    return loss_sum / last


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv, __doc__, Config())
    model, tokens = prepare(options)
    with causaltrace.watch(tokens) as trace:
        nats = evaluate(model, tokens, options.config)
    show(NAME, nats, trace.report)


if __name__ == "__main__":
    main()
