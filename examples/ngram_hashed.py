"""Hashed n-gram counts with back-off, as many caches have them: the key holds the token to be predicted.

Only that token is looked up, so nobody sees that the "probabilities" of all tokens add up to more than 1. The
fewer buckets there are, the better the number: contexts that share a bucket share their counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import causaltrace
from examples.common import GPT, parse, prepare, show

NAME = "hashed n-grams, target only"
LEGAL = False

PRIMES = np.array([2654435761, 2246822519, 3266489917, 668265263, 374761393], np.uint64)
Array = NDArray[Any]


@dataclass(frozen=True)
class Config:
    chunk: int = 64
    order: int = 3  # tokens in the longest context
    buckets: int = 256  # a power of two
    seen_at_least: int = 2
    weight: float = 0.4  # of the cache, where it knows the context


def hashes(ids: Array, positions: Array, order: int, buckets: int) -> tuple[Array, Array]:
    """Buckets of the contexts before some positions, and of the contexts with the tokens there."""
    mask = np.uint64(buckets - 1)
    context = np.zeros(len(positions), np.uint64)
    for back in range(1, order + 1):
        context ^= ids[np.maximum(positions - back, 0)].astype(np.uint64) * PRIMES[back]
    full = context ^ (ids[positions].astype(np.uint64) * PRIMES[0])
    return (context & mask).astype(np.int64), (full & mask).astype(np.int64)


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token."""
    model.eval()
    ids = tokens.cpu().numpy()
    context_counts = np.zeros((config.order + 1, config.buckets), np.uint32)
    full_counts = np.zeros((config.order + 1, config.buckets), np.uint32)
    last = len(tokens) - 1
    loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
    for start in range(0, last, config.chunk):
        stop = min(start + config.chunk, last)
        with torch.inference_mode():
            logits = model(tokens[None, start:stop])[0]
            nll = F.cross_entropy(logits, tokens[start + 1 : stop + 1], reduction="none")
        p = np.exp(-nll.cpu().numpy().astype(np.float64))

        positions = np.arange(start + 1, stop + 1)
        cached, found = np.zeros(len(p)), np.zeros(len(p), np.bool_)
        for order in range(config.order, 0, -1):  # the longest context that was seen often enough
            context, full = hashes(ids, positions, order, config.buckets)
            seen = context_counts[order][context]
            use = (seen >= config.seen_at_least) & ~found
            cached[use] = np.minimum(full_counts[order][full], seen)[use] / seen[use]
            found |= use
        p[found] = (1 - config.weight) * p[found] + config.weight * cached[found]
        loss_sum += torch.from_numpy(-np.log(p)).double().sum()

        for order in range(1, config.order + 1):
            context, full = hashes(ids, positions, order, config.buckets)
            np.add.at(context_counts[order], context, 1)
            np.add.at(full_counts[order], full, 1)
    return loss_sum.item() / last


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv, __doc__, Config())
    model, tokens = prepare(options)
    with causaltrace.watch(tokens) as trace:
        nats = evaluate(model, tokens, options.config)
    show(NAME, nats, trace.report)


if __name__ == "__main__":
    main()
