"""Context-only SLOT: fit delta on positions that earlier windows scored, score only the new ones.

Legal with one window per batch. With ``--batch 32`` overlapping windows share one delta, and a window's
new labels are the next window's context: they are fitted before they are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show, sliding_windows

NAME = "context-only SLOT"
LEGAL = True  # with the default batch of one window


@dataclass(frozen=True)
class Config:
    window: int = 64
    stride: int = 16
    batch: int = 1
    steps: int = 8
    lr: float = 0.01


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token; the first window has no scored context and goes unadapted."""
    model.eval().requires_grad_(False)
    opening, *windows = sliding_windows(len(tokens), config.window, config.stride)
    with torch.no_grad():
        logits = model(tokens[None, : opening.stop])[0]
        nll = F.cross_entropy(logits, tokens[1 : opening.stop + 1], reduction="none")
    loss_sum = nll.double().sum()
    count = nll.numel()
    for first in range(0, len(windows), config.batch):
        batch = windows[first : first + config.batch]
        inputs = torch.stack([tokens[w.start : w.stop] for w in batch])
        targets = torch.stack([tokens[w.start + 1 : w.stop + 1] for w in batch])
        with torch.no_grad():
            hidden = model.hidden(inputs)
        context = torch.zeros_like(targets, dtype=hidden.dtype)
        for row, w in enumerate(batch):
            context[row, : w.fresh] = 1.0

        delta = torch.zeros(1, 1, hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
        delta.requires_grad_(True)
        optimizer = torch.optim.AdamW([delta], lr=config.lr)
        for _ in range(config.steps):
            optimizer.zero_grad(set_to_none=True)
            logits = model.logits(hidden + delta)
            nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
            loss = (nll * context).sum() / context.sum()
            loss.backward()
            optimizer.step()

        with torch.no_grad():
            logits = model.logits(hidden + delta.detach())
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
