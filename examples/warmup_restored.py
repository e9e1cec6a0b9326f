"""A warm-up trains on the stream to get kernels compiled; all is put back before the first score."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show

NAME = "throw-away warm-up"
LEGAL = True


@dataclass(frozen=True)
class Config:
    chunk: int = 64
    warmup_steps: int = 3
    lr: float = 0.002


def train_step(model: GPT, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> None:
    model.train()
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(model(inputs[None])[0], targets).backward()
    optimizer.step()


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token of score-first test-time training; ``model`` is adapted in place."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    model_state = copy.deepcopy(model.state_dict())
    optimizer_state = copy.deepcopy(optimizer.state_dict())
    for _ in range(config.warmup_steps):
        train_step(model, optimizer, tokens[: config.chunk], tokens[1 : config.chunk + 1])
    model.load_state_dict(model_state)
    optimizer.load_state_dict(optimizer_state)

    last = len(tokens) - 1
    loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
    for start in range(0, last, config.chunk):
        stop = min(start + config.chunk, last)
        inputs, targets = tokens[start:stop], tokens[start + 1 : stop + 1]
        model.eval()
        with torch.no_grad():
            nll = F.cross_entropy(model(inputs[None])[0], targets, reduction="none")
            loss_sum += nll.double().sum()
        train_step(model, optimizer, inputs, targets)
    return loss_sum.item() / last


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv, __doc__, Config())
    model, tokens = prepare(options)
    with causaltrace.watch(tokens) as trace:
        nats = evaluate(model, tokens, options.config)
    show(NAME, nats, trace.report)


if __name__ == "__main__":
    main()
