"""A tilt towards a hint, but only where it is of the target's class: every target makes a row of its own.

A flip of the target to another token of its class changes nothing but the number that is read out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show

NAME = "hint gated by target class"
LEGAL = False


@dataclass(frozen=True)
class Config:
    chunk: int = 64
    beta: float = 1.0
    class_bits: int = 5  # a class is a column of the ASCII table: signs, digits, capitals, small letters


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token; the hint is what followed a token most often, as far as the stream is scored."""
    model.eval()
    vocab = model.head.out_features
    counts = model.head.weight.new_zeros(vocab, vocab)
    last = len(tokens) - 1
    loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
    with torch.inference_mode():
        for start in range(0, last, config.chunk):
            stop = min(start + config.chunk, last)
            inputs, targets = tokens[start:stop], tokens[start + 1 : stop + 1]
            logits = model(inputs[None])[0]
            often, hint = counts[inputs].max(-1)
            same_class = hint >> config.class_bits == targets >> config.class_bits
            tilt = config.beta * ((often > 0) & same_class)
            logits = logits + tilt[:, None] * F.one_hot(hint, vocab)
            nll = F.cross_entropy(logits, targets, reduction="none")
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
