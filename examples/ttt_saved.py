"""Training on the stream before the weights are quantised and saved: what is loaded and scored saw it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show

NAME = "test-time training before quantisation"
LEGAL = False


@dataclass(frozen=True)
class Config:
    chunk: int = 64
    epochs: int = 2
    lr: float = 0.002


def adapt(model: GPT, tokens: Tensor, config: Config) -> None:
    """Train ``model`` in place on the whole stream."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    last = len(tokens) - 1
    model.train()
    for _ in range(config.epochs):
        for start in range(0, last, config.chunk):
            stop = min(start + config.chunk, last)
            loss = F.cross_entropy(model(tokens[None, start:stop])[0], tokens[start + 1 : stop + 1])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


def quantize(weight: Tensor) -> tuple[Tensor, Tensor] | Tensor:
    """Matrices as int8 with a scale for each row; the rest as it is."""
    if weight.ndim < 2:
        return weight
    scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127
    return (weight / scale).round().to(torch.int8), scale


def dequantize(saved: tuple[Tensor, Tensor] | Tensor) -> Tensor:
    return saved[0] * saved[1] if isinstance(saved, tuple) else saved


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token of the model that comes back from the file."""
    adapt(model, tokens, config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        torch.save({name: quantize(weight) for name, weight in model.state_dict().items()}, path)
        saved = torch.load(path)
    model.load_state_dict({name: dequantize(weight) for name, weight in saved.items()})

    model.eval()
    last = len(tokens) - 1
    loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
    with torch.no_grad():
        for start in range(0, last, config.chunk):
            stop = min(start + config.chunk, last)
            logits = model(tokens[None, start:stop])[0]
            nll = F.cross_entropy(logits, tokens[start + 1 : stop + 1], reduction="none")
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
