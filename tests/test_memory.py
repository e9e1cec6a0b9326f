"""Memory stays flat in the length of an eval."""

from __future__ import annotations

import torch

import causaltrace
from tests.small import Toy, nll, stream


def adapt(windows: int) -> tuple[int, int, int]:
    """Bytes kept for paths, shadows in memory, and notices, after score-then-train over some windows."""
    tokens, model = stream(8 * windows + 1), Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with causaltrace.watch(tokens) as trace:
        for start in range(0, 8 * windows, 8):
            with torch.no_grad():
                nll(model, tokens, start, start + 9).sum().item()
            optimizer.zero_grad()
            nll(model, tokens, start, start + 9).mean().backward()
            optimizer.step()
        tracer = trace._tracer
        out = tracer.algebra.history_bytes, len(tracer.memory.entries), len(trace._judge.escapes)
    assert trace.ok
    return out


def test_kept_history_does_not_grow_with_the_windows() -> None:
    few, many = adapt(40), adapt(120)
    assert many[0] <= few[0] * 1.2
    assert many[1:] == few[1:]


def test_scoring_keeps_nothing() -> None:
    tokens, model = stream(400), Toy()
    with causaltrace.watch(tokens) as trace, torch.inference_mode():
        total = torch.zeros(())
        sizes = []
        for start in range(0, 399, 21):
            total += nll(model, tokens, start, start + 22).sum()
            sizes.append(len(trace._tracer.memory.entries))
    assert trace.ok and len(set(sizes[1:])) == 1
