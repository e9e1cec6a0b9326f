"""Mixing layers of all kinds, causal and not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from tests.probe import LENGTH

DIM, HEADS = 8, 2
PAST = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
LOWEST = torch.finfo(torch.float32).min


# ------------------------------------------------------------------------------------------ mixing layers
# Each maps hidden states [B, L, DIM] to [B, L, DIM]; the model around it works position by position.


class Mixer(nn.Module):
    def __init__(self, mix: Callable[[Mixer, Tensor], Tensor]) -> None:
        super().__init__()
        self.mix = mix
        self.qkv, self.gate, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.batch_norm = nn.BatchNorm1d(DIM)
        self.conv = nn.Conv1d(DIM, DIM, 3)
        self.lstm = nn.LSTM(DIM, DIM, batch_first=True)
        self.gru = nn.GRU(DIM, DIM, batch_first=True)
        self.experts = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(3))
        self.router = nn.Linear(DIM, 3)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        return q, k, v

    def join(self, x: Tensor) -> Tensor:
        return self.out(x.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self, x)


def attention(m: Mixer, x: Tensor) -> Tensor:
    return m.join(F.scaled_dot_product_attention(*m.heads(x), is_causal=True))


def masked_attention(mask: Tensor) -> Callable[[Mixer, Tensor], Tensor]:
    def mix(m: Mixer, x: Tensor) -> Tensor:
        given = mask.to(x) if mask.is_floating_point() else mask
        return m.join(F.scaled_dot_product_attention(*m.heads(x), attn_mask=given))

    return mix


def alibi(m: Mixer, x: Tensor) -> Tensor:
    distance = torch.arange(x.shape[1])[None, :] - torch.arange(x.shape[1])[:, None]
    slopes = 2.0 ** -torch.arange(1, HEADS + 1)
    bias = (slopes[:, None, None] * distance).masked_fill(distance > 0, -math.inf)
    return m.join(F.scaled_dot_product_attention(*m.heads(x), attn_mask=bias.to(x.dtype)))


def angles(length: int) -> Tensor:
    return torch.arange(length)[:, None] * torch.tensor([1.0, 0.1])


def rope_real(m: Mixer, x: Tensor) -> Tensor:
    def turn(t: Tensor) -> Tensor:
        cos, sin = angles(x.shape[1]).cos().to(t.dtype), angles(x.shape[1]).sin().to(t.dtype)
        a, b = t.chunk(2, -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)

    q, k, v = m.heads(x)
    return m.join(F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True))


def rope_interleaved(m: Mixer, x: Tensor) -> Tensor:
    def turn(t: Tensor) -> Tensor:
        cos, sin = angles(x.shape[1]).cos().to(t.dtype), angles(x.shape[1]).sin().to(t.dtype)
        a, b = t[..., ::2], t[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

    q, k, v = m.heads(x)
    return m.join(F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True))


def rope_complex(m: Mixer, x: Tensor) -> Tensor:
    def turn(t: Tensor) -> Tensor:
        z = torch.view_as_complex(t.float().reshape(*t.shape[:-1], -1, 2))
        turns = torch.polar(torch.ones(x.shape[1], 2), angles(x.shape[1]))
        return torch.view_as_real(z * turns).flatten(-2).type_as(t)

    q, k, v = m.heads(x)
    return m.join(F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True))


def smear(m: Mixer, x: Tensor) -> Tensor:
    g = torch.sigmoid(m.gate(x))
    return torch.cat((x[:, :1], x[:, 1:] + g[:, 1:] * x[:, :-1]), 1)


def shift_by_pad(m: Mixer, x: Tensor) -> Tensor:
    return m.gate(F.pad(x, (0, 0, 1, -1)))


def shift_in_place(m: Mixer, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1:] = m.gate(x)[:, :-1]
    return y


def running_mean(m: Mixer, x: Tensor) -> Tensor:
    return m.gate(x).cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


def recurrence(m: Mixer, x: Tensor) -> Tensor:
    state, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        state = torch.tanh(m.gate(state) + x[:, t])
        out.append(state)
    return torch.stack(out, 1)


def linear_attention(m: Mixer, x: Tensor) -> Tensor:
    q, k, v = (F.elu(t) + 1 for t in m.heads(x))
    kv = torch.einsum("bhld,bhle->bhlde", k, v).cumsum(2)
    return m.join(torch.einsum("bhld,bhlde->bhle", q, kv) / (q * k.cumsum(2)).sum(-1, keepdim=True))


def token_choice(m: Mixer, x: Tensor) -> Tensor:
    weights, chosen = m.router(x).softmax(-1).max(-1)
    out = torch.zeros_like(x)
    for i, expert in enumerate(m.experts):
        out = out + torch.where((chosen == i)[..., None], expert(x), 0.0)
    return out * weights[..., None]


def expert_choice(m: Mixer, x: Tensor) -> Tensor:
    """Each expert takes its three best positions of the sequence."""
    scores = m.router(x)[0].softmax(-1)
    out = torch.zeros_like(x[0])
    for i, expert in enumerate(m.experts):
        weights, where = scores[:, i].topk(3)
        out = out.index_add(0, where, expert(x[0, where]) * weights[:, None])
    return out[None]


def by_vmap(m: Mixer, x: Tensor) -> Tensor:
    q, k, v = m.heads(x)

    def head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.T).masked_fill(~PAST, -math.inf)
        return scores.softmax(-1) @ v

    return m.join(torch.vmap(torch.vmap(head))(q, k, v))


class Gated(torch.autograd.Function):
    """x * sigmoid(g), with the backward written by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor) -> Tensor:
        s = torch.sigmoid(g)
        ctx.save_for_backward(x, s)
        return x * s

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, s = ctx.saved_tensors
        return grad * s, grad * x * s * (1 - s)


def custom_function(m: Mixer, x: Tensor) -> Tensor:
    return Gated.apply(attention(m, x), m.gate(x))


def checkpointed(reentrant: bool) -> Callable[[Mixer, Tensor], Tensor]:
    def mix(m: Mixer, x: Tensor) -> Tensor:
        return checkpoint(lambda y: attention(m, y), x, use_reentrant=reentrant)

    return mix


def convolution(left: int, right: int) -> Callable[[Mixer, Tensor], Tensor]:
    return lambda m, x: m.conv(F.pad(x.transpose(1, 2), (left, right))).transpose(1, 2)


CAUSAL: dict[str, Callable[[Mixer, Tensor], Tensor]] = {
    "attention": attention,
    "sliding_window": masked_attention(PAST.triu(-2)),
    "alibi": alibi,
    "rope_real": rope_real,
    "rope_interleaved": rope_interleaved,
    "rope_complex": rope_complex,
    "smear": smear,
    "shift_by_pad": shift_by_pad,
    "shift_in_place": shift_in_place,
    "running_mean": running_mean,
    "recurrence": recurrence,
    "linear_attention": linear_attention,
    "token_choice": token_choice,
    "vmap": by_vmap,
    "custom_function": custom_function,
    "checkpoint": checkpointed(False),
    "reentrant_checkpoint": checkpointed(True),
}

NOT_CAUSAL: dict[str, Callable[[Mixer, Tensor], Tensor]] = {
    "no_mask": lambda m, x: m.join(F.scaled_dot_product_attention(*m.heads(x))),
    "inverted_mask": masked_attention(~PAST | torch.eye(LENGTH, dtype=torch.bool)),
    "left_padding": masked_attention(
        torch.zeros(LENGTH, LENGTH).masked_fill(~PAST | (torch.arange(LENGTH) < 3), LOWEST)
    ),
    "mean_pooling": lambda m, x: m.gate(x).mean(1, keepdim=True).expand_as(x),
    "max_pooling": lambda m, x: m.gate(x).amax(1, keepdim=True).expand_as(x),
    "batch_norm": lambda m, x: m.batch_norm(x.transpose(1, 2)).transpose(1, 2),
    "roll": lambda m, x: m.gate(x.roll(1, 1)),
    "roll_back": lambda m, x: m.gate(x.roll(-1, 1)),
    "flip": lambda m, x: m.gate(x.flip(1)),
    "token_norm": lambda m, x: F.layer_norm(x, x.shape[1:]),
    "expert_choice": expert_choice,
    "softmax_over_time": lambda m, x: m.gate(x).softmax(1),
    "sorted_over_time": lambda m, x: m.gate(x).sort(1).values,
}

#: Operations that may have no rule yet: never clean when they leak, never a violation when they do not.
MAYBE_OPAQUE: dict[str, tuple[Callable[[Mixer, Tensor], Tensor], bool]] = {
    "causal_conv": (convolution(2, 0), True),
    "same_conv": (convolution(1, 1), False),
    "lstm": (lambda m, x: m.lstm(x)[0], True),
    "gru": (lambda m, x: m.gru(x)[0], True),
    "backward_lstm": (lambda m, x: m.lstm(x.flip(1))[0].flip(1), False),
    "flex_attention": (lambda m, x: m.join(flex(m, x, True)), True),
    "flex_attention_without_mask": (lambda m, x: m.join(flex(m, x, False)), False),
}


def flex(m: Mixer, x: Tensor, causal: bool) -> Tensor:
    q, k, v = (t.float() for t in m.heads(x))
    if not causal:
        return flex_attention(q, k, v).to(x)
    block_mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, LENGTH, LENGTH, device="cpu")
    return flex_attention(q, k, v, block_mask=block_mask).to(x)
