"""``python -m benchmarks.static``: a GPT of 1.5 B parameters, audited without weights: time and memory."""

from __future__ import annotations

import resource
import time

import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from examples.common import GPT, ModelConfig

LENGTH = 4096


def main() -> None:
    config = ModelConfig(vocab=50304, context=LENGTH, layers=48, heads=25, dim=1600, norm="layer")
    with torch.device("meta"):
        model = GPT(config)

    def step(tokens: Tensor) -> Tensor:
        """Score, then train on what was scored."""
        inputs, targets = tokens[None, :-1], tokens[1:]
        with torch.no_grad():
            total = F.cross_entropy(model(inputs)[0], targets, reduction="sum")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        F.cross_entropy(model(inputs)[0], targets).backward()
        optimizer.step()
        return total

    start = time.perf_counter()
    report = causaltrace.audit(step, torch.empty(LENGTH + 1, dtype=torch.long, device="meta"))
    seconds = time.perf_counter() - start
    parameters = sum(p.numel() for p in model.parameters()) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{parameters:.2f} B parameters, {len(report.positions):,} scores: {report.status}")
    print(f"{seconds:.1f} s, {peak:.2f} GB")


if __name__ == "__main__":
    main()
