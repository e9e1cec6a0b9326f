"""What every example needs: a byte-level GPT, real text, a short training run, windows and flags."""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ConfigT = TypeVar("ConfigT", bound="DataclassInstance")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the GPT. ``norm`` is "rms" or "layer"; ``tied`` shares the head with the embedding."""

    vocab: int = 256
    context: int = 64
    layers: int = 2
    heads: int = 4
    dim: int = 64
    norm: str = "rms"
    tied: bool = True


def _norm(config: ModelConfig) -> nn.Module:
    return nn.RMSNorm(config.dim) if config.norm == "rms" else nn.LayerNorm(config.dim)


class Attention(nn.Module):
    """Causal self-attention. An adapter, if given, adds to the joint query/key/value projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, adapter: nn.Module | None = None) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(x)
        if adapter is not None:
            qkv = qkv + adapter(x)
        query, key, value = qkv.view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, dim))


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = _norm(config)
        self.attention = Attention(config)
        self.mlp_norm = _norm(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, 4 * config.dim), nn.GELU(), nn.Linear(4 * config.dim, config.dim)
        )

    def forward(self, x: Tensor, adapter: nn.Module | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), adapter)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """A GPT in two halves, so that SLOT can work between them: ``hidden`` and ``logits``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab, config.dim)
        self.position = nn.Embedding(config.context, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = _norm(config)
        self.head = nn.Linear(config.dim, config.vocab, bias=False)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        nn.init.normal_(self.position.weight, std=config.dim**-0.5)
        if config.tied:
            self.head.weight = self.embedding.weight

    def hidden(self, ids: Tensor, adapters: Sequence[nn.Module] | nn.ModuleList | None = None) -> Tensor:
        """Final hidden states [batch, length, dim] of token ids [batch, length]."""
        x = self.embedding(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        for index, block in enumerate(self.blocks):
            x = block(x, None if adapters is None else adapters[index])
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [batch, length, vocab] of hidden states."""
        return self.head(hidden)

    def forward(self, ids: Tensor, adapters: Sequence[nn.Module] | nn.ModuleList | None = None) -> Tensor:
        return self.logits(self.hidden(ids, adapters))


def build_model(config: ModelConfig, seed: int = 0) -> GPT:
    """A freshly initialised GPT; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT(config)


def load_text() -> bytes:
    """The language reference topics that ship with Python (about half a megabyte of prose and code)."""
    return "\n".join(topics[name] for name in sorted(topics)).encode("utf-8")


def byte_tokens(text: bytes) -> Tensor:
    """Bytes as a 1-D int64 tensor of ids 0..255."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).to(torch.int64)


def train(
    model: GPT,
    tokens: Tensor,
    steps: int,
    length: int,
    batch: int = 16,
    seed: int = 0,
    seconds: float = math.inf,
) -> int:
    """Train in place with AdamW on random excerpts of ``tokens``, for ``seconds`` at most.

    Returns how many of the ``steps`` were made.
    """
    end = time.monotonic() + seconds
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    offsets = torch.arange(length + 1)
    model.train()
    for step in range(steps):
        if time.monotonic() >= end:
            return step
        starts = torch.randint(len(tokens) - length, (batch, 1), generator=generator)
        rows = tokens[(starts + offsets).to(tokens.device)]
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return steps


def bits_per_byte(nats_per_token: float) -> float:
    """Nats per byte-level token as bits per byte."""
    return nats_per_token / math.log(2)


class Window(NamedTuple):
    """Inputs ``tokens[start:stop]``, targets one later; rows from ``fresh`` on were not scored before."""

    start: int
    stop: int
    fresh: int


def sliding_windows(n_tokens: int, length: int, stride: int) -> Iterator[Window]:
    """Windows of one length that together score positions 1..n_tokens-1 once; the last ends the stream."""
    last = n_tokens - 1
    length = min(length, last)
    scored = 0
    while scored < last:
        stop = min(scored + stride, last) if scored else length
        yield Window(stop - length, stop, length - (stop - scored))
        scored = stop


class Options(NamedTuple, Generic[ConfigT]):
    """Parsed flags: the model, the eval, and how much text to use."""

    model: ModelConfig
    config: ConfigT
    tokens: int
    train_steps: int
    seed: int
    device: str


def _add_flags(parser: argparse.ArgumentParser, defaults: ConfigT) -> None:
    for field in dataclasses.fields(defaults):
        default = getattr(defaults, field.name)
        flag = "--" + field.name.replace("_", "-")
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        else:
            parser.add_argument(flag, type=type(default), default=default)


def _from_flags(args: argparse.Namespace, defaults: ConfigT) -> ConfigT:
    names = [field.name for field in dataclasses.fields(defaults)]
    return dataclasses.replace(defaults, **{name: getattr(args, name) for name in names})


def parse(argv: Sequence[str] | None, description: str | None, config: ConfigT) -> Options[ConfigT]:
    """Flags for every field of the model's and of the eval's configuration, with their defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tokens", type=int, default=1024, help="length of the scored stream")
    parser.add_argument("--train-steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    _add_flags(parser, ModelConfig())
    _add_flags(parser, config)
    args = parser.parse_args(argv)
    model, chosen = _from_flags(args, ModelConfig()), _from_flags(args, config)
    return Options(model, chosen, args.tokens, args.train_steps, args.seed, args.device)


def prepare(options: Options[ConfigT]) -> tuple[GPT, Tensor]:
    """A GPT trained on the first part of the text, and a stream of tokens from the last part."""
    stream = byte_tokens(load_text()).to(options.device)
    model = build_model(options.model, options.seed).to(options.device)
    train(model, stream[: -options.tokens], options.train_steps, options.model.context, seed=options.seed)
    model.zero_grad(set_to_none=True)
    return model, stream[-options.tokens :].clone()


def show(name: str, nats_per_token: float, report: object) -> None:
    """Print what the eval claims, and what the trace found."""
    print(f"{name}: claims {bits_per_byte(nats_per_token):.4f} bits per byte")
    print(report)
