"""SLOT with a delta and a logit bias per window, fitted on the positions that they then score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show, sliding_windows

NAME = "per-sample SLOT with logit bias"
LEGAL = False


@dataclass(frozen=True)
class Config:
    window: int = 64
    stride: int = 16
    batch: int = 8
    steps: int = 8
    lr: float = 0.01


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token; every window fits its own delta [1, dim] and bias [1, vocab]."""
    model.eval().requires_grad_(False)
    windows = list(sliding_windows(len(tokens), config.window, config.stride))
    loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
    count = 0
    for first in range(0, len(windows), config.batch):
        batch = windows[first : first + config.batch]
        inputs = torch.stack([tokens[w.start : w.stop] for w in batch])
        targets = torch.stack([tokens[w.start + 1 : w.stop + 1] for w in batch])
        with torch.no_grad():
            hidden = model.hidden(inputs)
            vocab = model.logits(hidden[:1, :1]).shape[-1]

        delta = hidden.new_zeros(len(batch), 1, hidden.shape[-1], requires_grad=True)
        bias = hidden.new_zeros(len(batch), 1, vocab, requires_grad=True)
        optimizer = torch.optim.AdamW([delta, bias], lr=config.lr)
        for _ in range(config.steps):
            logits = model.logits(hidden + delta) + bias
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        with torch.no_grad():
            logits = model.logits(hidden + delta) + bias
            nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
            for row, w in enumerate(batch):
                loss_sum += nll[row, w.fresh :].double().sum()
                count += w.stop - w.start - w.fresh
    return loss_sum.item() / count


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv, __doc__, Config())
    model, tokens = prepare(options)
    with causaltrace.watch(tokens) as trace:
        nats = evaluate(model, tokens, options.config)
    show(NAME, nats, trace.report)


if __name__ == "__main__":
    main()
