"""Models around an attention, and the many ways to write its mask."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.probe import CLASSES, LENGTH, Eval, Seen, flips, watched

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

DIM, HEADS = 8, 2
DTYPES = [torch.float32, torch.bfloat16]
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
FUTURE = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
PAST = ~FUTURE


# ------------------------------------------------------------------------------------------- the models


class Layer(nn.Module):
    """Attention over [1, HEADS, L, DIM / HEADS], with a residual. ``sharp`` scales the scores."""

    def __init__(self, attend: Attend, sharp: float, kv_heads: int) -> None:
        super().__init__()
        self.attend, self.sharp, self.kv_heads = attend, sharp, kv_heads
        width = DIM // HEADS * kv_heads
        self.query, self.key, self.value = nn.Linear(DIM, DIM), nn.Linear(DIM, width), nn.Linear(DIM, width)
        self.norm, self.out = nn.LayerNorm(DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (
            layer(h).unflatten(-1, (heads, -1)).transpose(-3, -2)
            for layer, heads in ((self.query, HEADS), (self.key, self.kv_heads), (self.value, self.kv_heads))
        )
        mixed = self.attend(q * self.sharp, k, v)
        return x + self.out(mixed.transpose(-3, -2).flatten(-2))


class Model(nn.Module):
    """Embedding, layers, head: token ids [L] to logits [L, CLASSES]; ``delta`` is added before the layers."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, DIM)
        self.position = nn.Embedding(32, DIM)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, ids: Tensor, delta: Tensor | float = 0.0) -> Tensor:
        x = (self.embedding(ids) + self.position.weight[: len(ids)]).unsqueeze(0) + delta
        for layer in self.layers:
            x = layer(x)
        return self.head(x)[0]


def model(
    attend: Attend, depth: int, dtype: torch.dtype, sharp: float = 1.0, kv_heads: int = HEADS, seed: int = 0
) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Model([Layer(attend, sharp, kv_heads) for _ in range(depth)]).to(dtype)


def scoring(net: nn.Module, mode: Callable[[], object] = torch.no_grad) -> Eval:
    def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
        with mode():  # type: ignore[attr-defined]
            return net(tokens[:-1]), torch.arange(1, len(tokens))

    return run


# -------------------------------------------------------------------------------------------- the masks


def additive(value: float, mask: Tensor = FUTURE) -> Callable[[Tensor], Tensor]:
    """0 where ``mask`` is false, else ``value``, in the dtype of the scores."""
    return lambda like: torch.zeros(mask.shape, dtype=like.dtype).masked_fill(mask, value)


def lowest(like: Tensor) -> Tensor:
    return additive(torch.finfo(like.dtype).min)(like)


def sdpa(
    mask: Callable[[Tensor], Tensor] | Tensor | None = None, causal: bool = False, **options: bool
) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        made = mask(q) if callable(mask) else mask
        return F.scaled_dot_product_attention(q, k, v, attn_mask=made, is_causal=causal, **options)

    return attend


def backend(kind: SDPBackend, inner: Attend) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(kind):
            return inner(q, k, v)

    return attend


def merged(inner: Attend) -> Attend:
    """Batch and heads merged: 3-D inputs."""
    return lambda q, k, v: inner(q[0], k[0], v[0])[None]


def by_hand(masking: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor] = lambda p: p) -> Attend:
    """softmax(masking(q k^T)) v in plain operations."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        return after(torch.softmax(masking(scores), -1)) @ v

    return attend


def fill(value: float, mask: Tensor = FUTURE) -> Callable[[Tensor], Tensor]:
    return lambda s: s.masked_fill(mask, value)


def fill_lowest(s: Tensor) -> Tensor:
    return s.masked_fill(FUTURE, torch.finfo(s.dtype).min)


def exponentials(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax by hand: exp, a multiplicative mask, then the normaliser."""
    weights = (q @ k.transpose(-2, -1)).exp() * PAST
    return weights / weights.sum(-1, keepdim=True) @ v


LEGAL: dict[str, Attend] = {
    "is_causal": sdpa(causal=True),
    "bool": sdpa(PAST),
    "bool_4d": sdpa(PAST.expand(1, HEADS, LENGTH, LENGTH)),
    "bool_per_head": sdpa(torch.stack((PAST, torch.eye(LENGTH, dtype=torch.bool)))[None]),
    "minus_inf": sdpa(additive(-math.inf)),
    "finfo_min": sdpa(lowest),
    "minus_1e9": sdpa(additive(-1e9)),
    "minus_1e9_with_bias": sdpa(lambda q: additive(-1e9)(q) - 3.0),
    "is_causal_3d": merged(sdpa(causal=True)),
    "bool_3d": merged(sdpa(PAST)),
    "finfo_min_3d": merged(sdpa(lowest)),
    "math_is_causal": backend(SDPBackend.MATH, sdpa(causal=True)),
    "math_bool": backend(SDPBackend.MATH, sdpa(PAST)),
    "math_minus_inf": backend(SDPBackend.MATH, sdpa(additive(-math.inf))),
    "math_finfo_min": backend(SDPBackend.MATH, sdpa(lowest)),
    "flash_is_causal": backend(SDPBackend.FLASH_ATTENTION, sdpa(causal=True)),
    "strictly_past": sdpa(torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-1)),
    "hand_fill_minus_inf": by_hand(fill(-math.inf)),
    "hand_fill_finfo_min": by_hand(fill_lowest),
    "hand_fill_minus_1e9": by_hand(fill(-1e9)),
    "hand_where_minus_inf": by_hand(lambda s: torch.where(PAST, s, -math.inf)),
    "hand_where_finfo_min": by_hand(lambda s: torch.where(PAST, s, torch.finfo(s.dtype).min)),
    "hand_add_minus_inf": by_hand(lambda s: s + additive(-math.inf)(s)),
    "hand_add_finfo_min": by_hand(lambda s: s + lowest(s)),
    "hand_add_minus_1e9": by_hand(lambda s: s + additive(-1e9)(s)),
    "hand_add_in_place": by_hand(lambda s: s.add_(additive(-math.inf)(s))),
    "hand_fill_in_place": by_hand(lambda s: s.masked_fill_(FUTURE, -math.inf)),
    "hand_exponentials": exponentials,
    "renormalised": by_hand(fill(-math.inf), lambda p: p * PAST / p.mul(PAST).sum(-1, keepdim=True)),
}

#: Flipped at several scales of the scores: what a -100 mask leaves is seen in bits only at large ones.
LEAKING: dict[str, Attend] = {
    "no_mask": sdpa(),
    "math_no_mask": backend(SDPBackend.MATH, sdpa()),
    "inverted_bool": sdpa(FUTURE | torch.eye(LENGTH, dtype=torch.bool)),
    "minus_100": sdpa(additive(-100.0)),
    "math_minus_100": backend(SDPBackend.MATH, sdpa(additive(-100.0))),
    "hand_fill_minus_100": by_hand(lambda s: fill(-100.0)(s - 90)),
    "hand_add_minus_100": by_hand(lambda s: s + additive(-100.0)(s)),
    "only_hidden_keys_at_minus_1e9": sdpa(lambda q: torch.where(PAST.tril(-1), -math.inf, -1e9).to(q.dtype)),
    "scores_beyond_minus_1e9": lambda q, k, v: sdpa(additive(-1e9))(q * 1e11, k, v),
    "one_ahead": sdpa(torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(1)),
    "tril_after_softmax": by_hand(lambda s: s, lambda p: p.tril()),
    "mask_after_softmax": by_hand(lambda s: s, lambda p: p * PAST),
}


def check(run: Eval, tokens: Tensor, *more: Eval) -> Seen:
    """The watch against flips of the same run, and of ``more`` while flips show less than the watch says."""
    found = watched(run, tokens)
    truth = flips(run, tokens)
    for other in more:
        if truth == found.seen:
            break
        truth = truth | flips(other, tokens)
    assert found.seen.latest == truth.latest
    assert found.seen.violating == truth.violating
    assert found.report.status == ("violation" if truth.violating else "clean"), str(found.report)
    return truth
