"""Standard SLOT: fit one delta on the loss of all positions, then score those same positions with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show, sliding_windows

NAME = "standard SLOT"
LEGAL = False


@dataclass(frozen=True)
class Config:
    window: int = 64
    stride: int = 16
    batch: int = 8
    steps: int = 8
    lr: float = 0.01


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token; hidden states are frozen, one delta [1, 1, dim] serves a batch of windows."""
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

        delta = torch.zeros_like(hidden[:1, :1]).requires_grad_()
        optimizer = torch.optim.AdamW([delta], lr=config.lr)
        for _ in range(config.steps):
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model.logits(hidden + delta).flatten(0, 1), targets.flatten())
            loss.backward()
            optimizer.step()

        with torch.no_grad():
            logits = model.logits(hidden + delta)
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
