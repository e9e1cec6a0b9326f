"""Sliding-window eval: every token is forwarded many times and scored once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show, sliding_windows

NAME = "plain sliding windows"
LEGAL = True


@dataclass(frozen=True)
class Config:
    window: int = 64
    stride: int = 16


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token."""
    model.eval()
    loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
    count = 0
    with torch.inference_mode():
        for start, stop, fresh in sliding_windows(len(tokens), config.window, config.stride):
            inputs, targets = tokens[start:stop], tokens[start + 1 : stop + 1]
            logp = F.log_softmax(model(inputs[None])[0], dim=-1)
            nll = -logp.gather(-1, targets[:, None]).squeeze(-1)
            loss_sum += nll[fresh:].double().sum()
            count += stop - start - fresh
    return loss_sum.item() / count


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv, __doc__, Config())
    model, tokens = prepare(options)
    with causaltrace.watch(tokens) as trace:
        nats = evaluate(model, tokens, options.config)
    show(NAME, nats, trace.report)


if __name__ == "__main__":
    main()
