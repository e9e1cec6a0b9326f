"""What a watch costs: the same work plain and watched, alternating, ratios of medians."""

from __future__ import annotations

import copy
import statistics
import time
import tracemalloc
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from examples.common import GPT, ModelConfig

Work = Callable[[torch.nn.Module, Tensor], None]


def score(model: torch.nn.Module, tokens: Tensor, length: int = 512) -> None:
    """Score the stream chunk by chunk."""
    total = torch.zeros((), dtype=torch.float64, device=tokens.device)
    with torch.inference_mode():
        for start in range(0, len(tokens) - 1, length):
            x = tokens[start : start + length].unsqueeze(0)
            y = tokens[start + 1 : start + length + 1]
            nll = F.cross_entropy(model(x[:, : len(y)]).squeeze(0), y, reduction="none")
            total += nll.double().sum()
    total.item()


def score_then_train(model: torch.nn.Module, tokens: Tensor, length: int = 512) -> None:
    """Score each chunk, then take one AdamW step on it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    total = torch.zeros((), dtype=torch.float64, device=tokens.device)
    for start in range(0, len(tokens) - 1, length):
        y = tokens[start + 1 : start + length + 1]
        x = tokens[start : start + len(y)].unsqueeze(0)
        with torch.no_grad():
            total += F.cross_entropy(model(x).squeeze(0), y, reduction="none").double().sum()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x).squeeze(0), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    total.item()


def seconds(work: Work, model: torch.nn.Module, tokens: Tensor, watched: bool) -> float:
    fresh = copy.deepcopy(model)
    begin = time.perf_counter()
    if watched:
        with causaltrace.watch(tokens) as trace:
            work(fresh, tokens)
        assert trace.report.status == "clean", trace.report
    else:
        work(fresh, tokens)
    return time.perf_counter() - begin


def ratio(name: str, work: Work, model: torch.nn.Module, tokens: Tensor, rounds: int) -> float:
    for watched in (False, True):
        seconds(work, model, tokens, watched)
    pairs = [(seconds(work, model, tokens, False), seconds(work, model, tokens, True)) for _ in range(rounds)]
    plain, traced = (statistics.median(side) for side in zip(*pairs, strict=True))
    spread = sorted(b / a for a, b in pairs)
    value = statistics.median(spread)
    print(
        f"{name:<42} plain {plain * 1e3:8.1f} ms   watched {traced * 1e3:8.1f} ms   "
        f"ratio {value:5.2f}  ({spread[0]:.2f} to {spread[-1]:.2f})"
    )
    return value


def memory(model: torch.nn.Module, vocab: int) -> None:
    """Python and tensor memory held by a watch after few and after many windows."""
    for windows in (8, 32, 128):
        tokens = torch.randint(0, vocab, (windows * 64 + 1,))
        tracemalloc.start()
        with causaltrace.watch(tokens) as trace:
            score_then_train(copy.deepcopy(model), tokens, 64)
            held = trace._tracer.algebra.history_bytes
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(f"{windows:4d} windows: supports kept {held / 1e6:7.2f} MB, Python peak {peak / 1e6:6.1f} MB")


def main(rounds: int = 5) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} pairs each")
    big = GPT(ModelConfig(vocab=256, context=512, dim=512, layers=9, heads=8))
    tokens = torch.randint(0, 256, (2 * 512 + 1,))
    ratio("scoring, 9 layers, d=512, T=512", score, big, tokens, rounds)
    ratio("score then train, 9 layers, d=512, T=512", score_then_train, big, tokens, rounds)
    toy = GPT(ModelConfig(vocab=256, context=128, dim=64, layers=4, heads=4))
    short = torch.randint(0, 256, (8 * 128 + 1,))
    ratio(
        "toy: score then train, 4 layers, d=64", lambda m, t: score_then_train(m, t, 128), toy, short, rounds
    )
    memory(toy, 256)


if __name__ == "__main__":
    main()
