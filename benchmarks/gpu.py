"""``python -m benchmarks.gpu``: verdicts and cost on a CUDA device, with autograd's device threads."""

from __future__ import annotations

import statistics
import time

import torch

import causaltrace
from benchmarks.overhead import Work, score, score_then_train
from examples.common import GPT, ModelConfig


def seconds(work: Work, model: torch.nn.Module, tokens: torch.Tensor, watched: bool) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    if watched:
        with causaltrace.watch(tokens) as trace:
            work(model, tokens)
            torch.cuda.synchronize()
            inside = time.perf_counter() - begin
        assert trace.report.status == "clean", trace.report
        return inside
    work(model, tokens)
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def batched(model: torch.nn.Module, tokens: torch.Tensor, train: bool) -> None:
    """32 rows of 2,048 tokens in bfloat16: score them, then (``train``) one step on them."""
    x, y = tokens[:-1].view(32, 2048), tokens[1:].view(32, 2048)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    with torch.autocast("cuda", torch.bfloat16):
        with torch.no_grad():
            logits = model(x)
            torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), y.flatten(), reduction="none"
            ).sum()
        if train:
            logits = model(x)
            torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), y.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def main(rounds: int = 5) -> None:
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), torch.__version__)
    model = GPT(ModelConfig(vocab=1024, context=2048, dim=512, layers=9, heads=8)).cuda()
    tokens = torch.randint(0, 1024, (32 * 2048 + 1,), device="cuda")
    small = GPT(ModelConfig(vocab=256, context=128, dim=64, layers=4, heads=4)).cuda()
    short = torch.randint(0, 256, (4 * 128 + 1,), device="cuda")
    cases: list[tuple[str, Work, torch.nn.Module, torch.Tensor]] = [
        ("32 x 2,048 tokens, bf16: score", lambda m, t: batched(m, t, False), model, tokens),
        ("32 x 2,048 tokens, bf16: score, train", lambda m, t: batched(m, t, True), model, tokens),
        ("toy score", lambda m, t: score(m, t, 128), small, short),
        ("toy score then train", lambda m, t: score_then_train(m, t, 128), small, short),
    ]
    for name, work, net, stream in cases:
        for watched in (False, True, False):
            seconds(work, net, stream, watched)
        pairs = [(seconds(work, net, stream, False), seconds(work, net, stream, True)) for _ in range(rounds)]
        spread = sorted(b / a for a, b in pairs)
        plain = statistics.median(a for a, _ in pairs)
        print(
            f"{name:<40} plain {plain * 1e3:8.1f} ms  ratio {statistics.median(spread):.2f} "
            f"({spread[0]:.2f} to {spread[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
