"""One LoRA per document: a chunk's score and its training loss come from one forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import causaltrace
from examples.common import GPT, Attention, parse, prepare, show

NAME = "LoRA per document"
LEGAL = True


@dataclass(frozen=True)
class Config:
    batch: int = 4
    document: int = 64
    chunk: int = 16
    rank: int = 4
    lr: float = 0.01


class DocumentLora(nn.Module):
    """A low-rank linear map per document: [documents, length, fan_in] to [documents, length, fan_out]."""

    def __init__(self, documents: int, fan_in: int, fan_out: int, rank: int, like: Tensor) -> None:
        super().__init__()
        generator = torch.Generator(device=like.device).manual_seed(0)
        down = torch.randn(fan_in, rank, generator=generator, device=like.device) * fan_in**-0.5
        self.down = nn.Parameter(down.to(like.dtype).repeat(documents, 1, 1))
        self.up = nn.Parameter(like.new_zeros(documents, rank, fan_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(torch.bmm(x, self.down), self.up)


def make_adapters(model: GPT, documents: int, rank: int) -> nn.ModuleList:
    """Fresh adapters for every layer's query/key/value projection; they start as the identity."""
    weights = [module.qkv.weight for module in model.modules() if isinstance(module, Attention)]
    return nn.ModuleList(DocumentLora(documents, w.shape[1], w.shape[0], rank, w) for w in weights)


def evaluate(model: GPT, tokens: Tensor, config: Config) -> float:
    """Mean nats per token; documents are equal pieces of the stream, adapted side by side."""
    model.eval().requires_grad_(False)
    last = len(tokens) - 1
    loss_sum = torch.zeros((), dtype=torch.float64, device=tokens.device)
    first = 0
    while first < last:
        length = min(config.document, last - first)
        documents = min(config.batch, (last - first) // length)
        stop = first + documents * length
        inputs = tokens[first:stop].view(documents, length)
        targets = tokens[first + 1 : stop + 1].view(documents, length)
        first = stop

        adapters = make_adapters(model, documents, config.rank)
        optimizer = torch.optim.AdamW(adapters.parameters(), lr=config.lr)
        for begin in range(0, length, config.chunk):
            end = min(begin + config.chunk, length)
            logits = model(inputs[:, :end], adapters)[:, begin:]
            nll = F.cross_entropy(logits.flatten(0, 1), targets[:, begin:end].flatten(), reduction="none")
            with torch.no_grad():
                loss_sum += nll.double().sum()
            if end < length:
                optimizer.zero_grad(set_to_none=True)
                nll.mean().backward()
                optimizer.step()
    return loss_sum.item() / last


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv, __doc__, Config())
    model, tokens = prepare(options)
    with causaltrace.watch(tokens) as trace:
        nats = evaluate(model, tokens, options.config)
    show(NAME, nats, trace.report)


if __name__ == "__main__":
    main()
