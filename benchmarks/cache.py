"""``python -m benchmarks.cache``: a hashed n-gram cache in numpy beside a small model, plain and watched."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.overhead import ratio
from examples.common import GPT, ModelConfig

VOCAB, BUCKETS, CHUNK, LENGTH = 256, 1 << 20, 2048, 512
ORDERS = (2, 3, 4)
PRIMES = np.array([36313, 27191, 51647, 81929], dtype=np.uint64)

Labels = NDArray[np.int64]


def contexts(x: Labels, positions: Labels, order: int) -> NDArray[np.uint64]:
    """Hashes of the ``order - 1`` tokens before each position."""
    key = np.zeros(len(positions), dtype=np.uint64)
    for back in range(1, order):
        key ^= x[positions - back].astype(np.uint64) * PRIMES[back - 1]
    return key


def buckets(key: NDArray[np.uint64], classes: Labels) -> Labels:
    """Where a class is counted after a context."""
    return ((key ^ classes.astype(np.uint64) * PRIMES[-1]) & np.uint64(BUCKETS - 1)).astype(np.int64)


def hashed_cache(model: torch.nn.Module, tokens: Tensor) -> None:
    """Score a chunk with counts for the whole vocabulary, then add the chunk to the counts."""
    x, classes = tokens.numpy(), np.arange(VOCAB)
    tables = {order: np.zeros(BUCKETS, dtype=np.uint32) for order in ORDERS}
    total, last = 0.0, len(tokens) - 1
    for start in range(0, last, CHUNK):
        stop = min(start + CHUNK, last)
        with torch.inference_mode():
            windows = range(start, stop, LENGTH)
            p = torch.cat([model(tokens[None, i : min(i + LENGTH, stop)])[0] for i in windows])
            p = F.softmax(p, dim=-1)
            positions = np.arange(max(start + 1, max(ORDERS)), stop + 1)
            for order in ORDERS:
                counts = tables[order][buckets(contexts(x, positions, order)[:, None], classes)] + 0.01
                cache = torch.from_numpy(counts / counts.sum(axis=1, keepdims=True)).float()
                skipped = len(p) - len(cache)
                p = torch.cat([p[:skipped], 0.8 * p[skipped:] + 0.2 * cache])
            nll = -p.log().gather(-1, tokens[start + 1 : stop + 1, None])[:, 0]
            total += nll.double().sum().item()
        for order in ORDERS:
            np.add.at(tables[order], buckets(contexts(x, positions, order), x[positions]), 1)


def main(n_tokens: int = 60_000, rounds: int = 5) -> float:
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab=VOCAB, context=LENGTH, layers=2, dim=64, heads=4)).eval()
    tokens = torch.randint(0, VOCAB, (n_tokens,))
    return ratio(f"hashed n-gram cache, {n_tokens:,} tokens", hashed_cache, model, tokens, rounds)


if __name__ == "__main__":
    main()
