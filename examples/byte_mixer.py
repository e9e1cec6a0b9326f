"""A mixture of the model with counts of bytes, for all classes, weighted by how both fared so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show

NAME = "mixture with byte counts"
LEGAL = True


@dataclass(frozen=True)
class Config:
    chunk: int = 64


def pieces(vocab: int) -> list[bytes]:
    """The bytes of every token. Here they are one byte each; a tokenizer has a table of longer ones."""
    return [bytes([token]) for token in range(vocab)]


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per byte."""
    model.eval()
    table = pieces(model.head.out_features)
    lengths = torch.tensor([len(piece) for piece in table], device=tokens.device)
    spelling = torch.tensor([[float(piece.count(byte)) for byte in range(256)] for piece in table])
    spelling = spelling.to(model.head.weight)
    byte_counts = spelling.new_ones(256)
    log_weights = spelling.new_tensor([0.9, 0.1]).log()
    last = len(tokens) - 1
    loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
    byte_sum = torch.zeros((), dtype=torch.int64, device=tokens.device)
    with torch.inference_mode():
        for start in range(0, last, config.chunk):
            stop = min(start + config.chunk, last)
            inputs, targets = tokens[start:stop], tokens[start + 1 : stop + 1]
            by_model = model(inputs[None])[0].log_softmax(-1)
            by_bytes = (spelling @ (byte_counts / byte_counts.sum()).log()).log_softmax(-1)
            experts = torch.stack([by_model, by_bytes.expand_as(by_model)])
            mixed = (experts + log_weights[:, None, None]).logsumexp(0)
            nll = -mixed.gather(-1, targets[:, None])[:, 0]
            loss_sum += nll.double().sum()
            byte_sum += lengths[targets].sum()

            byte_counts += spelling[targets].sum(0)
            fared = experts[:, torch.arange(len(targets)), targets].mean(-1)
            log_weights = (log_weights + fared).log_softmax(-1)
    return (loss_sum / byte_sum).item()


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv, __doc__, Config())
    model, tokens = prepare(options)
    with causaltrace.watch(tokens) as trace:
        nats = evaluate(model, tokens, options.config)
    show(NAME, nats, trace.report)


if __name__ == "__main__":
    main()
