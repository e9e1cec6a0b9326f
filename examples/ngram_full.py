"""The legal twin of the hashed n-gram cache: all classes are looked up, and what is found is normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show

NAME = "hashed n-grams, all classes"
LEGAL = True

PRIMES = np.array([2654435761, 2246822519, 3266489917, 668265263, 374761393], np.uint64)
Array = NDArray[Any]


@dataclass(frozen=True)
class Config:
    chunk: int = 64
    order: int = 3  # tokens in the longest context
    buckets: int = 1_048_573
    strength: float = 8.0  # how many counts the distribution of the shorter context is worth


def hashes(ids: Array, positions: Array, order: int) -> Array:
    """Hashes of the contexts before some positions."""
    context = np.zeros(len(positions), np.uint64)
    for back in range(1, order + 1):
        context ^= ids[np.maximum(positions - back, 0)].astype(np.uint64) * PRIMES[back]
    return context


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token."""
    model.eval()
    ids = tokens.cpu().numpy()
    classes = np.arange(model.head.out_features, dtype=np.uint64) * PRIMES[0]
    counts = np.zeros((config.order + 1, config.buckets), np.uint32)
    last = len(tokens) - 1
    loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
    for start in range(0, last, config.chunk):
        stop = min(start + config.chunk, last)
        with torch.inference_mode():
            p = model(tokens[None, start:stop])[0].softmax(-1)

        positions = np.arange(start + 1, stop + 1)
        for order in range(1, config.order + 1):
            context = hashes(ids, positions, order)
            row = ((context[:, None] ^ classes) % np.uint64(config.buckets)).astype(np.int64)
            seen = counts[order][row].astype(np.float64)
            total = seen.sum(1, keepdims=True)
            cached = torch.from_numpy(seen / np.maximum(total, 1)).to(p)
            weight = torch.from_numpy(total / (total + config.strength)).to(p)
            p = (1 - weight) * p + weight * cached
        nll = -p.gather(-1, tokens[start + 1 : stop + 1, None])[:, 0].log()
        loss_sum += nll.double().sum()

        for order in range(1, config.order + 1):
            full = hashes(ids, positions, order) ^ classes[ids[positions]]
            np.add.at(counts[order], (full % np.uint64(config.buckets)).astype(np.int64), 1)
    return loss_sum.item() / last


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv, __doc__, Config())
    model, tokens = prepare(options)
    with causaltrace.watch(tokens) as trace:
        nats = evaluate(model, tokens, options.config)
    show(NAME, nats, trace.report)


if __name__ == "__main__":
    main()
